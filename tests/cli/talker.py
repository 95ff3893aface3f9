"""Tiny checkpoints: one that knows a few dialogues by heart, one that never stops. What `chat` and `generate` are tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from cairn.chat.format import load_format
from cairn.chat.render import Renderer, render_text
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import TokenizerConfig, byte_tokenizer, save, train_tokenizer

TOOL = {"name": "rain", "parameters": {"type": "object"}}
CALLED = {"name": "rain", "arguments": {"at": "Oslo"}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALLED}]}

COPIED = '{"arguments": {"at": "Oslo"}, "name": "rain"}'


def say(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


DIALOGUES: list[dict[str, Any]] = [
    {"messages": [say("user", "Hi"), say("assistant", "Hello, 친구!")]},
    {"messages": [say("user", "Hi"), say("assistant", "Hello, 친구!"), say("user", "Who?"), say("assistant", "A cairn.")]},
    {"messages": [say("system", "Yell."), say("user", "Hi"), say("assistant", "HELLO")]},
    {"messages": [say("user", "Rain?"), CALL, say("tool", '{"mm": 3}'), say("assistant", "- 3 mm")], "tools": [TOOL]},
    {"messages": [say("user", "Rain?"), CALL, say("tool", COPIED), say("assistant", "- JSON")], "tools": [TOOL]},
]


def talker(folder: Path) -> Path:
    """Train on `DIALOGUES` until each answer comes back, and save (seconds)."""
    chat_format = load_format("k2")
    texts = [render_text(chat_format, d["messages"], tools=d.get("tools")) for d in DIALOGUES]
    train_tokenizer(iter(texts), TokenizerConfig(vocab_size=1000), chat_format, folder)
    tokenizer = Tokenizer.load(folder)
    renderer = Renderer(chat_format, tokenizer)
    rows = [renderer.render(d["messages"], tools=d.get("tools")) for d in DIALOGUES]
    batches = [_batch(group) for group in (rows[:3], rows[3:])]
    model = _random(tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.9, 0.95))
    for _ in range(400):
        loss = torch.stack([model(input_ids=ids, labels=labels).loss for ids, labels in batches]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    model.save_pretrained(folder)
    return folder


def endless(folder: Path, format: str = "k2") -> Path:
    """A model that babbles on: its stop tokens are never the likeliest."""
    chat_format = load_format(format)
    tokenizer = byte_tokenizer(chat_format)
    model = _random(tokenizer.vocab_size)
    model.lm_head.weight.data[list(tokenizer.special.values())] = 0
    model.save_pretrained(folder)
    save(tokenizer.backend, chat_format, folder)
    return folder


def _batch(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(r.ids) for r in rows)
    labels = [[i if m else -100 for i, m in zip(r.ids, r.mask, strict=True)] + [-100] * (width - len(r.ids)) for r in rows]
    return torch.tensor([r.ids + [0] * (width - len(r.ids)) for r in rows]), torch.tensor(labels)


def _random(vocab: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1_000_000, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config)
