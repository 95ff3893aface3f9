"""Attention over documents packed into one row, none of which sees another, on the fastest backend that the machine has.

`Layout` says where documents lie; `enable` makes a transformers model take one; `try_packing` does so only if the model's own
attention gives the same. Backends: `varlen` (FlashAttention), `flex` (flex attention), `buckets` (plain torch; every device).
"""

from cairn.model.packing.backends import BACKENDS, packed_attention
from cairn.model.packing.check import Verdict, answers_agree, packs_cleanly, probe, try_packing
from cairn.model.packing.interface import NAME, enable
from cairn.model.packing.layout import Layout

__all__ = ["BACKENDS", "NAME", "Layout", "Verdict", "answers_agree", "enable", "packed_attention", "packs_cleanly", "probe", "try_packing"]
