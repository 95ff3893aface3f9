"""Functions as tools: their schemas, and that nothing a call does wrong escapes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import pytest

from cairn.errors import UserError
from cairn.generate.tools import Tools


class Unit(Enum):
    CELSIUS = "c"
    KELVIN = "k"


@dataclass
class Place:
    name: str
    height: float = 0.0


def weather(city: str, days: int = 1, unit: Unit = Unit.CELSIUS, mode: Literal["short", "long"] | None = None) -> dict[str, Any]:
    """The weather of a city.

    More that the model need not read.

    Args:
        city: its name,
            in English.
        days (int): how many days ahead.
    """
    return {"city": city, "days": days, "unit": unit.value, "mode": mode}


def test_a_schema_is_read_off_signature_and_docstring() -> None:
    (tool,) = Tools(weather).schemas
    assert tool["type"] == "function"
    function = tool["function"]
    assert (function["name"], function["description"]) == ("weather", "The weather of a city.")
    parameters = function["parameters"]
    assert parameters["required"] == ["city"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["city"] == {"type": "string", "description": "its name, in English."}
    assert parameters["properties"]["days"] == {"type": "integer", "default": 1, "description": "how many days ahead."}
    assert "title" not in json.dumps(tool)


def test_a_parameter_may_be_called_title() -> None:
    def book(title: str, place: Place) -> str:
        return f"{title} at {place.name}"

    tools = Tools(book)
    assert set(tools.schemas[0]["function"]["parameters"]["properties"]) == {"title", "place"}
    assert tools.run("book", {"title": "A", "place": {"name": "Oslo"}}).content == "A at Oslo"


def test_results_are_text_or_json() -> None:
    tools = Tools(weather)
    called = tools.run("weather", {"city": "서울", "unit": "k"})
    assert json.loads(called.content) == {"city": "서울", "days": 1, "unit": "k", "mode": None}
    assert "서울" in called.content
    assert not called.failed
    tools.register(lambda: "as it is", {"name": "say", "parameters": {}})
    assert tools.run("say", {}).content == "as it is"


def boom() -> None:
    raise ValueError("no such city \ud800")


def odd() -> Any:
    return {1, 2}


def endless() -> float:
    return float("inf")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("boom", {}, "ValueError: no such city"),
        ("odd", {}, "TypeError"),
        ("endless", {}, "ValueError"),
        ("weather", {}, "city"),
        ("weather", {"city": 3}, "city"),
        ("weather", {"city": "Oslo", "wind": True}, "wind"),
        ("wether", {"city": "Oslo"}, "did you mean 'weather'"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(name: str, arguments: dict[str, Any], said: str) -> None:
    called = Tools(weather, boom, odd, endless).run(name, arguments, 10.0)
    assert called.failed
    assert said in json.loads(called.content)["error"]
    called.content.encode()


def test_a_function_that_hangs_is_left_behind() -> None:
    def hang() -> None:
        time.sleep(5)

    begun = time.perf_counter()
    called = Tools(hang).run("hang", {}, 0.05)
    assert called.failed
    assert "TimeoutError" in called.content
    assert time.perf_counter() - begun < 4


def untyped(city) -> None:  # type: ignore[no-untyped-def]
    """No type."""


def starred(*cities: str) -> None:
    """No name."""


def strange(city: time.struct_time.__class__) -> None:  # type: ignore[valid-type]
    """No JSON."""


@pytest.mark.parametrize("function", [untyped, starred, strange, lambda city: city])
def test_what_no_schema_can_be_made_of_is_told(function: Any) -> None:
    with pytest.raises(UserError) as error:
        Tools(function)
    assert "schema" in error.value.remedy


def test_names_are_unique() -> None:
    with pytest.raises(UserError, match="two tools are called 'weather'"):
        Tools(weather, weather)
