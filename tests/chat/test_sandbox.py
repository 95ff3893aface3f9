"""A stranger's template can neither reach Python nor run or grow without end."""

from __future__ import annotations

import datetime
import time

import pytest

from cairn.chat import sandbox
from cairn.chat.sandbox import TemplateProblem, render_template
from cairn.errors import UserError

GROW = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = STEP %}{% endfor %}{{ n.x | length }}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for a in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 1000 }}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10000000000 }}",
        "{{ ([0] * 10 ** 9) | length }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'a'.center(10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ lipsum(100000) }}",
        "{{ (('x' * 20000).split('x')) | join('y' * 20000) }}",
        GROW.replace("STEP", "n.x.format(n.x) ~ '{}{}'"),
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x ~ '' }}",
        GROW.replace("STEP", "n.x ~ n.x"),
        GROW.replace("STEP", "n.x + n.x"),
        GROW.replace("STEP", "n.x * 2"),
        GROW.replace("STEP", "n.x | replace('a', n.x)"),
        GROW.replace("STEP", "n.x.replace('b', n.x)"),
        GROW.replace("STEP", "n.x.join([n.x, n.x, n.x])"),
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n }}",
    ],
)
def test_hostile_templates_end(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_TICKS", 50_000)
    monkeypatch.setattr(sandbox, "MAX_CHARACTERS", 2_000_000)
    started = time.monotonic()
    with pytest.raises((TemplateProblem, UserError)):
        render_template(template, {"messages": []})
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "template", ["{% if %}", "{% for x in y %}", "{{ a b }}", "{% generation %}x", "{{ " + "(" * 5000, "x" * 1_000_001]
)
def test_malformed_templates_are_refused(template: str) -> None:
    with pytest.raises(UserError) as error:
        render_template(template, {}, where="chat_template.jinja")
    assert "chat_template.jinja" in error.value.where


def test_what_templates_in_the_wild_use_works() -> None:
    def text(template: str, **variables: object) -> str:
        return render_template(template, variables)

    assert text("{{ x | tojson }}", x={"é": "<'>", "n": None}) == '{"é": "<\'>", "n": null}'
    assert text("{{ x | tojson(indent=1) }}", x=[1]) == "[\n 1\n]"
    assert (
        text("{% for i in x %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{{ ',' if not loop.last }}{% endfor %}", x=[1, 2, 3]) == "1,3"
    )
    assert text("{% set n = namespace(a=1) %}{% for i in x %}{% set n.a = n.a + i %}{% endfor %}{{ n.a }}", x=[1, 2]) == "4"
    assert text("{{ 'a' ~ 1 ~ none }}|{{ ' x '.strip() }}|{{ x[::-1] | first }}|{{ 'b' in 'abc' }}", x=[1, 2]) == "a1None|x|2|True"
    assert text("{%- if x is defined and x is string -%}\n  {{- x | trim }}\n{%- endif %}", x=" y ") == "y"
    assert text("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"
    assert text("{{ 'a\nb' | indent(2) }}") == "a\n  b"
    assert text("{% set x | upper %}a{% endset %}{{ x }}") == "A"
    assert text("{{ strftime_now('%Y-%m-%d') }}") == "2025-01-01"
    assert render_template("{{ strftime_now('%Y') }}", {}, now=datetime.datetime(1999, 1, 1)) == "1999"
    assert text("{{ '{} and {}'.format(1, x) }}|{{ '%s%%' % 3 }}|{{ [1, 2] | join('-') }}", x=[2]) == "1 and [2]|3%|1-2"
    assert text("{% generation %}x{% endgeneration %}") == "x"
    assert text("{% generation %}x{% endgeneration %}", generation_start="(", generation_end=")") == "(x)"


def test_a_template_can_refuse() -> None:
    with pytest.raises(TemplateProblem, match="roles must alternate"):
        render_template("{{ raise_exception('roles must alternate') }}", {})
