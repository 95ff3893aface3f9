"""TRL's DPOTrainer on the same pairs, in the settings that the job names. Knows not cairn.

Pairs come in tokens, so that no time goes into templates and all see the same ids. What the job does not set stays TRL's default.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
from worker import Stop, Turns, job, peak_mb, reply


def read_pairs(path: str) -> dict[str, list[list[int]]]:
    """The columns that TRL's collator asks for."""
    found: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    with np.load(path) as stored:
        rows = np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])
        for ids, (chosen, rejected) in zip(rows, stored["answers"].tolist(), strict=True):
            prompt = len(ids) - chosen - rejected
            for name, part in zip(found, np.split(ids, [prompt, prompt + chosen]), strict=True):
                found[name].append(part.tolist())
    return found


def main() -> None:
    told = job()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        import accelerate  # noqa: F401
        import datasets
        import transformers
        import trl
    except ImportError as error:
        reply(missing=str(error))
        sys.exit(0)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    turns, tokenizer = Turns(told["warmup"]), transformers.AutoTokenizer.from_pretrained(told["model"])
    settings = told["settings"]
    step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.first = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step((turns.steps + 1) * step)

    class Trainer(trl.DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    with tempfile.TemporaryDirectory() as scratch:
        common = {
            # TRL asks for bf16 by default, and refuses it on a machine without a GPU unless it is told to use the CPU.
            "output_dir": scratch, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
            "max_steps": 10**6, "lr_scheduler_type": "constant", "seed": told["seed"], **settings,
        }  # fmt: skip
        data = datasets.Dataset.from_dict(read_pairs(told["rows"]))
        model = transformers.AutoModelForCausalLM.from_pretrained(told["model"], dtype="float32")
        trainer = Trainer(model=model, args=trl.DPOConfig(**common), train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
        with contextlib.suppress(Stop):
            trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        reference = None
        if "ref_chosen_logps" in trainer.train_dataset.column_names:
            both = zip(trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"], strict=True)
            reference = [float(x) for pair in both for x in pair]
    reply(peak_mb=peak_mb(), losses=losses, reference=reference, versions={m.__name__: m.__version__ for m in (trl, transformers)})


if __name__ == "__main__":
    main()
