"""What a training takes: memory and floating-point operations, out of a model's dimensions. Knows arithmetic only; imports no torch.

The figures of saved activations were counted tensor by tensor (`cairn bench plan --set saved=true` counts them again); the rest
follows from what the loop keeps. `cairn bench plan` compares predictions with measured peaks. Dense decoders with gated feed-forward blocks
are meant: for experts, and for blocks without gates, it is a first guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cairn.errors import UserError
from cairn.model.config import ModelConfig, training_flops

SHORT = 512
"""Longest document whose attention probabilities are kept for the backward, in tokens (`model/packing`)."""
LOGITS = 1 << 25
"""Logits whose gradient the head holds at once (`model/head.py`): 64 MB in bf16, whatever the vocabulary."""
KERNELS = "cpu, bfloat16"
"""Where our own kernels compute what lies between the products (`model/native`): they keep less, and free little between."""
RUNTIME = {KERNELS: 250e6, "cpu": 400e6, "cuda": 1.5e9}
"""Bytes of a process, on the computing device, before there is a model: interpreter, torch, transformers, code; a CUDA context."""
CUDA_LIBRARIES = 320e6
"""Bytes more on a CPU where torch is built for CUDA: its libraries are loaded all the same (670 against 349 MB, torch 2.11 and 2.13)."""

SPREAD = {KERNELS: 0.85, "cpu": 1.95, "cuda": 1.1}
"""Memory taken for each byte of activations. In fp32 what is freed between two kept tensors is too small for the next large one; with our
kernels the first blocks' activations are gone before the last gradients are there. Fitted to the measured peaks of `cairn bench plan` on
the CPU, where glibc's heap is; for a GPU's allocator a guess."""

SAVED = {
    #                    residual, query, key and value each, feed-forward, probability
    ("fused", "bfloat16"): (8.0, 6.0, 4.0, 6.0, 2.0),
    ("fused", "float32"): (16.0, 12.0, 8.0, 12.0, 4.0),
    ("plain", "bfloat16"): (16.0, 6.0, 4.0, 8.0, 2.0),
    ("plain", "float32"): (24.0, 12.0, 8.0, 16.0, 4.0),
}
"""Bytes that one block keeps for a token's backward, for each unit of width; the last, for each head and key of a short document."""


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The sizes of a decoder that its cost depends on."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    parameters: int = 0
    """All weights; 0 to count them by the rule of a Llama."""

    @staticmethod
    def of(shape: ModelConfig, *, vocabulary: int, parameters: int = 0) -> Dimensions:
        """Of a fresh model's shape."""
        return Dimensions(
            layers=shape.layers, hidden=shape.hidden_size, heads=shape.heads, kv_heads=shape.kv_heads or shape.heads,
            head_size=shape.head_size or shape.hidden_size // shape.heads, intermediate=shape.intermediate_size, vocabulary=vocabulary,
            tied=shape.tied, parameters=parameters,
        )  # fmt: skip

    @property
    def block(self) -> int:
        """Weights of a block."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def embedding(self) -> int:
        """Weights of the embedding, and of the head if it is another."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def total(self) -> int:
        """All weights."""
        return self.parameters or self.layers * self.block + self.embedding + self.hidden

    @property
    def multiplied(self) -> int:
        """Weights that every token is multiplied with: all but an untied input embedding."""
        return self.total if self.tied else self.total - self.vocabulary * self.hidden


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the model is trained, as far as memory depends on it."""

    tokens: int
    """In one pass (a micro-batch)."""
    document: float
    """Mean length of a document, in tokens."""
    passes: int = 1
    """Passes of a step on each rank."""
    precision: str = "float32"
    """float32, bfloat16 (with fp32 masters) or bfloat16-pure."""
    optimizer: str = "muon"
    coded: bool = False
    """Optimiser states in 8 bits."""
    average: bool = False
    """An average of the weights is kept."""
    ranks: int = 1
    sharding: str = "replicate"
    """replicate or full."""
    recomputed: int = 0
    """Blocks whose activations are computed again in the backward."""
    fused: bool = True
    """Whether the blocks train in the forms of `model/fused.py`, as those of Llama's and Qwen's kind do."""
    device: str = "cpu"


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, on the device that computes."""

    weights: float
    """fp32 masters, and the bf16 copy that computes."""
    gradients: float
    optimizer: float
    activations: float
    """Of the blocks, kept for the backward."""
    logits: float
    """The head's chunk of logits, its gradient and the gradient of its weight."""
    exchange: float
    """What ranks exchange through: shared slabs, or the layers that FSDP has together."""
    runtime: float

    @property
    def peak(self) -> float:
        """At the end of a forward, or in the optimiser, whichever is more."""
        kept = self.weights + self.optimizer + self.exchange + self.runtime
        return kept + self.gradients + self.activations + self.logits


def memory(model: Dimensions, run: Run) -> Memory:
    """The memory of a rank at its peak.

    With N weights: fp32 computes with the masters (4N); bf16 adds its copy (2N). Gradients are fp32 (4N), in bf16 with those of the
    copy beside them (2N), which are all there is where a step is one pass and AdamW takes them as they are; pure bf16 has 2N of each.
    AdamW keeps 8 bytes a weight, Muon 4 for the matrices of the blocks.
    """
    low, pure = run.precision != "float32", run.precision == "bfloat16-pure"
    share = run.ranks if run.sharding == "full" else 1
    sharded = run.sharding == "full" and run.ranks > 1
    n, matrices = model.total, model.layers * (model.block - 2 * model.hidden)
    block_part = model.total - model.embedding
    moments = 2.0 * n if run.optimizer == "adamw" else 2.0 * (n - matrices) + matrices
    state = moments * (1.05 if run.coded else 4.0) + (4.0 * n if run.average else 0.0)
    each = 2.0 if pure else 4.0 if not low or sharded else 6.0
    single = low and run.passes == run.ranks == 1 and run.optimizer == "adamw" and _place(run) == KERNELS
    if sharded:
        # Two blocks (one computes, the next arrives) and the root, in the computing type, with the gradients of both.
        size = 2 if low else 4
        exchange = 2.0 * size * (2 * block_part / model.layers + model.embedding)
    else:
        # Slabs in shared memory: this rank's gradients and the sums.
        exchange = 8.0 * n if run.ranks > 1 and run.device == "cpu" else 4.0 * n if run.ranks > 1 else 0.0
    return Memory(
        weights=each * n / share,
        gradients=(2.0 if single else each) * n / share,
        optimizer=state / share,
        activations=_activations(model, run),
        logits=_logits(model, run),
        exchange=exchange,
        runtime=RUNTIME[_place(run)] + (CUDA_LIBRARIES if run.device == "cpu" and cuda_build() else 0),
    )


@cache
def cuda_build() -> bool:
    """Whether the installed torch brings CUDA's libraries; it is not imported for that."""
    spec = find_spec("torch")
    return spec is not None and spec.origin is not None and any(Path(spec.origin).parent.glob("lib/libtorch_cuda.*"))


def _compute(run: Run) -> str:
    """The type of forward and backward."""
    return "float32" if run.precision == "float32" else "bfloat16"


def _place(run: Run) -> str:
    return KERNELS if run.device == "cpu" and run.fused and _compute(run) == "bfloat16" else run.device


def _activations(model: Dimensions, run: Run) -> float:
    residual, query, key, feed, probability = SAVED["fused" if run.fused else "plain", _compute(run)]
    query_width, key_width = model.heads * model.head_size, model.kv_heads * model.head_size
    token = residual * model.hidden + query * query_width + key * key_width + feed * model.intermediate
    if run.document <= SHORT and _place(run) == "cpu":
        token += probability * model.heads * run.document
    size = 4 if _compute(run) == "float32" else 2
    inputs = size * model.hidden * run.recomputed
    # A block that is computed again keeps its input. The first blocks are: when their turn comes in the backward, all others are freed.
    whole = max(1, model.layers - run.recomputed)
    ends = 3 * 4 * model.hidden
    return SPREAD[_place(run)] * run.tokens * (token * whole + inputs + ends)


def _logits(model: Dimensions, run: Run) -> float:
    chunk = min(LOGITS, run.tokens * model.vocabulary)
    return chunk * (8.0 if _compute(run) == "bfloat16" else 4.0) + 4.0 * model.vocabulary * model.hidden


def recomputed_blocks(model: Dimensions, run: Run, budget: float) -> int:
    """The fewest blocks to compute again so that the predicted peak stays within `budget` bytes.

    Raises:
        UserError: all of them are not enough.
    """
    for count in range(model.layers + 1):
        if memory(model, replace(run, recomputed=count)).peak <= budget:
            return count
    least = memory(model, replace(run, recomputed=model.layers)).peak
    raise UserError(
        f"the training needs {least / 1e9:.1f} GB at least, with all blocks computed again; the budget is {budget / 1e9:.1f} GB",
        where="memory.budget_gb",
        remedy="take fewer tokens a pass (batch_sequences; accumulate makes up for it), more ranks with sharding: full, or a larger budget",
    )


def flops(model: Dimensions, tokens: float, *, document: float, recomputed: int = 0) -> float:
    """Floating-point operations of training (`training_flops`), and of the forwards that are done again."""
    width = model.heads * model.head_size
    once = training_flops(model.multiplied, 1, layers=model.layers, hidden_size=width, mean_length=document)
    return tokens * (once + recomputed * 2.0 * (model.block + width * document))


def seconds(operations: float, rate: float, *, hidden: int, compute: str = "bfloat16") -> float:
    """Time of so many floating-point operations of training on a machine whose bare matrix products reach `rate` GFLOP/s in that type.

    Narrow models spend more of their time between the products. Measured shares (`cairn bench plan`): in bf16 0.51 to 0.58 at a width of
    256 and 0.61 at 384, in fp32, where products are slow, 0.65 to 0.70 at both.
    """
    share = 0.68 if compute == "float32" else min(0.8, 0.57 * (hidden / 256) ** 0.25)
    return operations / (share * 1e9 * rate)


def traffic(model: Dimensions, run: Run) -> float:
    """Bytes that each rank sends in a step: an all-reduce of fp32 gradients, or for every pass two gathers and one scatter."""
    if run.ranks == 1:
        return 0.0
    part = (run.ranks - 1) / run.ranks
    if run.sharding == "replicate":
        return 2.0 * part * 4.0 * model.total
    size = 4.0 if _compute(run) == "float32" else 2.0
    return part * run.passes * model.total * (2.0 * size + 4.0)
