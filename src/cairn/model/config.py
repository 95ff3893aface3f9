"""What a fresh model looks like, in the words that every family shares, and its cost. Knows transformers' names; no data.

The keys are those of a 7B model too: `family` is any causal `model_type` that transformers knows, and `extra` reaches every
key of that family's own configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from pydantic import Field, model_validator

from cairn.config import Config
from cairn.errors import UserError, did_you_mean


class MupConfig(Config):
    """The maximal update parametrisation (Yang et al. 2022, Tensor Programs V): rates and deviations found at one width hold at all.

    CrystalChat's: base_width 256, base_head_size 1 (scores divided by the head's size itself), input_multiplier 14.6,
    output_multiplier 2.22, with initializer_range 0.073 and AdamW. All widths (hidden, intermediate, heads) are taken to grow together.
    """

    base_width: int = Field(gt=0)
    """The hidden_size at which the recipe's rates and `initializer_range` hold."""
    base_head_size: int | None = Field(default=None, gt=0)
    """Head size at the base width: scores are multiplied with sqrt(base_head_size) / head_size. None: heads grow in number, not in size."""
    input_multiplier: float = Field(default=1.0, gt=0)
    """What embeddings are multiplied with on their way into the first block, at every width."""
    output_multiplier: float = Field(default=1.0, gt=0)
    """What logits are multiplied with at the base width; at another one base_width / hidden_size comes on top."""


class ModelConfig(Config):
    """The shape of a model that starts from random weights."""

    family: str = "llama"
    """A transformers `model_type`, such as llama, qwen3, gemma2, gpt_neox."""
    hidden_size: int = Field(default=192, gt=0)
    """Width of the residual stream."""
    layers: int = Field(default=4, gt=0)
    """Number of transformer blocks."""
    heads: int = Field(default=6, gt=0)
    """Query heads."""
    kv_heads: int | None = Field(default=None, gt=0)
    """Key and value heads; None means as many as `heads`."""
    head_size: int | None = Field(default=None, gt=0)
    """Width of a head; None means hidden_size / heads."""
    intermediate_size: int = Field(default=512, gt=0)
    """Width inside the feed-forward block."""
    context: int = Field(default=1024, gt=0)
    """Longest sequence, in tokens."""
    tied: bool = True
    """Share the input embedding with the output head."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the random weights."""
    embedding_range: float | None = Field(default=None, gt=0)
    """Standard deviation of the input embedding, if another one. If it is small, the blocks' first updates drown a token's identity."""
    mup: MupConfig | None = None
    """Let widths share their learning rates; None: `initializer_range` and rates are used as they are given."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further keys of the family's own transformers configuration."""

    @model_validator(mode="after")
    def _given_agree(self) -> ModelConfig:
        # A budget may still choose what is not given, so that alone is judged here; `check` judges the whole.
        self.check(among=self.model_fields_set)
        return self

    def check(self, among: Set[str] | None = None) -> None:
        """See that the sizes agree.

        Args:
            among: judge these fields alone; None means all.

        Raises:
            ValueError: they do not.
        """

        def judged(*fields: str) -> bool:
            return among is None or among >= set(fields)

        if judged("heads", "kv_heads") and self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if judged("hidden_size", "heads") and self.head_size is None and self.hidden_size % self.heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of heads ({self.heads}), or head_size be given")
        if judged("tied", "embedding_range") and self.embedding_range is not None and self.tied:
            raise ValueError("embedding_range needs tied: false, for a tied embedding is the output head as well")


def transformers_config(config: ModelConfig, *, vocab_size: int, bos_id: int | None, eos_id: int | None, pad_id: int | None) -> Any:
    """The transformers configuration object of `config`.

    Raises:
        UserError: an unknown family, an `extra` key that the family does not have, or sizes that do not agree.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as families

    if config.family not in families:
        raise UserError(f"unknown model family '{config.family}'", where="model.family", remedy=did_you_mean(config.family, families))
    try:
        config.check()
    except ValueError as error:
        raise UserError(str(error), where="model", remedy="correct the sizes") from None
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.head_size or config.hidden_size // config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initializer_range,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
    }
    known = set(_asked(config, lambda: AutoConfig.for_model(config.family)).to_dict())
    if config.head_size is None and "head_dim" not in known:
        del values["head_dim"]  # Falcon works it out itself and refuses to be told
    for key in config.extra:
        if key not in known:
            raise UserError(f"the family '{config.family}' has no key '{key}'", where="model.extra", remedy=did_you_mean(key, known))
    made = _asked(config, lambda: AutoConfig.for_model(config.family, **{**values, **config.extra}))
    _check_rotary(made)
    return made


def _asked(config: ModelConfig, ask: Callable[[], Any]) -> Any:
    """What transformers answers. Its families' own checks raise whatever they like, about the sizes and keys that they were given.

    Raises:
        UserError: it does not take them.
    """
    try:
        return ask()
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0][:300]
        remedy = f"correct the sizes{', or model.extra' if config.extra else ''}, or take another family"
        raise UserError(f"the family '{config.family}' cannot have this shape: {reason}", where="model", remedy=remedy) from error


def _check_rotary(made: Any) -> None:
    """Rotary positions turn pairs of numbers: an odd size would only stop in the first forward, after all rows were read.

    Raises:
        UserError: the part of a head that is turned has an odd size, or none at all.
    """
    # Only what stands in this very object: in some families layers have sizes of their own, and asking for one is an error.
    own = vars(made)
    given, width, heads = own.get("rope_parameters") or {}, own.get("hidden_size"), own.get("num_attention_heads")
    size = own.get("head_dim") or (width // heads if width and heads else None)
    if not isinstance(size, int):
        return
    for rope in [given] if "rope_type" in given else [part for part in given.values() if isinstance(part, dict)]:
        turned = int(size * rope.get("partial_rotary_factor", 1.0))
        if turned % 2 or not turned:
            what = f"a head of size {size} cannot have rotary positions: {turned} numbers of it would be turned, which go in pairs"
            raise UserError(what, where="model.head_size", remedy="give an even head_size, or other hidden_size and heads")


def count_parameters(config: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Parameters in all, and those in matrices that every token is multiplied with (the N of the 6N rule).

    Counted on the meta device: no memory is taken, whatever the size.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            # Any ids: some families' checks refuse to have none.
            transformers_config(config, vocab_size=vocab_size, bos_id=0, eos_id=0, pad_id=0), attn_implementation="eager"
        )
    total = sum(p.numel() for p in model.parameters())
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is inputs.weight
    return total, total if tied else total - inputs.weight.numel()


def training_flops(matrix_parameters: int, tokens: int, *, layers: int, hidden_size: int, mean_length: float) -> float:
    """Floating-point operations of training: 6N a token (Kaplan et al. 2020) plus causal attention, 6·layers·width·length a token."""
    return tokens * (6.0 * matrix_parameters + 6.0 * layers * hidden_size * mean_length)
