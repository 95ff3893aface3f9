"""What preference trainings start from: pairs in tokens, a tokenizer, random weights. Knows cairn; trains nothing.

For each shape a folder: `pairs.npz`, `first.npz` (the pairs whose numbers are compared) and `model/`, an ordinary Hugging Face folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from prepare import _texts
from worker import job, reply

from cairn.chat.format import load_format
from cairn.chat.render import Renderer
from cairn.data.encode import Counters, Encoded, encode_rows
from cairn.data.readers import read_outcomes
from cairn.ledger import seeds
from cairn.model.config import ModelConfig, count_parameters
from cairn.model.load import new_model, save_model
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import TokenizerConfig, train_tokenizer


def pairs_of(rows: list[Any], number: int, seed: int) -> list[Any]:
    """So many rows, spread over the data, each with the answer of another one as the rejected one."""
    every = [rows[i * len(rows) // number] for i in range(min(number, len(rows)))]
    found = []
    for i, one in enumerate(every):
        other = every[(i + 1 + seeds.below(len(every) - 1, seed, "rejected", i)) % len(every)]
        chosen, rejected = one["messages"][-1], other["messages"][-1]
        if chosen["content"].strip() != rejected["content"].strip():
            found.append({"messages": one["messages"][:-1], "chosen": [chosen], "rejected": [rejected], "id": one["id"]})
    return found


def write_pairs(path: Path, documents: list[Encoded]) -> None:
    """The file that `pairs_ours` and `pairs_trl` read."""
    answers = np.array([d.answers for d in documents])
    ids, masks = (np.concatenate(column) for column in ([d.ids for d in documents], [d.mask for d in documents]))
    np.savez(path, ids=ids, mask=masks, lengths=np.array([len(d) for d in documents]), answers=answers)


def main() -> None:
    told = job()
    rows = [o.row for o in read_outcomes(told["data"]) if o.row is not None and o.row["messages"][-1]["role"] == "assistant"]
    chat_format = load_format(told["format"])
    texts, pairs, found = _texts(rows, chat_format), pairs_of(rows, told["pairs"], told["seed"]), {}
    for name, shape in told["shapes"].items():
        folder, config = Path(told["folder"]) / name, ModelConfig(**shape["model"])
        asked = TokenizerConfig(vocab_size=shape["vocab_size"], format=told["format"])
        train_tokenizer(iter(texts), asked, chat_format, folder / "tokenizer")
        tokenizer = Tokenizer.load(folder / "tokenizer")
        limits: dict[str, Any] = {"max_length": told["max_length"], "overlong": "drop", "objective": "answers", "counters": Counters()}
        documents = list(encode_rows(pairs, Renderer(chat_format, tokenizer), tokenizer, **limits))
        # TRL learns all of an answer; where the template puts something behind it, that is the same only if it is a target.
        assert all(d.mask[len(d) - sum(d.answers) :].all() for d in documents)
        write_pairs(folder / "pairs.npz", documents)
        write_pairs(folder / "first.npz", documents[: told["first"]])
        ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        save_model(new_model(config, vocab_size=shape["vocab_size"], seed=told["seed"], **ids), folder / "model")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(folder / "tokenizer" / file, folder / "model" / file)
        found[name] = {
            "folder": str(folder), "parameters": count_parameters(config, shape["vocab_size"])[0], "pairs": len(documents),
            "mean_tokens": sum(map(len, documents)) / len(documents),
        }  # fmt: skip
    reply(shapes=found)


if __name__ == "__main__":
    main()
