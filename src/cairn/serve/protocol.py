"""The bodies that callers send, as OpenAI names their fields, with ours beside them. Shapes and ranges only; knows no model.

A field that is unknown, or known and not served, is refused: an answer that silently ignores half of the question is wrong.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cairn.errors import did_you_mean
from cairn.serve.errors import ApiError, bad

MAX_STOPS = 16
"""Stop strings that one request may name."""

_Text = Annotated[str, Field(max_length=1000)]
_Id = Annotated[int, Field(ge=0, le=2**31)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """How a stream is told."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Body):
    """A schema that the answer must obey."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """The kind of text that the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class FunctionName(_Body):
    """A function by name."""

    name: str


class NamedTool(_Body):
    """The one tool to be called."""

    type: Literal["function"]
    function: FunctionName


class _Asked(_Body):
    """What both kinds of completion share."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1, le=2**31)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    n: int = Field(default=1, ge=1, le=1024)
    stop: _Text | list[_Text] = Field(default_factory=list)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(default_factory=dict)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    # Ours.
    top_k: int = Field(default=0, ge=0, le=2**31)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    cache: bool | None = None

    @property
    def constrained(self) -> str | None:
        """The field that holds the answer to a form, tools aside."""
        return next((name for name in ("regex", "choice", "grammar") if getattr(self, name) is not None), None)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatBody(_Asked):
    """The body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    attributes: dict[str, Any] | None = None
    # Bookkeeping of OpenAI's own service: official clients send it, and no answer depends on it.
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def constrained(self) -> str | None:
        """The field that holds the answer to a form, tools aside."""
        form = self.response_format
        return super().constrained or ("response_format" if form is not None and form.type != "text" else None)

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(_Asked):
    """The body of `/v1/completions`."""

    prompt: str | list[str] | list[_Id] | list[list[_Id]]
    best_of: int | None = Field(default=None, ge=1, le=1024)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    suffix: Literal[""] | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; OpenAI's default."""
        return 16 if self.max_tokens is None else self.max_tokens


B = TypeVar("B", bound=_Asked)


def read(cls: type[B], value: dict[str, Any]) -> B:
    """A body out of JSON.

    Raises:
        ApiError: names the first field that is wrong.
    """
    try:
        body = cls.model_validate(value)
    except ValidationError as error:
        raise _told(cls, error) from None
    if len(body.stops) > MAX_STOPS:
        raise bad(f"{len(body.stops)} stop strings; give at most {MAX_STOPS}", "stop")
    if "" in body.stops:
        raise bad("a stop string is empty; give at least one character", "stop")
    if body.stream_options is not None and not body.stream:
        raise bad("stream_options stands without stream; set stream to true, or leave it out", "stream_options")
    _check_constraints(body)
    return body


def _check_constraints(body: _Asked) -> None:
    given = [name for name in ("regex", "choice", "grammar") if getattr(body, name) is not None]
    if isinstance(body, ChatBody):
        form = body.response_format
        given += ["response_format"] if form is not None and form.type != "text" else []
        if form is not None and form.type == "json_schema" and form.json_schema is None:
            raise bad("response_format.type is json_schema, and no json_schema stands beside it", "response_format.json_schema")
        if body.top_logprobs is not None and not body.logprobs:
            raise bad("top_logprobs stands without logprobs; set logprobs to true", "top_logprobs")
    if len(given) > 1:
        raise bad(f"{' and '.join(given)} cannot hold at once; give one of them", given[1])


_BRANCHES = ("str", "constrained-str", "NamedTool")


def _told(cls: type[BaseModel], error: ValidationError) -> ApiError:
    """The one of pydantic's complaints that helps most."""
    found = error.errors(include_url=False, include_context=False)
    # Each branch of a union says why it does not fit; the one that got furthest into the value is the one that was meant.
    first = next((one for one in found if one["type"] in ("extra_forbidden", "missing") and len(one["loc"]) == 1), None)
    # Among equals, a value out of range is of the kind that was meant; one of the wrong kind may have failed a branch that was not.
    first = first or max(found, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    # Names of a union's branches stand in pydantic's path as if they were keys.
    path = [str(part) for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part in _BRANCHES))]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return bad(f"unknown field '{param}'; {did_you_mean(str(param), _names(cls))}"[:600], param, "unknown_parameter")
    if first["type"] == "missing":
        return bad(f"the field '{param}' is missing", param, "missing_required_parameter")
    return bad(f"{param}: {first['msg']}", param, "invalid_value")


def _names(cls: type[BaseModel]) -> list[str]:
    return list(cls.model_fields)
