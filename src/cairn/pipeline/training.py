"""What a recipe says of a training: the keys of the stage `train`, and the format that they name. Knows no model and reads no row."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cairn.chat.attributes import Attributes, with_attributes
from cairn.chat.format import Format, check_format, check_values, load_format
from cairn.config import Invalid, build, checked
from cairn.data.shares import Shares
from cairn.data.sources import Source
from cairn.errors import UserError, did_you_mean
from cairn.ledger.refs import InputPath, StageRef
from cairn.model.adapter_config import AdapterConfig
from cairn.model.config import ModelConfig
from cairn.train.budget import Budget, resolve
from cairn.train.config import Training


class TrainConfig(Training):
    """Training, and where model, tokenizer and rows come from."""

    asks: ClassVar[bool] = False
    """Whether what is learnt are answers that the model gives during the training."""
    model: ModelConfig | None = None
    """The shape of a fresh model. Give this, `init` or `checkpoint`."""
    init: StageRef | None = None
    """A train stage whose model is trained further; its tokenizer is used unless `tokenizer` is given."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder to start from."""
    adapter: AdapterConfig | None = None
    """Freeze the model and train an adapter on it, which takes higher rates than its weights do: 1e-4 to 1e-3 with AdamW."""
    tokenizer: StageRef | None = None
    """A tokenizer stage."""
    budget: Budget | None = None
    """A compute budget that chooses a fresh model's shape, tokens, batch and rates (train/budget.py); what is given beside it stays."""
    format: Annotated[str, checked(check_format)] | None = None
    """Chat format to render dialogues with; None means the one that the tokenizer carries."""
    attributes: Attributes | None = None
    """Attributes of one's own in place of the format's: {name: {default, minimum, maximum}}; needs `format`."""
    data: list[Source]
    """What is learnt, and how often a row of each source is drawn."""
    labelled: list[str] = Field(default_factory=list)
    """Sources whose every answer must have all attributes. An answer of another source is learnt under the default of what it lacks."""
    shares: Shares | None = None
    """Shares of the drawn tokens (plain text, languages) that the sources' weights are adjusted to reach; None: weights as they are."""
    reference: StageRef | None = None
    """A reference stage over the same rows, for the objective preference. None: the model that is trained from is its own reference, and
    is measured at the start; that is written to `reference.safetensors`."""

    @model_validator(mode="after")
    def _one_start(self) -> TrainConfig:
        if self.budget is not None and (self.init is not None or self.checkpoint is not None):
            raise ValueError("a budget chooses the shape of a fresh model: give tokens where init or checkpoint is given")
        if self.budget is None and sum(x is not None for x in (self.model, self.init, self.checkpoint)) != 1:
            raise ValueError("give exactly one of model, init and checkpoint")
        if self.objective == "attributes":
            raise ValueError("attributes are learnt by a stage of kind label")
        if self.attributes is not None:
            if self.format is None:
                raise ValueError("attributes need a format to stand in: give format: karakuri")
            with_attributes(self.format, self.attributes.root)
        self._sources_attributes()
        if self.reference is not None and not self.needs_reference:
            raise ValueError("only the objective preference has a reference, and orpo and simpo have none")
        if self.objective == "reward" and (self.adapter is not None or (self.init is None and self.checkpoint is None)):
            raise ValueError("a reward model is trained whole, from a model: give init or checkpoint, and no adapter")
        if self.objective == "grpo" and not self.asks:
            raise ValueError("the objective grpo learns from the model's own answers: make it a stage of kind grpo")
        if self.model is not None and self.adapter is not None:
            raise ValueError("an adapter needs a trained model: give init or checkpoint")
        if (self.model is not None or self.budget is not None) and self.tokenizer is None:
            raise ValueError("a fresh model needs a tokenizer")
        if self.model is not None and self.budget is None:
            self.model.check()
        # A context that is left out beside a budget follows the sequences.
        settled = self.model is not None and (self.budget is None or "context" in self.model.model_fields_set)
        if self.model is not None and settled and self.sequence_length > self.model.context:
            raise ValueError(f"sequence_length ({self.sequence_length}) is longer than the model's context ({self.model.context})")
        names = [s.name for s in self.data]
        for name in self.labelled:
            if name not in names:
                raise ValueError(f"labelled names no source of data: {name}. {did_you_mean(name, names)}")
        weighed = [source.name for source in self.data if source.loss_weight != 1.0]
        if weighed and self.objective not in ("supervised", "language_model"):
            raise ValueError(f"{weighed[0]} has a loss_weight, which only the objectives supervised and language_model know")
        if self.labelled and (self.format is None or not load_format(self.format).attributes):
            raise ValueError("labelled needs a format with attributes: give format: karakuri")
        if len(set(names)) != len(names):
            raise ValueError("two sources of one name")
        if not names:
            raise ValueError("a mix needs at least one source")
        return self

    def _sources_attributes(self) -> None:
        """What sources say of their rows must be of the schema, where the recipe names it: at a row it would be taken for the row's own."""
        chosen = format_of(self)
        for number, source in enumerate(self.data if chosen is not None else ()):
            try:
                check_values((chosen.attributes if chosen is not None else None) or {}, source.attributes, f"data.{number}.attributes")
            except UserError as error:
                raise Invalid(f"the source '{source.name}': {error.what}", error.remedy) from None

    def _length_is_chosen(self) -> bool:
        return self.budget is not None and (self.steps is None or self.tokens is None)

    def resolved(self, vocab_size: int | None) -> TrainConfig:
        """With every value that the budget decides; a configuration without one, or with all its values, as it is.

        Raises:
            UserError: the vocabulary's size is not known, or the budget fits no model.
        """
        if self.budget is None:
            return self
        vocab = self.budget.vocab_size or vocab_size
        if vocab is None:
            what = "a budget needs the vocabulary's size, which decides what a model costs"
            raise UserError(what, where="budget.vocab_size", remedy="add vocab_size to the budget")
        keys = ("steps", "tokens", "batch_sequences", "accumulate")
        given: dict[str, Any] = {key: getattr(self, key) for key in keys if key in self.model_fields_set}
        for key in ("model", "optimizer"):
            part = getattr(self, key)
            given[key] = part.model_dump(exclude_unset=True) if part is not None and key in self.model_fields_set else {}
        try:
            chosen = resolve(self.budget, given, vocab, self.sequence_length)
        except ValueError as error:
            raise UserError(str(error), where="budget.flops", remedy="give another budget, or the sizes one by one") from None
        # What is no part of the key is left out of a dump; it was asked for all the same.
        resuming = {**self.checkpoints.model_dump(), "resume_seconds": self.checkpoints.resume_seconds}
        unkeyed = {"watch": self.watch.model_dump(), "memory": self.memory.model_dump(), "checkpoints": resuming}
        whole = {**self.model_dump(), **unkeyed, **chosen, "budget": {**self.budget.model_dump(), "vocab_size": vocab}}
        return build(type(self), whole, where="budget")


def check_vocabulary(config: TrainConfig, ids: int, have: int, *, tied: bool, where: str) -> None:
    """See that the model which is trained further has an embedding for every id of the tokenizer, or trains those that it lacks.

    Raises:
        UserError: it has not.
    """
    missing = {"embeddings", "head"} - set(config.adapter.train if config.adapter is not None else ())
    if have >= ids or len(missing) <= (1 if tied else 0):
        return
    remedy = "give the tokenizer that belongs to this model"
    if config.adapter is not None:
        remedy += f", or train the new ids: adapter.train: [{'embeddings' if tied else 'embeddings, head'}]"
    raise UserError(f"the tokenizer has {ids} ids, the model's vocabulary only {have}", where=where, remedy=remedy)


def format_of(config: TrainConfig) -> Format | None:
    """The format that the recipe names, with the recipe's attributes; None where it names none."""
    if config.format is None:
        return None
    return with_attributes(config.format, config.attributes.root) if config.attributes is not None else load_format(config.format)
