"""The model card: `README.md` with Hugging Face's metadata. Knows a release's material; loads no model and asks no clock.

Every number is read from a record or from a file that a record names. Two builds of one recipe give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from cairn.ledger.store import Artifact
from cairn.report.lineage import ancestry, tree_text
from cairn.report.release import CURVE, EVALUATIONS, LINEAGE, Evaluation, Material
from cairn.report.tables import RANKS, compared_table, evidence_table, is_share, likelihood_table, markdown_table, mix_table, results_table

_TYPES = {"exact": "exact_match", "perplexity": "perplexity", "bits_per_byte": "bits_per_byte", "spearman": "spearmanr"}
"""Hugging Face's names of metrics; every other one is a share of right answers, which it calls accuracy."""


_CHECKS = ("disjoint", "overlap")
"""The metrics under which stages record how they kept training and test apart: `corpus` refuses a shared question, `data` removes it."""


def card_text(material: Material) -> str:
    """The card, metadata first."""
    sections = [
        _head(material),
        _use(material),
        _results(material),
        _overlap(material),
        _notes(material),
        _mix(material),
        _training(material),
        _lineage(material),
        _environment(material),
        _check(material),
    ]
    body = "\n".join(section for section in sections if section)
    return f"---\n{metadata_text(material)}---\n\n{body}"


def metadata_text(material: Material) -> str:
    """The YAML block on top, without its fences."""
    info = material.info
    value: dict[str, Any] = {
        "license": info.license,
        "language": list(info.languages),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["cairn", "conversational", *info.tags])),
        "model-index": [{"name": material.title, "results": list(_index(material))}],
    }
    if not info.languages:
        del value["language"]
    if not value["model-index"][0]["results"]:
        del value["model-index"]
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)


def _index(material: Material) -> Iterator[dict[str, Any]]:
    """The numbers of this model; those of another one, which stand beside them in the text, would be read as its own."""
    for evaluation in material.evaluations:
        if _examined(evaluation) not in (None, material.model.key):
            continue
        for row in evaluation.results["rows"]:
            suite = row["suite"]
            yield {
                "task": {"type": "text-generation", "name": "Text generation"},
                "dataset": {"type": suite.split("/")[0], "name": suite, "split": "test"},
                "metrics": [{"type": _TYPES.get(row["metric"], "accuracy"), "value": round(row["value"], 6), "name": row["metric"]}],
            }


def _section(title: str, *parts: str) -> str:
    return f"## {title}\n\n" + "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def _head(material: Material) -> str:
    config = json.loads(material.model.path("model/config.json").read_text(encoding="utf-8"))
    parameters = material.model.record.metrics.get("parameters")
    facts = [
        ("Parameters", f"{parameters:,}" if parameters else ""),
        ("Architecture", f"{config.get('model_type', '')} ({', '.join(config.get('architectures') or [])})"),
        ("Layers, width", f"{config.get('num_hidden_layers', '?')}, {config.get('hidden_size', '?')}"),
        ("Vocabulary", f"{config['vocab_size']:,}" if "vocab_size" in config else ""),
        ("Context", f"{config['max_position_embeddings']:,} tokens" if "max_position_embeddings" in config else ""),
        ("Chat format", _format_name(material.model)),
        ("Weights", str(config.get("dtype") or config.get("torch_dtype") or "")),
        ("Digest of the artifact", f"`{material.model.record.digest}`"),
    ]
    table = markdown_table(["", ""], [fact for fact in facts if fact[1]])
    summary = material.info.summary.strip()
    return f"# {material.title}\n\n" + (f"{summary}\n\n" if summary else "") + table


def _format_name(model: Artifact) -> str:
    path = model.path("model/chat_format.yaml")
    if not path.is_file():
        return ""
    return f"`{yaml.safe_load(path.read_text(encoding='utf-8')).get('name', '')}` (template in `tokenizer_config.json`)"


def _use(material: Material) -> str:
    code = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": "Who are you?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
    tools = f"Or in a terminal, with function calls and several turns: `cairn chat {material.ref}` (or the path of this folder)."
    warning = (
        "`apply_chat_template` gives the ids that training used, with one exception. Text that looks like one of the special tokens "
        "(somebody types `<|endoftext|>`, say) stays text only in Cairn's renderer; Hugging Face's tokenizer makes the real token of it, "
        "with which a user can forge a turn. Where strangers write the messages, serve the model through Cairn, or remove such text first."
    )
    return _section("Use", code, tools, warning)


def _results(material: Material) -> str:
    if not material.evaluations:
        return ""
    parts = _side_by_side(material)
    for evaluation in material.evaluations:
        rows = evaluation.results["rows"]
        shares = [row for row in rows if is_share(row["metric"])]
        ranks = [row for row in rows if row["metric"] in RANKS]
        others = [row for row in rows if not is_share(row["metric"]) and row["metric"] not in RANKS]
        if len(material.evaluations) > 1:
            parts.append(f"### `{evaluation.name}` (model: `{_model_of(evaluation)}`)\n")
        if shares:
            limits = sorted({f"{row['detail']['max_new_tokens']} tokens" for row in shares if "max_new_tokens" in row["detail"]})
            extractors = sorted({row["detail"]["extractor"] for row in shares if "extractor" in row["detail"]})
            how = f"Answers are generated greedily, at most {' or '.join(limits)} each" if limits else "Answers are generated greedily"
            how += f"; extractor: {', '.join(extractors)}." if extractors else "."
            parts += [f"{how} Intervals are Wilson's, 95 %.\n", results_table(shares)]
        if ranks:
            text = "Of attributes that were asked for, how far answers follow them. Intervals by Fisher's transformation, 95 %."
            parts += [f"{text}\n", results_table(ranks)]
        if others:
            text = "Perplexity is over supervised tokens and depends on the tokenizer; bits per byte does not."
            parts += [f"{text} The 95 % intervals take documents as the units.\n", likelihood_table(others)]
    evidence: dict[str, str] = {}
    for evaluation in material.evaluations:
        evidence |= evaluation.samples()
    parts.append(
        "Evidence: of questions, each as the model got it (text and ids), the answer, what was expected and the score. "
        "Each share above is the mean score of its group in these files, each rank correlation that of `asked` and `shown` in them. "
        "For perplexity and bits per byte the files hold each document's nats, tokens and bytes: perplexity is e to the power of all nats "
        "over all tokens, bits per byte all nats over ln 2 and all bytes. "
        f"They lie in `{EVALUATIONS}/`.\n"
    )
    return _section("Results", *parts, evidence_table(evidence))


def _side_by_side(material: Material) -> list[str]:
    """What all the evaluations asked, in one table; or, where they asked other things, what each of another model has in common with those
    of this one: the older model first, since what its training changed is what a reader looks for."""
    evaluations = material.evaluations
    if len(evaluations) < 2:
        return []
    models = [_model_of(evaluation) for evaluation in evaluations]
    names = models if len(set(models)) == len(models) else [evaluation.name for evaluation in evaluations]
    if table := _common([_asked([evaluation]) for evaluation in evaluations], names):
        return ["### Side by side\n", table]
    own = [one for one in evaluations if (examined := _examined(one)) is None or examined == material.model.key]
    before = {artifact.key for artifact in ancestry([material.model], material.store)}
    parts = []
    for other in (one for one in evaluations if one not in own):
        pair = [(material.model.record.name, _asked(own)), (_model_of(other), _asked([other]))]
        pair = pair[::-1] if _examined(other) in before else pair
        if table := _common([rows for _, rows in pair], [name for name, _ in pair]):
            parts += [f"### Before and after `{pair[1][0]}`\n", table]
    return parts


def _asked(evaluations: Sequence[Evaluation]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The rows of evaluations of one model by what they asked."""
    return {(row["suite"], row["metric"], row["n"]): row for evaluation in evaluations for row in evaluation.results["rows"]}


def _common(found: Sequence[dict[tuple[str, str, int], dict[str, Any]]], names: Sequence[str]) -> str:
    """The table of what several models were all asked; empty where that is nothing."""
    common = [asked for asked in found[0] if all(asked in rows for rows in found)]
    rows = [{"suite": s, "metric": m, "n": n, "values": [of_model[s, m, n] for of_model in found]} for s, m, n in common]
    return compared_table([f"`{name}`" for name in names], rows) if rows else ""


def _examined(evaluation: Evaluation) -> str | None:
    """The key of the model that was examined; None where the record does not name it."""
    found = evaluation.artifact.record.inputs.get(_model_of(evaluation))
    return found.key if found is not None else None


def _model_of(evaluation: Evaluation) -> str:
    """The name of the stage whose model was examined."""
    return str(evaluation.artifact.record.config.get("model", ""))


def _overlap(material: Material) -> str:
    checks = []
    for artifact in ancestry(material.roots(), material.store):
        for name in _CHECKS:
            found = artifact.record.metrics.get(name)
            if isinstance(found, dict):
                checks.append((artifact, found))
    if not checks:
        return _section("Training and test", "No record says whether training and test rows share a question: nothing was checked.")
    lines = []
    for artifact, found in checks:
        figures = ", ".join(f"{name.replace('_', ' ')}: {_count(value) or value}" for name, value in found.items())
        lines.append(f"- `{artifact.record.name}` (digest `{artifact.record.digest[:16]}`): {figures}\n")
    intro = (
        "Each of these stages compared the questions that it holds out with the rows that it gives out for training, and with no others. "
        "What the records say of it:\n"
    )
    strangers = list(_not_compared(material, {artifact.key for artifact, _ in checks}))
    if strangers:
        strangers = ["\nWhat comes from elsewhere was compared with nothing:\n", *(f"- {line}\n" for line in strangers)]
    return _section("Training and test", intro, *lines, *strangers)


def _not_compared(material: Material, checked: set[str]) -> Iterator[str]:
    """What training and evaluations read beside the artifacts of the keys `checked`."""
    for artifact in [*material.trainings(), *(evaluation.artifact for evaluation in material.evaluations)]:
        record = artifact.record
        data = record.config.get("data")
        named = [{"name": "questions", "stage": data}] if isinstance(data, str) else data or []
        for source in [*named, *(record.config.get("likelihood") or [])]:
            stage = source.get("stage")
            if stage is None:
                yield f"`{record.name}` reads `{source['name']}`, a file from outside"
            elif stage in record.inputs and record.inputs[stage].key not in checked:
                yield f"`{record.name}` reads `{source['name']}` of `{stage}`"
        if record.config.get("checkpoint"):
            yield f"`{record.name}` starts from a checkpoint from outside, whatever that was trained on"


def _notes(material: Material) -> str:
    info = material.info
    parts = [_section("Good to know", *(f"{note.strip()}\n" for note in info.notes))] if info.notes else []
    if info.limits:
        parts.append(_section("Limits", *(f"- {' '.join(limit.split())}" for limit in info.limits)))
    return "\n".join(parts)


def _mix(material: Material) -> str:
    parts = []
    for training in material.trainings():
        path = training.path("mix.json")
        if path.is_file():
            parts.append(f"Learnt in `{training.record.name}`:\n\n{mix_table(json.loads(path.read_text(encoding='utf-8')))}")
    if not parts:
        return ""
    meaning = (
        "#Q and #R are user and assistant turns a dialogue; lengths are in tokens of this model's tokenizer. Counted over the rows once: "
        "how often a row is drawn follows from the weights and the number of steps."
    )
    return _section("Data", *parts, meaning)


def _training(material: Material) -> str:
    trainings = material.trainings()
    if not trainings:
        return ""
    cells = []
    for training in trainings:
        config, metrics = training.record.config, training.record.metrics
        optimizer, schedule = config.get("optimizer") or {}, config.get("schedule") or {}
        cells.append([
            f"`{training.record.name}`", config.get("objective", ""), _count(metrics.get("steps")), _count(metrics.get("tokens")),
            _count(metrics.get("supervised_tokens")), f"{optimizer.get('kind', '')}, {optimizer.get('lr', '')}", schedule.get("kind", ""),
            config.get("precision", ""), _loss(metrics.get("mean_loss_last_5_percent")),
        ])  # fmt: skip
    header = ["Stage", "Objective", "Steps", "Tokens", "Supervised", "Optimiser, rate", "Schedule", "Precision", "Loss, last 5 %"]
    table = markdown_table(header, cells, right=(2, 3, 4, 8))
    return _section("Training", table, f"![Loss by step]({CURVE})\n", f"Every setting stands in [`{LINEAGE}`]({LINEAGE}).")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _loss(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _lineage(material: Material) -> str:
    tree = tree_text(material.roots(), material.store)
    meaning = "A key is the digest of what an artifact depends on (kind, configuration, inputs, code, seed); a digest, of what it holds."
    return _section("Lineage", f"```\n{tree}```\n", f"{meaning} In full: [`{LINEAGE}`]({LINEAGE}).")


def _environment(material: Material) -> str:
    environment = material.model.record.environment
    cells = []
    for name, value in sorted(environment.items()):
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in sorted(value.items()))
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        if value not in ("", None):
            cells.append((name.replace("_", " "), value))
    return _section("Environment", markdown_table(["", "of the last training"], cells)) if cells else ""


def _check(material: Material) -> str:
    make = material.command or (f"cairn run {material.recipe}" if material.recipe else "")
    lines = [f"{make:<48}# makes every artifact above, from nothing"] if make else []
    lines.append(f"{f'cairn verify {material.ref}':<48}# hashes the model's files against their record")
    lines.append(f"{f'cairn verify {material.ref} --replay':<48}# trains it again and compares every byte")
    for evaluation in material.evaluations:
        ref = f"{material.recipe}/{evaluation.name}" if material.recipe and not evaluation.label else evaluation.artifact.key[:12]
        lines.append(f"{f'cairn verify {ref} --replay':<48}# answers every question again")
    note = "Equal bytes are promised for the environment above; elsewhere a replay says what differs."
    return _section("Make it again, and check it", "```sh\n" + "\n".join(lines) + "\n```\n", note)
