"""Every command line of the README runs as it is printed, in its order, in a folder where the recipe pebble has run at a tiny size.

A line that cannot run here is skipped with its reason; a line whose work would take minutes is given a smaller one.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cairn.cli.main import main
from cairn.pipeline.export import LAYOUTS
from cairn.pipeline.recipe import load_recipe

from .recipes.shipped import MODEL, PEBBLE, cairn, sets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIMITS = README.partition("## Limits")[2]

SKIPPED = {
    "make demo": "installs packages; it ends with `cairn run pebble`, which runs here at a tiny size",
    "make test": "is what runs this test",
    ". .venv/bin/activate": "changes the shell that it is typed in",
    "cairn serve pebble/steady": "serves until it is stopped; tests/serve talk to it",
    "cairn run real --set data=FOLDER": "needs public data; tests/recipes/test_real.py runs it",
}
SHORT = ["tokens=null", "steps=2", "batch_sequences=2"]
SHAPE = [f"model.{size}" for size in MODEL]
SMALLER = {
    "cairn verify pebble/chat --interval 2400:3200": "cairn verify pebble/chat --interval 1:3",
    "cairn run my-recipe.yaml": shlex.join(
        ["cairn", "run", "my-recipe.yaml", *sets("tokenizer.vocab_size=400", *(f"chat.{one}" for one in [*SHORT, *SHAPE]))]
    ),
}
"""What is typed here in place of a line, which is right for the sizes of the README."""

PROMISED = (
    "run", "plan", "list", "trace", "verify", "diff", "chat", "generate", "serve", "eval", "card", "check", "tokens", "data stats",
    "data refine", "data convert", "tokenizer train", "tokenizer extend", "tokenizer fertility", "merge", "export", "bench", "doctor",
)  # fmt: skip
"""All commands that the design names."""


def block(language: str) -> str:
    """The README's one block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)
    return str(found)


def lines() -> list[str]:
    """Every command line: those of the console blocks in order, then those in the text that hold more than a command's name."""
    shown = [line[2:] for text in re.findall(r"^```console\n(.*?)^```$", README, flags=re.M | re.S) for line in text.splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in shown] + [line for line in mentioned(README) if "=" in line]


def mentioned(text: str) -> list[str]:
    """The commands that stand in the text's lines."""
    return re.findall(r"`(cairn [^`]+)`", text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a user's files and a store, as the README has it before the first command after `make demo`."""
    import torch

    folder, threads = tmp_path_factory.mktemp("readme"), torch.get_num_threads()
    (folder / "my-recipe.yaml").write_text(block("yaml"), encoding="utf-8")
    rows = [{"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"A {n}."}]} for n in range(150)]
    (folder / "rows.jsonl").write_text(block("json") + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "notes").mkdir()
    for number in range(150):
        (folder / "notes" / f"{number}.txt").write_text(f"Note {number}: a cairn is a pile of stones.\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("CAIRN_STORE", raising=False)
        cairn("run", "pebble", *sets("corpus.scale=0.01", *PEBBLE))
        yield folder
    torch.set_num_threads(threads)


@pytest.mark.parametrize("line", lines())
def test_a_command_line_runs_as_it_is_printed(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if line in SKIPPED:
        pytest.skip(SKIPPED[line])
    program, *words = shlex.split(SMALLER.get(line, line))
    assert program == "cairn", "another program needs its reason in SKIPPED"
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 99 - 32?\n"))
    out, _ = cairn(*words)
    assert out.strip()


def test_what_is_skipped_or_made_smaller_is_in_the_readme() -> None:
    assert set(SKIPPED) | set(SMALLER) <= set(lines())
    demo = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert demo
    assert "/cairn run pebble\n" in demo[1]


def test_the_interval_lies_between_checkpoints_that_the_recipe_keeps() -> None:
    chat = load_recipe("pebble", []).stages["chat"].config
    first, last = map(int, re.findall(r"--interval (\d+):(\d+)", README)[0])
    kept = range(chat.checkpoints.every, chat.total_steps, chat.checkpoints.every)[-chat.checkpoints.keep :]
    assert {first, last} <= set(kept)


def test_the_limits_name_the_commands_that_are_missing() -> None:
    def there(words: str) -> bool:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return main([*words.split(), "--help"]) == 0

    missing = {f"cairn {words}" for words in PROMISED if not there(words)}
    missing |= {f"cairn export --to {layout}" for layout in ("hf", "gguf") if layout not in LAYOUTS}
    assert set(mentioned(LIMITS)) == missing
    for line in mentioned(README.partition("## Limits")[0]):
        if line not in lines():
            assert there(line.removeprefix("cairn ").removesuffix("--help")), line


def test_what_the_readme_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target.partition("#")[0]).exists(), target
    source = ROOT / "src" / "cairn"
    for path in re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|yaml))?)`", README):
        assert any((root / path).exists() for root in (ROOT, source)) or path == "cairn-store/", path
