"""The stage `tokenizer`: rows in, an ordinary Hugging Face tokenizer folder out. Knows how rows become text to train on.

A dialogue counts as its rendered text, cut at special tokens, so that the format's own words are learnt as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, model_validator

from cairn.chat.attributes import Attributes, with_attributes
from cairn.chat.format import Format, check_format, load_format
from cairn.config import checked
from cairn.data.rows import messages_of
from cairn.data.sources import Source
from cairn.pipeline.sizes import source_bytes
from cairn.pipeline.stage import Context, Estimate, PlannedInputs, Stage, register
from cairn.tokenizer.train import TokenizerConfig


class TokenizerStageConfig(TokenizerConfig):
    """How a tokenizer is trained, and on what."""

    format: Annotated[str, checked(check_format)] = "k2"
    """The chat format whose special tokens, template and borders the tokenizer carries."""
    attributes: Attributes | None = None
    """Attributes in place of the format's own: {name: {default, minimum, maximum}}. Models that start from this tokenizer have them too."""
    data: list[Source] = Field(min_length=1)
    """The rows; weights do not count here, limits do."""

    @model_validator(mode="after")
    def _attributes_have_a_place(self) -> TokenizerStageConfig:
        self.chat_format()
        return self

    def chat_format(self) -> Format:
        """The format, with these attributes."""
        return with_attributes(self.format, self.attributes.root) if self.attributes is not None else load_format(self.format)


@register
class TokenizerStage(Stage):
    """Train a tokenizer."""

    kind = "tokenizer"
    config = TokenizerStageConfig

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.tokenizer.train import special_tokens, train_tokenizer

        config: TokenizerStageConfig = context.config
        chat_format = config.chat_format()
        cut = re.compile("|".join(re.escape(token) for token in special_tokens(chat_format)))
        plain = TokenizerConfig(**{name: getattr(config, name) for name in TokenizerConfig.model_fields})
        return train_tokenizer(_texts(context, chat_format, cut), plain, chat_format, context.draft)

    def outputs(self, config: TokenizerStageConfig) -> set[str]:
        return {"tokenizer.json", "tokenizer_config.json", "chat_format.yaml"}

    def estimate(self, config: Any, inputs: PlannedInputs) -> Estimate:
        """About 2.3 MB of rows a second, measured on one core of a laptop."""
        size = source_bytes(config, inputs)
        return Estimate(disk_bytes=60 * config.vocab_size, seconds=None if size is None else size / 2.3e6)

    def summarize(self, artifact: Any) -> str:
        metrics = artifact.record.metrics
        return f"{metrics['vocab_size']} tokens, {metrics['bytes_per_token']} bytes a token"


def _texts(context: Context, chat_format: Any, cut: re.Pattern[str]) -> Iterator[str]:
    from cairn.chat.render import render_text

    context.progress.start(None, "rows")
    done = 0
    for source in context.config.data:
        for row in source.read(context.place(source)):
            done += 1
            context.progress.update(done)
            if "text" in row:
                yield row["text"]
            else:
                text = render_text(chat_format, messages_of(row), tools=row.get("tools"), attributes=row.get("attributes"))
                yield from filter(None, cut.split(text))
