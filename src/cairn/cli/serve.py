"""`cairn serve`: a model behind OpenAI's API, with a page to talk to it. Checks the options, loads the model and serves. Knows no route."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.cli.sampling import Drafts, Dtype, FormatName, Weights, say
from cairn.cli.show import StoreDir, err, open_store
from cairn.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from cairn.generate.load import Loaded
    from cairn.serve.config import Limits

ENGINES = ("cairn", "vllm")
CACHES = ("off", "exact", "near")
_OURS = {
    "cache": "put a proxy with a cache in front of it",
    "format": "vLLM uses the template that lies with the model; train or export it with another one",
    "max_batch_tokens": "vLLM bounds its cache by memory: -- --gpu-memory-utilization 0.8",
    "weights": "vLLM rounds weights by its own means: -- --quantization KIND",
    "set_": "vLLM has bounds of its own, such as -- --max-model-len N",
}
"""Options that mean nothing to vLLM, with what to do instead."""


def command(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(help="recipe/stage, a folder, the start of a key, or a checkpoint's name on the hub.")],
    host: Annotated[str, typer.Option("--host", help="The address to listen at; only this machine reaches the default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port to listen at; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", envvar="CAIRN_API_KEY", help="Callers must show it. Safer in CAIRN_API_KEY.", show_default=False),
    ] = None,
    rest: Annotated[
        list[str] | None, typer.Argument(metavar="[-- WORDS]", help="Words for vLLM itself, with --engine vllm.", show_default=False)
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="What runs the model: cairn, or vllm (GPUs, many machines; installed by itself).")
    ] = "cairn",
    name: Annotated[str | None, typer.Option("--name", help="What callers call the model; REF unless given.", show_default=False)] = None,
    format: FormatName = None,
    dtype: Dtype = "float32",
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Requests that run together at most.")] = 64,
    max_batch_tokens: Annotated[
        int, typer.Option("--max-batch-tokens", min=1, help="Tokens of prompts and answers that are held at once: bounds the memory.")
    ] = 32768,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="The same request gets the same bytes in any company; slower, but where the compiled decoder runs."
        ),
    ] = False,
    weights: Weights = None,
    drafts: Drafts = None,
    cache: Annotated[
        str,
        typer.Option(
            "--cache", help="Keep answers: off, exact (for equal requests), near (for like questions too, where the model agrees)."
        ),
    ] = "off",
    cache_model: Annotated[
        Path | None,
        typer.Option("--cache-model", help="Folder of a model that says which questions are alike; the served one.", show_default=False),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A limit: name=value. May be given often.", show_default=False)] = None,
    store: StoreDir = None,
) -> None:
    r"""Serve a model: OpenAI's API under /v1, a page to talk to it under /.

    Ctrl-C lets running answers finish and then ends; a second one ends at once.

    \b
    Examples:
        cairn serve pebble/chat
        cairn serve pebble/chat --host 0.0.0.0 --port 80 --api-key SECRET --set max_in_flight=64 --set request_seconds=120
        cairn serve pebble/chat --engine vllm -- --tensor-parallel-size 2
    """
    keys = _checked(list(api_key or ()))
    if engine not in ENGINES:
        raise UserError(f"there is no engine '{engine}'", where="--engine", remedy=did_you_mean(engine, ENGINES))
    if engine == "vllm":
        _vllm(ctx, ref, keys)
        return
    if rest:
        raise UserError(f"'{rest[0]}' is one word too many", where="cairn serve", remedy="words behind -- are for --engine vllm")
    _check_cache(cache, cache_model)
    limits = _limits(set_ or [])
    folder = _folder(ref, store)

    from cairn.serve.app import Server
    from cairn.serve.memory import Memory
    from cairn.serve.run import bind, local_names, serve

    listening = bind(host, port)
    loaded = _load(
        folder, format, dtype=dtype, max_batch=max_batch, max_batch_tokens=max_batch_tokens, deterministic=deterministic, weights=weights,
        drafts=drafts, say=say,
    )  # fmt: skip
    local, called = _is_local(host, keys), _called(name, ref)
    memory = None if cache == "off" else Memory(loaded, limits, near=cache == "near", embedder=cache_model)
    server = Server(called, loaded, limits, keys, local_names(host) if local and not keys else None, memory)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    serve(server, listening, lambda: print(f"serving {called} at {address}  (API: {address}/v1)", flush=True))


def _checked(keys: list[str]) -> list[str]:
    if any(not key.strip() or key != key.strip() for key in keys):
        raise UserError("an API key is empty, or begins or ends with white space", where="--api-key", remedy="give a long random word")
    return keys


def _limits(words: list[str]) -> Limits:
    """The server's limits, out of name=value.

    Raises:
        UserError: no such limit, or a value out of its range.
    """
    from cairn.config import build, parse_yaml
    from cairn.serve.config import Limits

    parts = [text.partition("=") for text in words]
    for key, equals, value in parts:
        if not equals or not value:
            raise UserError(f"'{key}' is no limit", where="--set", remedy="write name=value, such as request_seconds=120")
    return build(Limits, {key: parse_yaml(f"value: {value}", where="--set")["value"] for key, _, value in parts}, where="--set")


def _folder(ref: str, store: Path | None) -> Path:
    from cairn.pipeline.resolve import model_folder

    return model_folder(ref, open_store(store))


def _load(folder: Path, format: str | None, **options: Any) -> Loaded:
    """The model; one without a chat format continues plain text."""
    from cairn.generate.load import load, load_chat

    if format is None and not _chats(folder):
        err().print("this model has no chat format: /v1/completions will answer, /v1/chat/completions will not", markup=False)
        return load(folder, **options)
    return load_chat(folder, format=format, **options)


def _check_cache(cache: str, model: Path | None) -> None:
    if cache not in CACHES:
        raise UserError(f"there is no cache '{cache}'", where="--cache", remedy=did_you_mean(cache, CACHES))
    if model is not None and cache != "near":
        raise UserError("--cache-model is for --cache near", where=f"--cache {cache}", remedy="write --cache near, or leave it out")


def _called(name: str | None, ref: str) -> str:
    """What callers call the model. A path says more about this machine than they need to know."""
    return name or (Path(ref).resolve().name if Path(ref).is_dir() else ref)


def _is_local(host: str, keys: list[str]) -> bool:
    """Whether only this machine reaches the server; warns where others do, and are asked for no key."""
    from cairn.serve.run import is_loopback

    local = is_loopback(host)
    if not local and not keys:
        err().print("warning: whoever reaches this address can use the model; --api-key asks them for a key", markup=False)
    return local


def _vllm(ctx: typer.Context, ref: str, keys: list[str]) -> None:
    """Become vLLM's server: signals and the exit status are its own from here on."""
    import os
    import sys

    from cairn.serve.vllm import Asked, command, find

    given = {key: value for key, value in ctx.params.items() if _is_given(ctx, key)}
    for key, remedy in _OURS.items():
        if key in given:
            option = f"--{key.rstrip('_').replace('_', '-')}"
            raise UserError(f"{option} is for Cairn's own engine", where="--engine vllm", remedy=remedy)
    vllm = find(os.environ)
    asked = Asked(
        _folder(ref, ctx.params["store"]), _called(ctx.params["name"], ref), ctx.params["host"], ctx.params["port"], keys,
        dtype=given.get("dtype"), max_batch=given.get("max_batch"), deterministic=ctx.params["deterministic"],
        drafts=ctx.params["drafts"], rest=ctx.params["rest"] or [],
    )  # fmt: skip
    words, added = command(vllm, asked)
    _is_local(asked.host, keys)
    err().print(f"starting {' '.join(words)}", markup=False, soft_wrap=True)
    sys.stdout.flush()
    os.execve(vllm, words, {**os.environ, **added})


def _is_given(ctx: typer.Context, key: str) -> bool:
    """Whether an option was typed, not taken from its default."""
    source = ctx.get_parameter_source(key)
    return source is not None and source.name == "COMMANDLINE"


def _chats(folder: Path) -> bool:
    from cairn.chat.format import load_format

    try:
        load_format(folder)
    except UserError:
        return False
    return True
