"""What a server allows. A plain configuration: knows no HTTP library and no tensors."""

from __future__ import annotations

from pydantic import Field

from cairn.config import Config


class Limits(Config):
    """The bounds on what callers can ask for."""

    max_body_bytes: int = Field(default=4 * 2**20, ge=1)
    """Largest request body."""
    body_seconds: float = Field(default=30.0, gt=0)
    """How long a caller may take to send its body."""
    max_in_flight: int = Field(default=256, ge=1)
    """Requests that are being answered or wait; more are refused with status 429."""
    max_choices: int = Field(default=32, ge=1)
    """Answers that one request may ask for: prompts times `n` (or `best_of`)."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt; the model's context unless given."""
    max_answer_tokens: int = Field(default=16384, ge=1)
    """Longest answer that a request may ask for."""
    default_answer_tokens: int = Field(default=1024, ge=1)
    """Longest answer of a chat request that names no length. The engine keeps a place for the whole of it from the start."""
    request_seconds: float = Field(default=600.0, gt=0)
    """How long a request may take, its wait included."""
    compile_seconds: float = Field(default=30.0, gt=0)
    """How long a request's prompt and constraint may take to be made ready."""
    cache_entries: int = Field(default=10_000, ge=1)
    """Answers that are kept, where a cache was asked for; those that were used last."""
    cache_bytes: int = Field(default=256 * 2**20, ge=1)
    """About what they may take together."""
    cache_likeness: float = Field(default=0.8, gt=0, le=1)
    """How alike two texts must be, by the cosine of their vectors, for the one's answer to be tried for the other."""
    cache_tries: int = Field(default=2, ge=1, le=16)
    """How many answers to like texts are tried; each costs a pass over prompt and answer."""
    drain_seconds: float = Field(default=60.0, ge=0)
    """How long running answers may go on once the server was asked to end."""
