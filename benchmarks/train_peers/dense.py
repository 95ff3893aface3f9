"""The strongest plain loop we know, in the manner of nanochat: dense rows of one length, one compiled graph. Torch only, no cairn.

Documents are joined and cut into rows of equal length, so that nothing is padding and every shape is fixed; attention is causal over
the row and sees the documents before (which is what such a loop gives up). The whole model with its loss is one compiled graph, in
bf16 under autocast with fp32 weights. The model is the Llama shape of the folder, its weights included. Optimiser: fused AdamW,
or Muon for the blocks' matrices and AdamW for the rest, constant and then linear down to 0.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from worker import Stop, Turns, job, peak_mb, read_rows, reply

IGNORED = -100


class Attention(nn.Module):
    """Causal attention with grouped keys and rotary positions."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.groups = c["num_attention_heads"], c["num_key_value_heads"]
        self.size = c.get("head_dim") or c["hidden_size"] // self.heads
        for name, out in (("q_proj", self.heads), ("k_proj", self.groups), ("v_proj", self.groups)):
            setattr(self, name, nn.Linear(c["hidden_size"], out * self.size, bias=False))
        self.o_proj = nn.Linear(self.heads * self.size, c["hidden_size"], bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.size).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.groups, self.size).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.groups, self.size).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.groups)
        return self.o_proj(o.transpose(1, 2).reshape(B, T, -1))


class Mlp(nn.Module):
    """Gated feed-forward."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The model with its loss, names as in the folder's weights."""

    def __init__(self, c: dict[str, Any], length: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        size = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        angles = torch.outer(torch.arange(length).float(), c["rope_parameters"]["rope_theta"] ** (-torch.arange(0, size, 2).float() / size))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for block in self.layers:
            x = block(x, self.cos[: ids.shape[1]], self.sin[: ids.shape[1]])
        logits = F.linear(self.norm(x), self.embed_tokens.weight).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=IGNORED, reduction="sum")


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves apart as Llama's weights have them."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def load(folder: Path, length: int) -> Llama:
    """The folder's model. It has to be a tied Llama."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama" or not config["tie_word_embeddings"]:
        raise ValueError(f"a tied Llama is needed: {folder}")
    model = Llama(config, length)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): w for name, w in weights.items() if name != "lm_head.weight"})
    return model


def save(model: Llama, like: Path, folder: Path) -> None:
    """Write the weights as an ordinary folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes((like / "config.json").read_bytes())
    weights = {f"model.{name}": value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def dense_batches(rows: list[Any], length: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, targets) of count × length: epochs in shuffled order, documents joined, cut where a row is full."""
    need, ids, targets, epoch = count * length, np.empty(0, np.int64), np.empty(0, np.int64), 0
    while True:
        parts = [(ids, targets)]
        for i in np.random.default_rng((seed, epoch)).permutation(len(rows)):
            tokens, mask = rows[i]
            # A target stands at the place before it; the last place of a document has none.
            parts.append((tokens.astype(np.int64), np.append(np.where(mask[1:], tokens[1:], IGNORED), IGNORED).astype(np.int64)))
        ids, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
        while len(ids) >= need:
            yield tuple(torch.from_numpy(x[:need].reshape(count, length)) for x in (ids, targets))  # type: ignore[misc]
            ids, targets = ids[need:], targets[need:]
        epoch += 1


def single_documents(rows: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """Each document as a row of its own: what the loss is compared with others on."""
    return [next(dense_batches([row], len(row[0]), 1, 0)) for row in rows]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov momentum; matrices of one shape are orthogonalised together."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[Any, list[Tensor]] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                grads = torch.stack([p.grad for p in params])
                buffer = self.state[params[0]].setdefault("momentum", torch.zeros_like(grads))
                buffer.lerp_(grads, 1 - group["momentum"])
                x = grads.lerp(buffer, group["momentum"]).bfloat16()
                if shape[0] > shape[1]:
                    x = x.mT
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    gram = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                if shape[0] > shape[1]:
                    x = x.mT
                for p, update in zip(params, x.float(), strict=True):
                    p.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1])))


def optimizers(model: Llama, told: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the blocks' matrices and AdamW for the rest."""
    named = dict(model.named_parameters())
    if told["kind"] == "adamw":
        return [torch.optim.AdamW(named.values(), lr=told["lr"], betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    matrices = [p for name, p in named.items() if p.ndim == 2 and name.startswith("layers.")]
    rest = [p for name, p in named.items() if not (p.ndim == 2 and name.startswith("layers."))]
    adam = torch.optim.AdamW(rest, lr=told["adam_lr"], betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    return [adam, Muon(matrices, told["lr"])]


def factor(step: int, total: int | None, warmdown: float) -> float:
    """Constant, then linear to 0 over the last share of the steps."""
    return 1.0 if total is None else min(1.0, (total - step) / max(1.0, warmdown * total))


def main() -> None:
    told = job()
    model = load(Path(told["model"]), told["length"]).train()
    compiled = torch.compile(model, dynamic=False) if told["compile"] else model
    rows = read_rows(told["rows"])
    batches = dense_batches(rows, told["length"], told["batch"], told["seed"])
    parts = optimizers(model, told["optimizer"])
    for part in parts:
        for group in part.param_groups:
            group["peak"] = group["lr"]
    turns, step, tokens, first = Turns(told["warmup"]), 0, 0, None
    turns.first = time.perf_counter()
    try:
        while told.get("steps") is None or step < told["steps"]:
            micro = single_documents(rows) if told.get("whole") else [next(batches) for _ in range(told["accumulate"])]
            supervised = sum(int((targets != IGNORED).sum()) for _, targets in micro)
            total = torch.zeros(())
            for ids, targets in micro:
                with torch.autocast("cpu", torch.bfloat16, enabled=told["bf16"]):
                    loss = compiled(ids, targets) / supervised
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for part in parts:
                for group in part.param_groups:
                    group["lr"] = group["peak"] * factor(step, told.get("steps"), told["optimizer"].get("warmdown", 0.5))
                part.step()
                part.zero_grad(set_to_none=True)
            step += 1
            first = float(total) if first is None else first
            tokens += sum(ids.numel() for ids, _ in micro)
            turns.step(tokens)
        turns.end()
    except Stop:
        pass
    reply(peak_mb=peak_mb(), loss=first)
    if told.get("save"):
        save(model, Path(told["model"]), Path(told["save"]))
        reply(saved=told["save"])


if __name__ == "__main__":
    main()
