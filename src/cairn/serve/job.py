"""A caller's body to the engine's requests: rendering, sampling, limits. Knows the model; knows no HTTP.

What it does may take long (a large prompt, a large schema) and is called outside of the event loop.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.chat.render import TooLong
from cairn.errors import UserError
from cairn.generate.load import Loaded
from cairn.generate.request import Request
from cairn.generate.sampling import Sampling
from cairn.serve.answer import Answer
from cairn.serve.config import Limits
from cairn.serve.constrain import check_budget, constraint
from cairn.serve.errors import bad, from_user_error
from cairn.serve.messages import offered, read_messages, read_tools
from cairn.serve.protocol import ChatBody, CompletionBody


@dataclass(frozen=True)
class Job:
    """What one HTTP request asks of the engine.

    Attributes:
        requests: one an answer: all of the first prompt's, then the second's, …
        answer: makes the reader of the answer at a place.
        prompt_tokens: of all prompts together.
        per_prompt: requests a prompt.
        keep: answers a prompt that are given back: the likeliest ones.
    """

    requests: list[Request]
    answer: Callable[[int], Answer]
    prompt_tokens: int
    per_prompt: int
    keep: int


def chat_job(loaded: Loaded, limits: Limits, body: ChatBody) -> Job:
    """The job of a chat completion.

    Raises:
        ApiError: what cannot be rendered, constrained or run.
    """
    _check_count(body.n, limits)
    tools = read_tools(body.tools)
    shown = offered(tools, body.tool_choice)
    messages = read_messages(body.messages)
    try:
        session = loaded.session
    except UserError:
        raise bad("this model has no chat format; use /v1/completions", "model", "no_chat_format") from None
    try:
        prompt = session.request(messages, tools=shown, attributes=body.attributes, most=_most(loaded, limits))
    except TooLong as error:
        raise bad(f"{error.what}; {error.remedy}", "messages", "context_length_exceeded") from None
    except UserError as error:
        raise from_user_error(error) from None
    ids = list(prompt.ids)
    _check_length(loaded, limits, len(ids), "messages")
    sampling = _sampling(loaded, limits, body, len(ids))
    made = constraint(loaded, body, shown)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    requests = [
        Request(ids, sampling, prompt.stop_ids, sample=k, constraint=made, logprobs=logprobs) for k in range(body.n)
    ]  # fmt: skip
    _check(loaded, requests)
    check_budget(made, loaded.engine.limit(requests[0]), "max_completion_tokens")
    most = None if body.parallel_tool_calls else 1

    def answer(place: int) -> Answer:
        return Answer(loaded.tokenizer, loaded.format, stops=body.stops, calls=bool(shown), most_calls=most)

    return Job(requests, answer, len(ids), body.n, body.n)


def completion_job(loaded: Loaded, limits: Limits, body: CompletionBody) -> Job:
    """The job of a plain completion.

    Raises:
        ApiError: what cannot be encoded, constrained or run.
    """
    keep = body.n
    count = keep if body.best_of is None else body.best_of
    if count < keep:
        raise bad(f"best_of is {count}, less than n, which is {keep}", "best_of")
    if count > keep and body.stream:
        raise bad("best_of chooses among whole answers, so it cannot stream; leave stream or best_of out", "best_of")
    if body.echo and body.logprobs is not None:
        raise bad("log-probabilities of an echoed prompt are not served; leave echo or logprobs out", "echo", "unsupported_parameter")
    prompts = _prompts(body)
    _check_count(count * len(prompts), limits)
    tokenizer = loaded.tokenizer
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for prompt in prompts:
        if isinstance(prompt, str):
            _check_length(loaded, limits, tokenizer.least_tokens(len(prompt)), "prompt", "at least ")
    encoded = [begin + _encode(loaded, prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    made = constraint(loaded, body, [])
    logprobs = body.logprobs if body.logprobs is not None else 0 if count > keep else None
    ends = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    requests: list[Request] = []
    for at, ids in enumerate(encoded):
        _check_length(loaded, limits, len(ids), "prompt")
        sampling = _sampling(loaded, limits, body, len(ids))
        requests += [Request(ids, sampling, ends, index=at, sample=k, constraint=made, logprobs=logprobs) for k in range(count)]
    _check(loaded, requests)
    check_budget(made, min(map(loaded.engine.limit, requests)), "max_tokens")
    shown = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts] if body.echo else [""] * len(prompts)

    def answer(place: int) -> Answer:
        return Answer(tokenizer, stops=body.stops, prefix=shown[place // count])

    return Job(requests, answer, sum(map(len, encoded)), count, keep)


def _prompts(body: CompletionBody) -> Sequence[str | list[int]]:
    prompt: Any = body.prompt
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _encode(loaded: Loaded, text: str) -> list[int]:
    try:
        return loaded.tokenizer.encode(text)
    except UserError as error:
        raise from_user_error(error, "prompt") from None


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_choices:
        raise bad(f"{count} answers are asked for; this server gives at most {limits.max_choices} a request", "n")


def _most(loaded: Loaded, limits: Limits) -> int | None:
    """Tokens that a prompt may have."""
    return min((bound for bound in (loaded.engine.context, limits.max_prompt_tokens) if bound is not None), default=None)


def _check_length(loaded: Loaded, limits: Limits, tokens: int, param: str, about: str = "") -> None:
    """Tell what is too long in the code that clients look for."""
    most = _most(loaded, limits)
    if most is not None and tokens > most:
        raise bad(f"the prompt has {about}{tokens} tokens, and at most {most} fit; shorten it", param, "context_length_exceeded")


def _sampling(loaded: Loaded, limits: Limits, body: ChatBody | CompletionBody, prompt_tokens: int) -> Sampling:
    limit = body.limit
    if limit is not None and limit > limits.max_answer_tokens:
        raise bad(f"{limit} tokens are asked for; this server gives at most {limits.max_answer_tokens}", "max_completion_tokens")
    return Sampling(
        max_new_tokens=min(limits.default_answer_tokens, limits.max_answer_tokens) if limit is None else limit,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_bias(loaded, body),
        # A caller without a seed wants another answer each time; one with a seed the same.
        seed=secrets.randbits(63) if body.seed is None else body.seed,
    )


def _bias(loaded: Loaded, body: ChatBody | CompletionBody) -> dict[int, float]:
    size = loaded.tokenizer.vocab_size
    bias: dict[int, float] = {}
    for text, value in body.logit_bias.items():
        if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < size):
            raise bad(f"logit_bias names '{text[:40]}'; its keys are token ids from 0 to {size - 1}", "logit_bias")
        bias[int(text)] = value
    return bias


def _check(loaded: Loaded, requests: Sequence[Request]) -> None:
    for request in requests:
        try:
            loaded.engine.check(request)
        except UserError as error:
            raise from_user_error(error, "prompt") from None
