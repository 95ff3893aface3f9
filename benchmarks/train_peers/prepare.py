"""What all competitors start from: rows in tokens with their mask, a tokenizer, random weights. Knows cairn; trains nothing.

For each shape a folder: `rows.npz` and `heldout.npz` (every fiftieth row), `first.npz` (the rows of the step whose loss is compared)
and `model/`, an ordinary Hugging Face folder. The same job writes the same bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from worker import job, reply, write_rows

from cairn.chat.format import load_format
from cairn.chat.render import Renderer, render_text
from cairn.data.encode import Counters, encode_rows
from cairn.data.readers import read_outcomes
from cairn.data.rows import messages_of
from cairn.model.config import ModelConfig, count_parameters
from cairn.model.load import new_model, save_model
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import TokenizerConfig, special_tokens, train_tokenizer

HELD_OUT = 50


def main() -> None:
    told = job()
    rows = [outcome.row for outcome in read_outcomes(told["data"]) if outcome.row is not None]
    if told["rows"] and told["rows"] < len(rows):
        # Spread over the files, whose rows differ in length.
        rows = [rows[i * len(rows) // told["rows"]] for i in range(told["rows"])]
    chat_format = load_format(told["format"])
    texts = _texts(rows, chat_format)
    reply(shapes={name: _shape(name, shape, told, rows, texts, chat_format) for name, shape in told["shapes"].items()})


def _texts(rows: list[Any], chat_format: Any) -> list[str]:
    """What the tokenizer is trained on: rendered rows, without the special tokens."""
    found = []
    for row in rows:
        text = render_text(chat_format, messages_of(row))
        for token in special_tokens(chat_format):
            text = text.replace(token, "\0")
        found += [part for part in text.split("\0") if part]
    return found


def _shape(name: str, shape: dict[str, Any], told: dict[str, Any], rows: list[Any], texts: list[str], chat_format: Any) -> dict[str, Any]:
    folder = Path(told["folder"]) / name
    vocab = shape["vocab_size"]
    trained = train_tokenizer(iter(texts), TokenizerConfig(vocab_size=vocab, format=told["format"]), chat_format, folder / "tokenizer")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    config = ModelConfig(**shape["model"])
    counted = Counters()
    found = encode_rows(rows, Renderer(chat_format, tokenizer), tokenizer, max_length=told["max_length"], overlong="drop", counters=counted)
    documents = [(d.ids, d.mask) for d in found]
    train = [d for i, d in enumerate(documents) if i % HELD_OUT]
    write_rows(folder / "rows.npz", train)
    write_rows(folder / "heldout.npz", documents[::HELD_OUT])
    write_rows(folder / "first.npz", train[: told["first_rows"]])
    # The vocabulary is the shape's, also where the rows give fewer merges: the rest of the matrix is computed all the same.
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    model = new_model(config, vocab_size=vocab, seed=told["seed"], **ids)
    save_model(model, folder / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / "tokenizer" / file, folder / "model" / file)
    total, matrices = count_parameters(config, vocab)
    lengths = [len(d[0]) for d in train]
    return {
        "folder": str(folder), "parameters": total, "matrix_parameters": matrices, "layers": config.layers,
        "hidden_size": config.hidden_size, "tokenizer_ids": trained["vocab_size"], "rows": len(train), "dropped": counted.dropped_overlong,
        "mean_length": sum(lengths) / len(lengths),
        # What a token's attention costs on average: a token of a long document looks back further, and long documents have more of them.
        "attended_length": sum(n * n for n in lengths) / sum(lengths),
        "supervised_share": sum(int(d[1].sum()) for d in train) / sum(lengths),
    }  # fmt: skip


if __name__ == "__main__":
    main()
