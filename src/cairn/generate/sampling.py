"""How a request wants its tokens chosen. A plain configuration: knows nothing of tensors, so that plans load it fast.

The arithmetic stands in `cairn.generate.draw`.
"""

from __future__ import annotations

from pydantic import Field

from cairn.config import Config


class Sampling(Config):
    """The choice of the next token, in this order: penalties, bias, temperature, top-k, top-p, min-p, draw."""

    max_new_tokens: int = Field(default=256, ge=1)
    """At most so many tokens are generated; fewer where the model's context ends earlier."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Divides the logits. 0 takes the likeliest token (the lowest id among equals) and ignores top-k, top-p, min-p and seed."""
    top_k: int = Field(default=0, ge=0)
    """Keep so many of the likeliest tokens; 0 keeps all."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keep the likeliest tokens until their probabilities reach this sum, the one that crosses it included; 1 keeps all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Keep tokens of at least this share of the likeliest token's probability; 0 keeps all."""
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    """Logits of tokens that the prompt or the answer holds are divided by it where positive and multiplied where negative; 1 is off."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the answer holds; 0 is off."""
    frequency_penalty: float = 0.0
    """Taken off the logits of tokens that the answer holds, once for each time; 0 is off."""
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """Id: what is added to its logit."""
    seed: int = 0
    """With the request's index and the step it determines every draw."""

    @property
    def greedy(self) -> bool:
        """Whether no draw is needed."""
        return self.temperature == 0.0

    @property
    def adjusts(self) -> bool:
        """Whether logits change before the temperature divides them."""
        return self.repetition_penalty != 1.0 or bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)
