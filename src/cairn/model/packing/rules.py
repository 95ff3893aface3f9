"""What a layer asks of its attention besides causality, and what a backend must be able to do. Knows numbers only; no kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rules:
    """How scores become probabilities: softmax of `softcap · tanh(scale · q·k / softcap)`, over the keys in the window and the sink.

    Attributes:
        scale: what scores are multiplied with.
        window: how many keys back a query sees, itself included; None for all.
        softcap: the largest size of a score (Gemma 2, Gemma Team 2024); None for no cap.
        sinks_H: for each head a learnt score that takes its share and gives no value (gpt-oss, OpenAI 2025); None for none.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether causality is all that is asked."""
        return self.window is None and self.softcap is None and self.sinks_H is None


@dataclass(frozen=True)
class Case:
    """All that decides which backend can serve a layer; hashable, so that the choice is made once."""

    device: str
    dtype: torch.dtype
    heads: int
    groups: int
    key_size: int
    value_size: int
    windowed: bool
    softcap: float | None
    sinks: bool

    @staticmethod
    def of(q_THD: Tensor, k_TGD: Tensor, v_TGE: Tensor, rules: Rules) -> Case:
        sizes = q_THD.shape[1], k_TGD.shape[1], q_THD.shape[2], v_TGE.shape[2]
        return Case(q_THD.device.type, q_THD.dtype, *sizes, rules.window is not None, rules.softcap, rules.sinks_H is not None)
