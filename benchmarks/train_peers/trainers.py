"""TRL's SFTTrainer and transformers' Trainer on the same rows, in the settings that the job names. Knows not cairn.

Rows come in tokens with labels that hide all but the assistant's tokens, so that no time goes into templates and all see the same
targets. What the job does not set stays the library's default. Real tokens are counted as the model's forward sees them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import numpy as np
from worker import Stop, Turns, job, peak_mb, read_rows, reply


def grouped(lengths: list[int], batch: int, seed: int) -> list[int]:
    """Rows in an order whose micro-batches are of one length, the longest batch first as transformers' own grouping has it.

    Their own goes from long to short over fifty steps, so that a few steps are no fair sample: here the batches are shuffled.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]
    shuffled = [batches[1 + i] for i in np.random.default_rng(seed).permutation(len(batches) - 1)]
    return [i for one in (batches[0], *shuffled) for i in one]


def main() -> None:
    told = job()
    try:
        import accelerate  # noqa: F401
        import datasets
        import transformers

        if told["library"] == "trl":
            import trl
    except ImportError as error:
        reply(missing=str(error))
        sys.exit(0)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()

    turns = Turns(told["warmup"])
    counted = {"tokens": 0}
    tokenizer = transformers.AutoTokenizer.from_pretrained(told["model"])

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.first = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step(counted["tokens"])

    def count(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"]
        counted["tokens"] += int((ids != tokenizer.pad_token_id).sum())

    rows = read_rows(told["rows"])
    columns = {
        "input_ids": [ids.tolist() for ids, _ in rows],
        "labels": [[int(i) if m else -100 for i, m in zip(ids, mask, strict=True)] for ids, mask in rows],
    }
    data = datasets.Dataset.from_dict(columns)
    with tempfile.TemporaryDirectory() as scratch:
        common = {
            # TRL asks for bf16 by default, and refuses it on a machine without a GPU unless it is told to use the CPU.
            "output_dir": scratch, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
            "max_steps": told.get("steps") or 10**6, "lr_scheduler_type": "constant", "seed": told["seed"], **told["settings"],
        }  # fmt: skip
        if told["library"] == "trl":
            trainer = trl.SFTTrainer(
                model=told["model"], args=trl.SFTConfig(**common), train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
            )
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(told["model"], dtype="float32")
            collator = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True)
            trainer = transformers.Trainer(
                model=model, args=transformers.TrainingArguments(**common), train_dataset=data, data_collator=collator, callbacks=[Clock()]
            )
        trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        if told.get("grouped"):
            order = grouped([len(ids) for ids, _ in rows], told["settings"]["per_device_train_batch_size"], told["seed"])
            trainer._get_train_sampler = lambda *_: order
        try:
            trainer.train()
            turns.end()
        except Stop:
            pass
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    versions = {name: module.__version__ for name, module in sys.modules.items() if name in ("trl", "transformers", "accelerate")}
    reply(peak_mb=peak_mb(), loss=losses[0] if losses else None, versions=versions)


if __name__ == "__main__":
    main()
