"""`cairn export`, from the outside: what is written, what is left out, what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cairn.cli.main import main
from cairn.ledger.record import Record, hash_outputs, outputs_digest
from cairn.ledger.store import Store

KEY = "a" * 64
FILES = {
    "model/config.json": b"{}",
    "model/model.safetensors": b"weights" * 1000,
    "model/tokenizer.json": b"{ }",
    "model/tokenizer_config.json": b'{"chat_template": "x"}',
    "metrics.jsonl": b"{}\n",
}


def commit(store: Store, files: dict[str, bytes], kind: str = "train") -> Path:
    """An artifact `small/chat` with these files."""
    draft = store.draft(KEY)
    for path, data in files.items():
        (draft / path).parent.mkdir(parents=True, exist_ok=True)
        (draft / path).write_bytes(data)

    def record(folder: Path) -> Record:
        outputs, logs = hash_outputs(folder)
        facts: dict[str, Any] = {"recipe": "small", "command": "", "config": {}, "inputs": {}, "files": {}, "code": "", "environment": {}}
        more: dict[str, Any] = {"seed": 0, "outputs": outputs, "logs": logs, "metrics": {}, "times": {}}
        return Record(kind=kind, name="chat", key=KEY, digest=outputs_digest(outputs), **facts, **more)

    folder = store.commit(KEY, record).folder
    store.name("small", "chat", KEY)
    return folder


def export(store: Store, *words: str) -> int:
    return main(["export", *words, "--store", str(store.root)])


def present(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_trained_model_alone_byte_for_byte(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(store, FILES)
    target = tmp_path / "new" / "model"
    assert export(store, "small/chat", str(target), "--to", "hf", "--json") == 0
    wanted = {path.removeprefix("model/"): data for path, data in FILES.items() if path.startswith("model/")}
    assert present(target) == wanted
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(target)
    assert {f["path"]: f["sha256"] for f in told["files"]} == {p: hashlib.sha256(d).hexdigest() for p, d in wanted.items()}
    assert told["bytes"] == sum(map(len, wanted.values()))
    assert told["template"] is True
    assert [p.name for p in target.parent.iterdir()] == ["model"], "nothing is left aside"


def test_an_edited_export_leaves_the_artifact_whole(store: Store, tmp_path: Path) -> None:
    folder = commit(store, FILES)
    assert export(store, "small/chat", str(tmp_path / "out")) == 0
    with open(tmp_path / "out" / "config.json", "r+b") as file:
        file.write(b"[]")
    assert (folder / "model" / "config.json").read_bytes() == b"{}"


def test_a_release_is_exported_whole_but_for_its_record(store: Store, tmp_path: Path) -> None:
    release = {path.removeprefix("model/"): data for path, data in FILES.items() if path.startswith("model/")}
    release |= {"README.md": b"# card", "evaluations/eval/samples/pebble.jsonl": b"{}\n", "lineage.json": b"[]"}
    commit(store, release, kind="card")
    assert export(store, "small/chat", str(tmp_path / "out")) == 0
    assert present(tmp_path / "out") == release


def test_a_folder_gives_what_belongs_to_a_model(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "checkpoint"
    wanted = {"config.json": b"{}", "model.safetensors": b"w", "tokenizer.json": b"{}", "LICENSE": b"free", "README.md": b"#"}
    extra = {"pytorch_model.bin": b"pickle", "modeling_x.py": b"code", ".git/HEAD": b"x", "checkpoint-5/model.safetensors": b"w"}
    for path, data in {**wanted, **extra}.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)
    (tmp_path / "out").mkdir()
    assert export(store, str(source), str(tmp_path / "out"), "--json") == 0
    assert present(tmp_path / "out") == wanted
    out, err = capsys.readouterr()
    assert json.loads(out)["left_out"] == ["checkpoint-5", "modeling_x.py", "pytorch_model.bin"]
    assert "no chat template" in err


def test_nothing_is_overwritten(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(store, FILES)
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    assert export(store, "small/chat", str(target)) == 2
    assert "not empty" in capsys.readouterr().err
    assert present(target) == {"thesis.txt": b"years of work"}
    assert export(store, "small/chat", str(target / "thesis.txt")) == 2
    assert export(store, "small/chat", str(store.artifacts / KEY / "model" / "copy")) == 2
    assert "outside of" in capsys.readouterr().err


def test_a_damaged_artifact_is_not_exported(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = commit(store, FILES)
    weights = folder / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    assert export(store, "small/chat", str(tmp_path / "out")) == 2
    assert str(weights) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    weights.unlink()
    assert export(store, "small/chat", str(tmp_path / "out")) == 2
    assert "missing" in capsys.readouterr().err


def test_a_bad_copy_is_seen(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    commit(store, FILES)

    def lossy(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:-1])

    monkeypatch.setattr("shutil.copyfile", lossy)
    assert export(store, "small/chat", str(tmp_path / "out")) == 2
    assert "a copy has other bytes" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        (FILES, ["small/chat", "out", "--to", "hff"], "did you mean 'hf'"),
        (FILES, ["small/chot", "out"], "small/chat"),
        ({"rows.jsonl": b"{}"}, ["small/chat", "out"], "holds no model"),
        ({k: v for k, v in FILES.items() if "tokenizer" not in k}, ["small/chat", "out"], "no tokenizer"),
        ({k: v for k, v in FILES.items() if "safetensors" not in k}, ["small/chat", "out"], "no weights"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes], words: list[str], message: str,
) -> None:  # fmt: skip
    commit(store, files)
    monkeypatch.chdir(tmp_path)
    assert export(store, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_named(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / name).write_text("{}")
    assert export(store, str(tmp_path / "old"), str(tmp_path / "out")) == 2
    assert "pickled (pytorch_model.bin)" in capsys.readouterr().err
