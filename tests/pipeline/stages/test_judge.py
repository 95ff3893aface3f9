"""Best of N by a judge, through the command line: at an endpoint and on this machine; failures lose nothing, and a replay asks nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cairn.cli.main import main
from cairn.evaluate import endpoint
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.resolve import resolve_artifact

from ...evaluate.false_judge import judging
from .small import head

BEST = """\
  best:
    kind: best_of
    model: base
    judge: {JUDGE}
    answers: 3
    pairs: worst
    unfinished: keep
    sampling: {temperature: 2.0, max_new_tokens: 8}
    data: [{name: q, path: talk.jsonl, limit: 8}]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """recipe(judge) writes the recipe with this judge, and its rows."""
    both = [({"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": "yes " * (i % 3 + 1)}) for i in range(30)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in both))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)

    def write(judge: str) -> str:
        (tmp_path / "r.yaml").write_text(head(steps=2, context=1536) + BEST.replace("{JUDGE}", judge))
        return "r.yaml"

    return write


def at(server, more=""):
    return f"{{endpoint: '{server.address}', name: wise, timeout: 30{more}}}"


def run(path, status=0, *words):
    assert main(["run", path, "--store", "one", *words]) == status


def best() -> Artifact:
    return resolve_artifact("small/best", Store(Path("one")))


def lines(name):
    return [json.loads(line) for line in best().path(name).read_text().splitlines()]


def by_length(text, number):
    """The longer the answer, the better."""
    answer = text.partition("<answer>\n")[2].partition("\n</answer>")[0]
    return f"Fine. [[{min(10, 1 + len(answer) / 10):.2f}]]"


def test_a_judges_ratings_become_pairs_and_a_replay_asks_nobody(recipe, capsys):
    with judging(by_length) as server:
        run(recipe(at(server)))
        asked = len(server.asked)
        samples = lines("samples.jsonl")
        assert len(samples) == 24
        assert 0 < asked <= 24
    for sample in samples:
        length = len(sample["messages"][-1]["content"])
        assert sample["meta"]["score"] == pytest.approx(min(10, 1 + length / 10), abs=0.006)
    pairs = lines("pairs.jsonl")
    assert pairs
    for pair in pairs:
        assert len(pair["chosen"][0]["content"]) > len(pair["rejected"][0]["content"])
    assert best().record.metrics["unparsed"] == 0
    # The server is gone.
    assert main(["verify", "small/best", "--replay", "--store", "one"]) == 0, capsys.readouterr().out


def test_nonsense_is_counted_and_never_a_zero(recipe, capsys):
    def reply(text, number):
        about = text.partition("<dialogue>\n")[2].partition("\n</dialogue>")[0]
        # The reminder is no question: who spoke nonsense goes on with it.
        return "I had rather not." if not about or about.endswith("Say 3") else by_length(text, number)

    with judging(reply) as server:
        run(recipe(at(server, ", tolerate: 0.2, retries: 1")))
    told = " ".join(capsys.readouterr().err.split())
    assert "no rating for 3 of 24 answers (0 got no reply), such as “I had rather not.”" in told
    metrics = best().record.metrics
    assert (metrics["unparsed"], metrics["unanswered"], metrics["without_candidate"]) == (3, 0, 1)
    scores = [sample["meta"]["score"] for sample in lines("samples.jsonl")]
    assert scores.count(None) == 3
    assert 0.0 not in scores
    assert metrics["mean_score"] >= 1


def test_a_judge_that_stops_loses_nothing(recipe, capsys):
    with judging(lambda text, number: by_length(text, number) if number <= 6 else 500) as server:
        path = recipe(at(server, ", retries: 0, parallel: 1"))
        run(path, 2)
        told = " ".join(capsys.readouterr().err.split())
        assert "the judge gave no reply to 10 dialogues in a row" in told
        assert "run the same command again" in told
        assert "Traceback" not in told
        answered, server.asked[:], server.reply = server.asked[:6], [], by_length
        run(path)
        assert server.asked
        assert not [asked for asked in server.asked if asked in answered]
    assert best().record.metrics["unparsed"] == 0


def test_a_judge_on_this_machine(recipe, capsys):
    """A model this small gives no rating at all: that is said, and so it is where some are tolerated."""
    run(recipe("{model: base, max_new_tokens: 4, retries: 1}"), 2)
    assert "the judge gave no rating for 24 of 24 answers" in " ".join(capsys.readouterr().err.split())
    run(recipe("{model: base, max_new_tokens: 4, retries: 0, tolerate: 1.0}"), 2)
    assert "gave no rating for any answer" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("judge", "says"), [
    ("{endpoint: 'http://127.0.0.1:9/v1', name: wise, retries: 0}", "the judge does not answer"),
    ("{endpoint: 'http://127.0.0.1:9/v1'}", "endpoint and name go together"),
    ("{endpoint: '127.0.0.1:9', name: wise}", "no address of a server"),
    ("{model: bas}", "did you mean 'base'"),
    ("{checkpoint: nowhere}", "no such file or folder: nowhere"),
    ("{model: base}, metric: exact", "either reward, reward_checkpoint, metric or judge"),
    ("{model: base, scal: [1, 5]}", "did you mean 'scale'"),
])  # fmt: skip
def test_a_judge_that_cannot_be_is_told_before_anything_is_generated(recipe, capsys, judge, says):
    path = recipe(judge.replace(", metric", "\n    metric"))
    run(path, 2)
    told = " ".join(capsys.readouterr().err.split())
    assert says in told
    assert "do: " in told
    assert not list(Path("one").glob("drafts/*/samples.jsonl"))


def test_an_endpoint_without_the_model_is_told_before_anything_is_generated(recipe, capsys):
    with judging(by_length) as server:
        server.models = {"data": [{"id": "wiser"}]}
        run(recipe(at(server)), 2)
        assert not server.asked
    told = " ".join(capsys.readouterr().err.split())
    assert "the endpoint has no model 'wise'" in told
    assert "did you mean 'wiser'?" in told


def test_a_folder_may_answer_in_place_of_a_stage(recipe):
    with judging(by_length) as server:
        path = recipe(at(server))
        run(path, 0, "--until", "base")
        model = resolve_artifact("small/base", Store(Path("one"))).path("model")
        Path("r.yaml").write_text(Path("r.yaml").read_text().replace("model: base\n", f"checkpoint: {model}\n"))
        run(path)
    assert len(lines("samples.jsonl")) == 24


@pytest.mark.parametrize(("row", "says"), [
    ({"messages": [{"role": "user", "content": "word " * 1600}, {"role": "assistant", "content": "yes"}], "id": "far"},
     ["tokens, and the model's context 1536", "q, row far", "shorten it"]),
    ({"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "yes"}], "attributes": {"humor": 1}, "id": "odd"},
     ["unknown attribute 'humor'", "q, row odd"]),
    ({"messages": [{"role": "user", "content": "Say"}], "id": "bare"}, ["no expected answer", "q, row bare"]),
    ({"text": "Say", "id": "plain"}, ["plain text asks nothing", "q, row plain"]),
])  # fmt: skip
def test_a_prompt_that_cannot_be_asked_is_told_before_any_is_answered(recipe, capsys, row, says):
    path = recipe("")
    text = Path("r.yaml").read_text().replace("    judge: \n", "    metric: exact\n")
    Path("r.yaml").write_text(text.replace("path: talk.jsonl, limit: 8", "path: odd.jsonl"))
    good = Path("talk.jsonl").read_text().splitlines()[0]
    Path("odd.jsonl").write_text(f"{good}\n{json.dumps(row)}\n")
    run(path, 2)
    told = " ".join(capsys.readouterr().err.split())
    assert all(words in told for words in says), told
    assert "answers/s" not in told


def test_prompts_need_no_answer_and_one_of_calls_is_right_too(recipe, capsys):
    """Rows that only ask were refused: there was nothing to learn from them. And what is right had to be text."""
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    asked = [{"role": "user", "content": "Say"}]
    rows = [{"messages": asked}, {"messages": [*asked, {"role": "assistant", "tool_calls": [call]}]}]
    Path("bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with judging(by_length) as server:
        Path(recipe(at(server))).write_text(Path("r.yaml").read_text().replace("path: talk.jsonl, limit: 8", "path: bare.jsonl"))
        run("r.yaml")
    assert {sample["messages"][0]["content"] for sample in lines("samples.jsonl")} == {"Say"}
    calls = Path("r.yaml").read_text().replace(f"judge: {at(server)}", "metric: calls").replace("bare.jsonl", "calls.jsonl")
    Path("calls.jsonl").write_text(json.dumps(rows[1]) + "\n")
    Path("r.yaml").write_text(calls)
    run("r.yaml", 2)
    # No answer is a call, so that all are worth the same; the row itself was understood.
    assert "all have the same score" in " ".join(capsys.readouterr().err.split())
