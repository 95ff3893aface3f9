"""Renders chat templates in Jinja's sandbox, within bounds. Knows templates; knows no tokenizer and no format.

A template comes with a checkpoint, hence from a stranger. The sandbox keeps it away from Python; the bounds here keep it
from running or growing without end: every turn of a loop and every call of a macro costs one tick of a budget, text that
is joined, multiplied or captured may not pass a size, and what pads text to a width is not offered.

The environment behaves as transformers' own does (trimmed blocks, loop controls, `tojson`, `raise_exception`,
`strftime_now`, the `generation` tag), so that one text serves both. Here the tag leaves two marks around its text.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Namespace
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from cairn.errors import UserError

MAX_TICKS = 1_000_000
MAX_CHARACTERS = 50_000_000
MAX_SOURCE = 1_000_000

DATE = datetime.datetime(2025, 1, 1)
"""What `strftime_now` tells unless a caller says otherwise: rendering must not depend on the day on which it happens."""

START, END = "generation_start", "generation_end"
"""Names of the render variables that hold the marks around generated text."""

_ticks: ContextVar[list[int]] = ContextVar("ticks")
_now: ContextVar[datetime.datetime] = ContextVar("now", default=DATE)

_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format_map", "translate"})
_PADDING_FILTERS = (
    "center",
    "indent",
    "wordwrap",
    "format",
    "filesizeformat",
    "pprint",
    "xmlattr",
    "urlize",
    "batch",
    "slice",
)


class TemplateProblem(Exception):
    """The template itself says no (`raise_exception`), fails, or passes a bound."""


def render_template(source: str, variables: Mapping[str, Any], *, where: str = "chat template", now: datetime.datetime = DATE) -> str:
    """The text that a template gives.

    Args:
        source: the template.
        variables: what it can read. Plain JSON values only.
        where: names the template in errors.
        now: the time that `strftime_now` tells.

    Raises:
        UserError: a template that is malformed.
        TemplateProblem: a template that refuses these messages, fails on them or does not end within the bounds.
    """
    template = _compiled(source, where)
    ticks, clock = _ticks.set([0]), _now.set(now)
    out: list[str] = []
    size = 0
    try:
        for part in template.generate(variables):
            out.append(part)
            size += len(part)
            if size > MAX_CHARACTERS:
                raise SecurityError(f"the template wrote more than {MAX_CHARACTERS} characters")
    except RecursionError:
        raise TemplateProblem("the template calls itself without end") from None
    except TemplateProblem:
        raise
    except Exception as error:  # whatever a stranger's template stumbles over: attribute, type, value and Jinja's own errors
        raise TemplateProblem(str(error) or type(error).__name__) from None
    finally:
        _ticks.reset(ticks)
        _now.reset(clock)
    return "".join(out)


@lru_cache(maxsize=64)
def _compiled(source: str, where: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise UserError(f"the template is longer than {MAX_SOURCE} characters", where=where, remedy="give another template")
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"not a valid template: {error.message}", where=f"{where}, line {error.lineno}", remedy="correct this line"
        ) from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError):
        raise UserError("the template is nested too deeply", where=where, remedy="give another template") from None


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: its text between two marks that the caller chose, or bare where none are given."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's base class declares it so

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked", [jinja2.nodes.ContextReference()])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, context: Context, caller: Callable[[], str]) -> str:
        return str(context.resolve(START) or "") + caller() + str(context.resolve(END) or "")


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox, with a budget."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        template = super()._parse(source, name, filename)
        for node in list(template.find_all((jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock))):
            call = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("tick"), [], [], None, None)
            node.body.insert(0, jinja2.nodes.ExprStmt(call))  # type: ignore[attr-defined]
        _bound_text(template)
        template.set_environment(self)
        template.set_lineno(1, override=False)
        return template

    @staticmethod
    def tick() -> str:
        """One step of the budget."""
        counter = _ticks.get()
        counter[0] += 1
        if counter[0] > MAX_TICKS:
            raise SecurityError(f"the template took more than {MAX_TICKS} steps")
        return ""

    @staticmethod
    def joined(*parts: Any) -> str:
        """`a ~ b`, within the size."""
        texts = [str(_bounded(part)) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+ * ** %`, refusing what would grow past the bounds."""
        if operator == "*":
            for a, b in ((left, right), (right, left)):
                if isinstance(a, (str, list, tuple)) and isinstance(b, int):
                    _check_size(len(a) * max(b, 0))
            if isinstance(left, int) and isinstance(right, int):
                _check_size(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_size(left.bit_length() * max(right, 0))
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, "%", "0123456789*", (right,))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _PADDING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`text.format(…)` without widths, which could ask for any length."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None
        owner, checked = value.__self__, inner

        def format(*args: Any, **kwargs: Any) -> str:
            _check_format(owner, "{", ":", (*args, *kwargs.values()))
            return checked(*args, **kwargs)

        return format

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and getattr(obj, "__name__", "") in ("replace", "join"):
            _check_growth(getattr(obj, "__name__", ""), owner, args)
        return super().call(context, obj, *args, **kwargs)


def _bound_text(template: jinja2.nodes.Template) -> None:
    """Let `~` and captured blocks (`{% set x %}…{% endset %}`) go through the size check."""
    for node in list(template.find_all(jinja2.nodes.AssignBlock)):
        size = jinja2.nodes.Filter(None, "bounded", [], [], None, None)
        inner: Any = node.filter
        if inner is None:
            node.filter = size
        else:
            size.node = inner
            node.filter = size
    for parent in [template, *template.find_all(jinja2.nodes.Node)]:
        for field, value in parent.iter_fields():
            if isinstance(value, jinja2.nodes.Concat):
                setattr(parent, field, _joined(value))
            elif isinstance(value, list):
                value[:] = [_joined(item) if isinstance(item, jinja2.nodes.Concat) else item for item in value]


def _joined(node: jinja2.nodes.Concat) -> jinja2.nodes.Call:
    call = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("joined"), list(node.nodes), [], None, None)
    return call.set_lineno(node.lineno)  # type: ignore[return-value]


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise SecurityError(f"the template makes a value of more than {MAX_CHARACTERS} characters")


def _check_growth(what: str, owner: str, args: tuple[Any, ...]) -> None:
    if what == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        hits = owner.count(args[0]) if args[0] else len(owner) + 1
        _check_size(len(owner) + hits * max(len(args[1]) - len(args[0]), 0))
    if what == "join" and args and isinstance(args[0], (list, tuple)):
        _check_size(len(owner) * len(args[0]) + sum(len(str(item)) for item in args[0]))


def _check_format(text: str, mark: str, forbidden: str, values: tuple[Any, ...]) -> None:
    if any(c in text for c in forbidden):
        raise SecurityError("a template may not format text to a width")
    _check_size(len(text) + text.count(mark) * sum(len(str(_bounded(value))) for value in values))


def _bounded(value: Any) -> Any:
    """The value itself, if it is small enough to be written out. A list may hold itself's half twice, again and again."""
    if isinstance(value, (list, tuple, dict)):
        left, todo = MAX_TICKS, [value]
        while todo:
            item = todo.pop()
            inner = item if isinstance(item, (list, tuple)) else [*item, *item.values()] if isinstance(item, dict) else ()
            left -= 1 + len(inner)
            if left < 0:
                raise SecurityError("the template makes a value that is too large to write")
            todo += [part for part in inner if isinstance(part, (list, tuple, dict))]
    elif isinstance(value, str):
        _check_size(len(value))
    return value


def _joined_filter(value: Any, d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    if attribute is not None:
        items = [item[attribute] for item in items]
    texts = [str(_bounded(item)) for item in items]
    _check_size(sum(map(len, texts)) + len(str(d)) * len(texts))
    return str(d).join(texts)


def _string(value: Any) -> str:
    return str(_bounded(value))


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    _check_growth("replace", text, (old, new))
    return text.replace(old, new, -1 if count is None else count)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes HTML escapes and Python's default writes \uXXXX: both would teach a model another text than users send.
    if indent is not None and indent > 16:
        raise SecurityError("a template may not indent by more than 16")
    return json.dumps(_bounded(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    prefix = width if isinstance(width, str) else " " * min(int(width), 16)
    _check_size(len(str(text)) + len(prefix) * (str(text).count("\n") + 1))
    lines = str(text).split("\n")
    return "\n".join(prefix + line if (line or blank) and (i or first) else line for i, line in enumerate(lines))


def _raise_exception(message: Any) -> str:
    raise TemplateProblem(str(message))


def _strftime_now(format: str) -> str:
    _check_size(len(format) * 100)
    return _now.get().strftime(format)


class _Namespace(Namespace):
    """Jinja's namespace without underscored names, which could reach into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a template may not store '{name}'")
        super().__setitem__(name, value)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


@lru_cache(maxsize=1)
def _environment() -> _Bounded:
    # Not optimised: the optimiser would compute constant expressions while compiling, outside of every bound.
    environment = _Bounded(
        trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_bounded, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    for name in _PADDING_FILTERS:
        environment.filters.pop(name, None)
    environment.filters.update(tojson=_tojson, bounded=_bounded, replace=_replace, indent=_indent, join=_joined_filter, string=_string)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace, dict=_dict)
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    return environment
