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

SPREAD = {KERNELS: (0.85, 0.0), "cpu": (1.95, 0.6), "cuda": (1.1, 0.0)}
"""Memory taken for each byte of activations, and for each byte that a block keeps no longer since it computes it again. Both are holes in
glibc's heap on a CPU: what is freed between two kept tensors is too small for the next large one. With our kernels little is freed between,
and the first blocks' activations are gone before the last gradients are there. Fitted to the measured peaks of `cairn bench plan`; for a
GPU's allocator a guess."""
ADAPTED_SPREAD = {"lora": (1.8, 0.7), "dora": (1.2, 0.7), "ia3": (1.1, 0.2), "float32": (2.1, 1.0)}
"""The same of an adapter on a CPU, by its kind in bf16: peft's sums lie between what is kept. Our own kernels are taken for granted there,
as for whole models: without a C++ compiler or AVX-512, or in a family that is not packed, it is more."""
SLOWER = {"lora": 1.25, "lora, attention only": 1.0, "dora": 1.5, "ia3": 1.1}
"""Time of an adapter's training for each unit of what its operations would take in a training of all weights, measured there."""

SAVED = {
    #                    residual, query, key and value each, feed-forward, probability
    ("fused", "bfloat16"): (8.0, 6.0, 4.0, 6.0, 2.0),
    ("fused", "float32"): (16.0, 12.0, 8.0, 12.0, 4.0),
    ("plain", "bfloat16"): (16.0, 6.0, 4.0, 8.0, 2.0),
    ("plain", "float32"): (24.0, 12.0, 8.0, 16.0, 4.0),
}
"""Bytes that one block keeps for a token's backward, for each unit of width; the last, for each head and key of a short document."""
ADAPTED = {
    "lora": (8.0, 6.0, 4.0, 8.0, 2.0), "dora": (16.0, 6.0, 12.0, 17.0, 2.0), "ia3": (8.0, 6.0, 8.0, 10.0, 2.0),
    "lora, attention only": (6.0, 4.0, 4.0, 4.0, 2.0),
}  # fmt: skip
"""The same in bf16 beside a frozen base, all of whose matrices are adapted unless it says otherwise; in fp32 it is twice that."""


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
class Beside:
    """The weights that are trained beside a frozen base, as far as memory depends on them."""

    kind: str
    """lora, dora or ia3."""
    trained: int
    """Weights that are trained."""
    low_rank: float = 0.0
    """Widths of a block's low-rank products, added up."""
    feed_forward: bool = True
    """Whether matrices of the feed-forward block are adapted."""
    head: bool = False
    """Whether the output head, or an embedding that is tied to it, is trained."""
    four_bits: bool = False
    """Whether the base's matrices are held in 4 bits."""


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
    adapter: Beside | None = None
    """None: all weights are trained."""
    merges: bool = False
    """An adapter is merged into its base at the end, while the training's weights are still there."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, on the device that computes."""

    weights: float
    """fp32 masters, and the bf16 copy that computes; a frozen base."""
    gradients: float
    optimizer: float
    activations: float
    """Of the blocks, kept for the backward."""
    logits: float
    """The head's chunk of logits, its gradient and the gradient of its weight."""
    exchange: float
    """What ranks exchange through: shared slabs, or the layers that FSDP has together."""
    runtime: float
    reading: float = 0.0
    """The whole process while the base of an adapter is read, before there is anything else. Here and in merging the pages of a file are
    not counted, which the system takes back where memory is short; a measured peak has them (4N in fp32)."""
    merging: float = 0.0
    """The whole process while an adapter is merged at the end."""

    @property
    def step(self) -> float:
        """At the end of a forward, or in the optimiser, whichever is more."""
        kept = self.weights + self.optimizer + self.exchange + self.runtime
        return kept + self.gradients + self.activations + self.logits

    @property
    def peak(self) -> float:
        """Of a whole training."""
        return max(self.step, self.reading, self.merging)


def memory(model: Dimensions, run: Run) -> Memory:
    """The memory of a rank at its peak.

    With N weights: fp32 computes with the masters (4N); bf16 adds its copy (2N). Gradients are fp32 (4N), in bf16 with those of the
    copy beside them (2N), which are all there is where a step is one pass and AdamW takes them as they are; pure bf16 has 2N of each.
    AdamW keeps 8 bytes a weight, Muon 4 for the matrices of the blocks.
    """
    if run.adapter is not None:
        return _adapter_memory(model, run, run.adapter)
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
        runtime=_runtime(run),
    )


def _adapter_memory(model: Dimensions, run: Run, adapter: Beside) -> Memory:
    """The memory of a rank that trains an adapter; ranks are replicas.

    The base lies there in the type that computes, or in 4 bits and a scale in 16 for each 64 weights, and a matrix written out at a time.
    Merging writes it in fp32.
    """
    low, pure = run.precision != "float32", run.precision == "bfloat16-pure"
    held, t, runtime = 2.0 if low else 4.0, adapter.trained, _runtime(run)
    each = 2.0 if pure else 6.0 if low else 4.0
    base = reading = held * model.total
    if adapter.four_bits:
        matrices = model.layers * (model.block - 2 * model.hidden)
        rounded = (0.5 + 2 / 64) * matrices
        base = rounded + held * (model.total - matrices) + (2.0 + held) * model.hidden * model.intermediate
        reading = 2.0 * model.total + rounded
    weights, optimizer = base + each * t, t * ((2.1 if run.coded else 8.0) + (4.0 if run.average else 0.0))
    # A GPU's memory sees neither: a base is read, and merged, in the host's.
    here = run.device == "cpu"
    return Memory(
        weights=weights,
        gradients=each * t,
        optimizer=optimizer,
        activations=_activations(model, run),
        logits=_logits(model, run),
        exchange=0.0 if run.ranks == 1 else (8.0 if here else 4.0) * t,
        runtime=runtime,
        reading=reading + runtime if here else 0.0,
        merging=weights + optimizer + runtime + 4.0 * model.total if here and run.merges else 0.0,
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


def _runtime(run: Run) -> float:
    return RUNTIME[_place(run) if run.adapter is None else run.device] + (CUDA_LIBRARIES if run.device == "cpu" and cuda_build() else 0)


def _form(adapter: Beside) -> str:
    return "lora, attention only" if adapter.kind == "lora" and not adapter.feed_forward else adapter.kind


def _saved(run: Run) -> tuple[float, ...]:
    """The row of SAVED or ADAPTED that fits."""
    if run.adapter is None:
        return SAVED["fused" if run.fused else "plain", _compute(run)]
    row = ADAPTED[_form(run.adapter)]
    return row if _compute(run) == "bfloat16" else tuple(2 * value for value in row)


def _spread(run: Run) -> tuple[float, float]:
    if run.adapter is not None and run.device == "cpu":
        return ADAPTED_SPREAD[run.adapter.kind if _compute(run) == "bfloat16" else "float32"]
    return SPREAD[_place(run)]


def _activations(model: Dimensions, run: Run) -> float:
    residual, query, key, feed, probability = _saved(run)
    size = 4 if _compute(run) == "float32" else 2
    query_width, key_width = model.heads * model.head_size, model.kv_heads * model.head_size
    token = residual * model.hidden + query * query_width + key * key_width + feed * model.intermediate
    kernels = run.device == "cpu" and _compute(run) == "bfloat16" and (run.fused or run.adapter is not None)
    if run.document <= SHORT and run.device == "cpu" and not kernels:
        token += probability * model.heads * run.document
    if run.adapter is not None:
        token += size * run.adapter.low_rank * (2 if run.adapter.kind == "dora" else 1)
    inputs = size * model.hidden * run.recomputed
    # A block that is computed again keeps its input. The first blocks are: when their turn comes in the backward, all others are freed.
    whole = max(1, model.layers - run.recomputed)
    ends = 3 * 4 * model.hidden
    # DoRA keeps matrices too: it divides each by its rows' lengths.
    matrices = 1.5 * size * model.block * whole if run.adapter is not None and run.adapter.kind == "dora" else 0.0
    kept, again = _spread(run)
    return kept * (run.tokens * (token * whole + inputs + ends) + matrices) + again * run.tokens * token * (model.layers - whole)


def _logits(model: Dimensions, run: Run) -> float:
    chunk = min(LOGITS, run.tokens * model.vocabulary)
    trained = run.adapter is None or run.adapter.head
    return chunk * (8.0 if _compute(run) == "bfloat16" else 4.0) + (4.0 * model.vocabulary * model.hidden if trained else 0.0)


def recomputed_blocks(model: Dimensions, run: Run, budget: float) -> int:
    """The fewest blocks to compute again so that the predicted peak of a step stays within `budget` bytes.

    Raises:
        UserError: all of them are not enough.
    """
    for count in range(model.layers + 1):
        if memory(model, replace(run, recomputed=count)).step <= budget:
            return count
    least = memory(model, replace(run, recomputed=model.layers)).step
    # The frozen base of an adapter lies whole on every rank.
    other = "more ranks with sharding: full"
    if run.adapter is not None:
        other = "a lower rank" if run.adapter.four_bits else "adapter.base: nf4"
    raise UserError(
        f"the training needs {least / 1e9:.1f} GB at least, with all blocks computed again; the budget is {budget / 1e9:.1f} GB",
        where="memory.budget_gb",
        remedy=f"take fewer tokens a pass (batch_sequences; accumulate makes up for it), {other}, or a larger budget",
    )


def flops(model: Dimensions, tokens: float, *, document: float, recomputed: int = 0) -> float:
    """Floating-point operations of training (`training_flops`), and of the forwards that are done again."""
    width = model.heads * model.head_size
    once = training_flops(model.multiplied, 1, layers=model.layers, hidden_size=width, mean_length=document)
    return tokens * (once + recomputed * 2.0 * (model.block + width * document))


def muon_flops(model: Dimensions) -> float:
    """Floating-point operations of one step of Muon, whatever its tokens: five Newton-Schulz rounds on each matrix of the blocks."""
    query, key = model.heads * model.head_size, model.kv_heads * model.head_size
    sides = [(model.hidden, other) for other in (query, query, key, key, *(model.intermediate,) * 3)]
    return 5.0 * model.layers * sum(4.0 * min(side) ** 2 * max(side) + 2.0 * min(side) ** 3 for side in sides)


def seconds(operations: float, rate: float, *, hidden: int, compute: str = "bfloat16", adapter: Beside | None = None) -> float:
    """Time of so many floating-point operations of training on a machine whose bare matrix products reach `rate` GFLOP/s in that type.

    Narrow models spend more of their time between the products. Measured shares (`cairn bench plan`, and `cairn bench train` at 576): in
    bf16 0.65 at a width of 256, 0.75 at 384 and 0.82 at 576; in fp32, where products are slow, 0.65 to 0.70.
    """
    share = 0.68 if compute == "float32" else min(0.82, 0.65 * (hidden / 256) ** 0.36)
    slower = SLOWER[_form(adapter)] if adapter is not None else 1.0
    # What peft adds weighs half as much where products take longer.
    return operations / (share * 1e9 * rate) * (slower if compute == "bfloat16" else (1 + slower) / 2)


def muon_seconds(model: Dimensions, rate: float) -> float:
    """Time of one step of Muon where bf16 products reach `rate` GFLOP/s, of which its own reach four fifths."""
    return muon_flops(model) / (0.8e9 * rate)


def traffic(model: Dimensions, run: Run) -> float:
    """Bytes that each rank sends in a step: an all-reduce of fp32 gradients, or for every pass two gathers and one scatter."""
    if run.ranks == 1:
        return 0.0
    part = (run.ranks - 1) / run.ranks
    if run.sharding == "replicate":
        return 2.0 * part * 4.0 * model.total
    size = 4.0 if _compute(run) == "float32" else 2.0
    return part * run.passes * model.total * (2.0 * size + 4.0)
