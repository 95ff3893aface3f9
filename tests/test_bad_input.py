"""Bad input through the command line: status 2, one screen that says what, where and what to do, and nothing lost."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store

SCREEN = 24
"""Lines of a small terminal."""

GOOD = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
RECIPE = """\
recipe: bad
seed: 1
stages:
  rows:
    kind: data
    sources:
      - {name: mine, path: rows.jsonl}
      - {name: more, path: more.jsonl}
"""
TRAINED = """\
recipe: bad
seed: 1
stages:
  tokenizer:
    kind: tokenizer
    vocab_size: 300
    data: [{name: mine, path: rows.jsonl}]
  chat:
    kind: train
    tokenizer: tokenizer
    model: {hidden_size: 16, layers: 1, heads: 2, intermediate_size: 16}
    data: [{name: mine, path: rows.jsonl}]
    steps: 2
    sequence_length: 32
    batch_sequences: 1
"""


def dialogue(*turns: str) -> str:
    """A row of text: `turns` are `role: content`."""
    parts = (turn.partition(": ") for turn in turns)
    return json.dumps({"messages": [{"role": role, "content": content} for role, _, content in parts]})


@dataclass
class Place:
    """A folder with a recipe, its rows and a store in which a good run ended; made by `place`."""

    folder: Path
    store: Store
    capsys: pytest.CaptureFixture[str]

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def state(self) -> dict[str, bytes]:
        """Every byte of the folder, the store included."""
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in sorted(self.folder.rglob("*")) if p.is_file()}

    def call(self, *words: str) -> tuple[int, str, str]:
        status = main(list(words))
        return (status, *self.capsys.readouterr())

    def refused(self, *words: str, says: tuple[str, ...], drafts: bool = False) -> str:
        """`cairn words…` ends with status 2 and one screen that says all of `says`, and changes nothing.

        Args:
            words: the command line.
            says: what must stand in the message.
            drafts: whether a half-done stage may stay, to go on from.
        """
        before = self.state()
        status, out, err = self.call(*words)
        assert status == 2, out + err
        assert out == "", "results are for standard output, errors are not"
        assert len(err.splitlines()) <= SCREEN
        assert "Traceback" not in err
        assert err.count("error: ") == 1
        for words_ in (*says, "   do: "):
            assert words_ in err
        after = {name: data for name, data in self.state().items() if not (drafts and name.startswith("store/drafts/"))}
        # The locks that stages take are empty and stay.
        assert {name: data for name, data in after.items() if data or name in before} == before
        return err


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    """See `Place`. The good run is of the recipe's own content; tests then write bad content over it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAIRN_STORE", str(tmp_path / "store"))
    made = Place(tmp_path, Store(tmp_path / "store"), capsys)
    made.write("bad.yaml", RECIPE)
    made.write("rows.jsonl", f"{json.dumps(GOOD)}\n")
    made.write("more.jsonl", json.dumps({"text": "A text."}) + "\n")
    assert made.call("run", "bad.yaml")[0] == 0
    return made


# Recipes


def weighing(weight: str) -> str:
    """The recipe with this weight of its first source."""
    return RECIPE.replace("rows.jsonl}", f"rows.jsonl, weight: {weight}}}")


RECIPES = {
    "unknown key": (RECIPE + "    shuffle: 3\n", ("unknown key 'shuffle'", "bad.yaml, line 9", "stages.rows")),
    "misspelt key": (RECIPE + "    holdotu: 0.1\n", ("unknown key 'holdotu'", "bad.yaml, line 9", "'holdout'")),
    "misspelt key of a source": (RECIPE.replace("path: rows", "pth: rows"), ("unknown key 'pth'", "bad.yaml, line 7", "'path'")),
    "misspelt kind": (RECIPE.replace("kind: data", "kind: dat"), ("'dat'", "bad.yaml, line 5", "'data'")),
    "misspelt top level": (RECIPE.replace("seed: 1", "sede: 1"), ("unknown key 'sede'", "bad.yaml, line 2", "'seed'")),
    "circle": (
        "recipe: bad\nstages:\n"
        "  a: {kind: data, sources: [{name: x, stage: b, file: y.jsonl}]}\n"
        "  b: {kind: data, sources: [{name: y, stage: a, file: x.jsonl}]}\n",
        ("circle: a -> b -> a", "bad.yaml, line 3"),
    ),
    "unknown stage": (RECIPE.replace("path: rows.jsonl", "stage: rwos, file: x"), ("'rwos'", "bad.yaml, line 7")),
    "missing file": (RECIPE.replace("rows.jsonl", "gone.jsonl"), ("gone.jsonl", "bad.yaml, line 7", "check the path")),
    "weight of zero": (weighing("0"), ("above zero, not 0", "bad.yaml, line 7", "remove the source")),
    "weight below zero": (weighing("-1.5"), ("not -1.5", "bad.yaml, line 7", "remove the source")),
    "weight that is no number": (weighing(".nan"), ("weight", "bad.yaml, line 7")),
    "no YAML": (RECIPE + "   - ]\n", ("YAML", "bad.yaml, line 9")),
    "empty recipe": ("", ("bad.yaml",)),
}


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("name", RECIPES)
def test_bad_recipes(place: Place, name: str, verb: str) -> None:
    content, says = RECIPES[name]
    place.write("bad.yaml", content)
    place.refused(verb, "bad.yaml", says=says)


def test_a_recipe_that_is_not_there(place: Place) -> None:
    place.refused("run", "baad.yaml", says=("no such recipe file", "baad.yaml"))
    place.refused("run", "pebbel", says=("'pebbel'", "'pebble'"))


# Rates

FINITE = "finite number"
RATES = {
    "0": "greater than 0", "-0.01": "greater than 0", ".nan": FINITE, "nan": FINITE, ".inf": FINITE, "-.inf": FINITE, "1e999": FINITE,
    "fast": "valid number", "null": "valid number",
}  # fmt: skip


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("rate", RATES)
def test_rates_that_are_none(place: Place, rate: str, verb: str) -> None:
    place.write("bad.yaml", TRAINED + f"    optimizer: {{lr: {rate}}}\n")
    place.refused(verb, "bad.yaml", says=(RATES[rate], "bad.yaml, line 16", "chat.optimizer.lr"))
    place.write("bad.yaml", TRAINED)
    for key in ("lr", "adam_lr"):
        place.refused(verb, "bad.yaml", "--set", f"chat.optimizer.{key}={rate}", says=(RATES[rate], f"--set chat.optimizer.{key}={rate}"))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("optimizer.embedding_lr", ".nan", FINITE),
        ("optimizer.weight_decay", "-1", "greater than or equal to 0"),
        ("optimizer.betas", "[0.9, 1.0]", "less than 1"),
        ("optimizer.eps", ".inf", FINITE),
        ("optimizer.state", "int4", "'float32' or 'int8'"),
        ("optimizer.groups", "[{match: '*', lr: .nan}]", FINITE),
        ("optimizer.groups", "[{match: '*'}]", "needs lr or weight_decay"),
        ("optimizer.groups", "[{match: '*', lrr: 1}]", "did you mean 'lr'"),
        ("ema", "{decay: 1.0}", "less than 1"),
        ("ema", "{start: 3}", "the run has 2"),
        ("schedule.kind", "trapezoid", "warmup_steps and decay_steps"),
        ("schedule", "{kind: linear, warmup_steps: 3}", "longer than the run (2)"),
        ("precision", "bfloat16-pur", "'bfloat16-pure'"),
    ],
)
def test_other_numbers_of_the_optimiser(place: Place, key: str, value: str, says: str) -> None:
    place.write("bad.yaml", TRAINED)
    place.refused("run", "bad.yaml", "--set", f"chat.{key}={value}", says=(says, "chat"))


def test_a_group_that_matches_no_weight_stops_before_the_rows_are_read(place: Place) -> None:
    place.write("bad.yaml", TRAINED)
    assert place.call("run", "bad.yaml", "--until", "tokenizer")[0] == 0
    groups = 'chat.optimizer.groups=[{match: "*.embed_token.weight", lr: 0.1}]'
    says = ("'*.embed_token.weight'", "optimizer.groups.0.match", "'*.embed_tokens.weight'")
    place.refused("run", "bad.yaml", "--set", groups, says=says, drafts=True)
    assert not list(place.store.drafts.rglob("mix.json"))


# Rows

GOOD_LINE = json.dumps(GOOD) + "\n"
ROWS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    # name: (the file, what is said beside the file's name)
    "empty file": ("", ("the file is empty", "fill it")),
    "only white space": ("\n \n", ("empty", "fill it")),
    "no JSON": (GOOD_LINE + '{"messages": [\n', ("row 2",)),
    "a row that is cut off": (GOOD_LINE + '{"text": "a stone', ("row 2", "Unterminated string starting at column 10")),
    "no object": (GOOD_LINE + "[1]\n", ("row 2",)),
    "two answers in a row": (GOOD_LINE + dialogue("user: a", "assistant: b", "assistant: c"), ("row 2", "messages[2]", "role")),
    "an answer first": (GOOD_LINE + dialogue("assistant: b", "user: a", "assistant: c"), ("row 2", "messages[0]", "role")),
    "a system message late": (GOOD_LINE + dialogue("user: a", "system: b", "assistant: c"), ("row 2", "messages[1]", "role")),
    "an unknown role": (GOOD_LINE + dialogue("user: a", "asistant: c"), ("row 2", "messages[1]", "'asistant'")),
    "an answer without text": (GOOD_LINE + dialogue("user: a", "assistant: "), ("row 2", "messages[1].content")),
    "an answer of null": (
        GOOD_LINE + '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}\n',
        ("row 2", "messages[1].content"),
    ),
    "no answer": (GOOD_LINE + dialogue("user: a"), ("row 2", "messages", "no assistant turn")),
    "NUL": (GOOD_LINE + dialogue("user: a\0b", "assistant: c"), ("row 2", "messages[0].content", "NUL", "remove it")),
    "a raw NUL": (GOOD_LINE + dialogue("user: ab", "assistant: c").replace("ab", "a\0b"), ("row 2",)),
    "a lone surrogate": (GOOD_LINE + dialogue("user: a\ud800b", "assistant: c"), ("row 2", "messages[0].content", "U+D800")),
    "a raw surrogate": (GOOD_LINE + '{"text": "a\ud800b"}\n', ("row 2",)),
    "other bytes than UTF-8": (GOOD_LINE.encode() + '{"text": "caf\xe9"}\n'.encode("latin-1"), ("row 2", "not utf-8", "`encoding:`")),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_rows_stop_a_run(place: Place, name: str) -> None:
    content, says = ROWS[name]
    place.write("rows.jsonl", content)
    place.refused("run", "bad.yaml", says=("rows.jsonl", *says), drafts=True)


@pytest.mark.parametrize("name", ROWS)
def test_check_lists_bad_rows(place: Place, name: str) -> None:
    content, says = ROWS[name]
    place.write("rows.jsonl", content)
    before = place.state()
    status, out, err = place.call("check", "rows.jsonl")
    assert status == 2
    assert len((out + err).splitlines()) <= SCREEN
    status, out, _ = place.call("check", "rows.jsonl", "--json")
    assert status == 2
    problems = json.loads(out)["problems"]
    row = next((int(word[4:]) for word in says if word.startswith("row ")), 0)
    assert {problem["row"] for problem in problems} == {row}
    assert all(problem[key] for problem in problems for key in ("field", "problem", "remedy"))
    assert place.state() == before


def test_a_missing_file_of_rows(place: Place) -> None:
    place.refused("check", "gone.jsonl", says=("gone.jsonl",))
    place.refused("tokens", "k2", "gone.jsonl", says=("gone.jsonl",))
    place.refused("data", "stats", "gone.jsonl", says=("gone.jsonl",))


@pytest.mark.parametrize("name", ["no JSON", "an answer without text", "NUL", "a lone surrogate", "empty file"])
@pytest.mark.parametrize("words", [("data", "stats"), ("tokens", "k2")])
def test_other_verbs_refuse_the_same_rows(place: Place, name: str, words: tuple[str, ...]) -> None:
    content, says = ROWS[name]
    place.write("rows.jsonl", content)
    row = ["--row", "2"] if words[0] == "tokens" and "row 2" in says else []
    place.refused(*words, "rows.jsonl", *row, says=("rows.jsonl", *says))


# Rows that are too long

LONG = dialogue("user: Hi.", "assistant: Yes.", "user: And?", "assistant: " + "word " * 200)
TOO_LONG = dialogue("user: Hi.", "assistant: " + "word " * 200)


@pytest.mark.parametrize(
    ("policy", "counted"),
    [
        ("truncate", {"rows": 4, "kept": 3, "truncated": 2, "dropped_overlong": 1, "split": 0}),
        ("drop", {"rows": 4, "kept": 1, "truncated": 0, "dropped_overlong": 3, "split": 0}),
        ("split", {"rows": 4, "kept": 3, "truncated": 1, "dropped_overlong": 1, "split": 1}),
        ("", {"rows": 4, "kept": 3, "truncated": 1, "dropped_overlong": 1, "split": 1}),
    ],
    ids=lambda value: (value or "default") if isinstance(value, str) else "",
)
def test_rows_longer_than_the_sequence_are_counted_in_the_record(place: Place, policy: str, counted: dict[str, int]) -> None:
    place.write("bad.yaml", TRAINED)
    place.write("rows.jsonl", "\n".join([json.dumps(GOOD), LONG, TOO_LONG, json.dumps({"text": "word " * 200})]))
    status, out, err = place.call("run", "bad.yaml", *(("--set", f"chat.overlong={policy}") if policy else ()), "--json")
    assert status == 0, err
    chat = json.loads(out)["stages"][-1]
    found = Artifact(place.store.artifacts / chat["key"]).record.metrics["sources"]["mine"]
    assert {name: found[name] for name in counted} == counted
    assert f"{counted['dropped_overlong']} were left out, being longer than 32 tokens" in err
    assert ("lost their end" in err) == (counted["truncated"] > 0)


def test_rows_of_which_none_fits_are_refused(place: Place) -> None:
    place.write("bad.yaml", TRAINED)
    place.write("rows.jsonl", TOO_LONG)
    assert place.call("run", "bad.yaml", "--until", "tokenizer")[0] == 0
    says = ("no row fits into 32 tokens (1 of 1", "rows.jsonl", "raise the sequence length")
    place.refused("run", "bad.yaml", says=says, drafts=True)


# Training


@pytest.fixture
def model(place: Place) -> Path:
    """A checkpoint's folder: a model of 300 ids and 64 positions."""
    place.write("bad.yaml", TRAINED.replace("intermediate_size: 16", "intermediate_size: 16, context: 64"))
    # Many words, so that the tokenizer finds as many pairs to merge as it is asked for.
    words = ["".join(chr(97 + (i * i * 7 + i * j * 3 + j) % 26) for j in range(5)) for i in range(120)]
    pairs = zip(words[::2], words[1::2], strict=True)
    place.write("rows.jsonl", "".join(dialogue(f"user: {a}?", f"assistant: {a} {b}.") + "\n" for a, b in pairs))
    status, out, err = place.call("run", "bad.yaml", "--json")
    assert status == 0, err
    return shutil.copytree(Artifact(place.store.artifacts / json.loads(out)["stages"][-1]["key"]).path("model"), place.folder / "model")


def started_from(model: Path, *more: str) -> list[str]:
    """Options of a run that trains `model` further."""
    return [word for pair in (f"chat.checkpoint={model}", "chat.model=null", *more) for word in ("--set", pair)]


def test_a_sequence_longer_than_the_models_positions(place: Place, model: Path) -> None:
    says = ("sequence_length (65)", "64")
    place.refused("run", "bad.yaml", "--set", "chat.sequence_length=65", says=says[:1])
    place.refused("run", "bad.yaml", *started_from(model, "chat.sequence_length=65"), says=(*says, "set it to 64 or less"), drafts=True)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused_and_one_with_fewer_is_fine(place: Place, model: Path) -> None:
    larger, smaller = (started_from(model, f"tokenizer.vocab_size={size}") for size in (320, 290))
    assert place.call("run", "bad.yaml", *larger, "--until", "tokenizer")[0] == 0
    says = ("the tokenizer has 320 ids", "only 300", "belongs to this model")
    place.refused("run", "bad.yaml", *larger, says=says, drafts=True)
    status, _, err = place.call("run", "bad.yaml", *smaller)
    assert status == 0, err


def test_a_checkpoint_whose_weights_have_another_shape(place: Place, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 24}))
    place.refused("run", "bad.yaml", *started_from(model), says=("is of shape (16, 16)", "asks for (16, 24)", str(model)), drafts=True)


def test_rows_of_which_none_has_a_supervised_token(place: Place, model: Path) -> None:
    """The only answer that counts does not fit, and is cut off."""
    question, answer = GOOD["messages"]
    silent = {"messages": [question, {**answer, "weight": 0}, *json.loads(TOO_LONG)["messages"]]}
    place.write("silent.jsonl", json.dumps(silent))
    says = ("no row has a token to learn (1 of 1", "silent.jsonl", "cairn tokens")
    place.refused("run", "bad.yaml", *started_from(model, "chat.data=[{name: mine, path: silent.jsonl}]"), says=says, drafts=True)


def test_a_disk_too_small_for_the_planned_checkpoints(place: Place, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = started_from(model, "chat.steps=100000", "chat.checkpoints={every: 1}")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 50_000_000))
    place.refused("run", "bad.yaml", *many, says=("the disk has too little room", "are needed, 50.0 MB are free", "--store"), drafts=True)


# Stores


def obedient(*words: str) -> subprocess.CompletedProcess[str]:
    """Call `cairn` without the superuser's right to write where permissions forbid it."""

    def give_up() -> None:
        if os.geteuid() == 0:
            drop, dac_override = 24, 1
            assert ctypes.CDLL(None).prctl(drop, dac_override, 0, 0, 0) == 0

    command = [sys.executable, "-m", "cairn", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=give_up)


@pytest.mark.skipif(sys.platform != "linux", reason="the superuser's rights are given up in Linux's way")
def test_a_read_only_store(place: Place) -> None:
    place.write("more.jsonl", json.dumps({"text": "Another text."}) + "\n")
    folders = [p for p in place.store.root.rglob("*") if p.is_dir()]
    before = place.state()
    try:
        for path in [place.store.root, *folders]:
            path.chmod(0o555)
        done = obedient("run", "bad.yaml")
        assert done.returncode == 2, done.stderr
        for words in ("the store cannot be written", str(place.store.root), "--store"):
            assert words in done.stderr
        assert len(done.stderr.splitlines()) <= SCREEN
        # What is in it can still be read.
        assert obedient("verify", "bad/rows").returncode == 0
    finally:
        for path in [place.store.root, *folders]:
            path.chmod(0o755)
    assert place.state() == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    place.write("more.jsonl", json.dumps({"text": "Another text."}) + "\n")
    real = os.fsync

    def full(handle: int) -> None:
        if "/drafts/" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        err = place.refused("run", "bad.yaml", says=("the disk is full", str(place.store.root), "free some space"), drafts=True)
    assert "is kept" in err
    assert place.call("run", "bad.yaml")[0] == 0, "with room again, the same command ends well"


@pytest.mark.parametrize("file", ["mine.train.jsonl", "summary.json", "record.json"])
def test_one_flipped_byte_is_named_and_not_built_upon(place: Place, file: str) -> None:
    artifact = Artifact(place.store.artifacts / place.store.named()["bad"]["rows"])
    path = artifact.path(file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    status, out, err = place.call("verify", "bad/rows", "--json")
    assert status == 2, err
    assert [Path(one["path"]).name for one in json.loads(out)["differs"]] == [file]
    assert file in place.call("verify", "bad/rows")[1]
    if file != "mine.train.jsonl":
        return
    later = RECIPE + "  again:\n    kind: data\n    sources: [{name: mine, stage: rows, file: mine.train.jsonl}]\n"
    place.write("bad.yaml", later)
    place.refused("run", "bad.yaml", says=("'rows' is damaged", str(path)), drafts=True)


def test_two_runs_on_one_store_at_once_both_end_right(place: Place) -> None:
    place.write("rows.jsonl", "".join(json.dumps({"text": f"Text {i} of many."}) + "\n" for i in range(2000)))
    command = [sys.executable, "-m", "cairn", "run", "bad.yaml", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    stages = [json.loads(out)["stages"][0] for out, _ in ends]
    assert stages[0]["digest"] == stages[1]["digest"]
    assert sorted(stage["status"] for stage in stages) in (["in store", "ran"], ["in store", "in store"])
    assert place.call("verify", "bad/rows")[0] == 0
    assert not [p for p in place.store.drafts.rglob("*") if p.is_file() and p.stat().st_size]


# Checkpoints


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_and_never_opened(place: Place, name: str) -> None:
    place.write("bad.yaml", TRAINED)
    status, out, err = place.call("run", "bad.yaml", "--json")
    assert status == 0, err
    model = place.folder / "model"
    shutil.copytree(Artifact(place.store.artifacts / json.loads(out)["stages"][-1]["key"]).path("model"), model)
    (model / "model.safetensors").unlink()
    # Unpickling this would write a file.
    (model / name).write_bytes(b"cbuiltins\nexec\n(S\"open('ran', 'w')\"\ntR.")
    says = ("pickled", name, str(model), "safetensors")
    place.refused("chat", str(model), "--once", "Hi", says=says)
    place.refused("generate", str(model), "--in", "rows.jsonl", "--out", "out.jsonl", says=says)
    checkpoint: list[Any] = [f"chat.checkpoint={model}", "chat.model=null"]
    words = [word for override in checkpoint for word in ("--set", override)]
    place.refused("run", "bad.yaml", *words, says=says, drafts=True)
    assert not (place.folder / "ran").exists()
