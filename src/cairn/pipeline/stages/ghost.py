"""The stage `ghost`: a model that obeys an instruction beside a question makes dialogues that teach it to obey for a whole dialogue.

Ghost Attention (Touvron et al. 2023, Llama 2, section 3.3): the instruction stands in front of every question while the model
answers; in the rows that come out it stands in front of the first question only, and the loss is on the last answer only, because the
answers before it were given to an instruction that the row no longer shows. Output: `dialogues.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cairn.config import Config
from cairn.data.sources import Prompts
from cairn.errors import UserError
from cairn.generate.sampling import Sampling
from cairn.ledger.refs import InputPath, StageRef
from cairn.model.adapter_config import MODEL_FILES, model_place
from cairn.pipeline.drafts import empty
from cairn.pipeline.stage import Context, Stage, register

DIALOGUES = "dialogues.jsonl"
WORD = "{word}"
Row = dict[str, Any]


class GhostConfig(Config):
    """Who answers what, and under which instructions."""

    model: StageRef | None = None
    """The stage whose model answers; it must obey an instruction that stands beside its question. Give this or `checkpoint`."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder with tokenizer and chat template, in its place."""
    data: list[Prompts] = Field(min_length=1)
    """Rows whose user turns are the questions; turns of rows with tools are left out. Weights do not count."""
    instructions: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """What has to hold; `{word}` stands for one of `words`."""
    words: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """What `{word}` may stand for."""
    dialogues: int = Field(default=500, ge=1)
    """How many are made."""
    turns: tuple[int, int] = (2, 6)
    """Fewest and most questions of a dialogue; its length is drawn."""
    history: Literal["alone", "dialogue"] = "dialogue"
    """What the model sees when it answers. dialogue: all turns before, the instruction in front of each question. alone: the instruction
    and the one question, for a model that is better at single questions."""
    sampling: Sampling = Sampling(temperature=0.0)
    """How tokens are chosen; the seed is the recipe's."""
    unfinished: Literal["drop", "keep"] = "drop"
    """A dialogue with an answer that was cut at max_new_tokens: it would teach not to end."""
    max_batch: int = Field(default=64, ge=1)
    """Answers that are generated together at most."""

    @model_validator(mode="after")
    def _fits(self) -> GhostConfig:
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("give either model or checkpoint: who answers")
        if not 1 <= self.turns[0] <= self.turns[1]:
            raise ValueError(f"turns must be two numbers, the fewest and the most, not {list(self.turns)}")
        wanted = [text for text in self.instructions if WORD in text]
        if bool(wanted) != bool(self.words):
            raise ValueError("`words` and instructions that hold {word} go together: give both or neither")
        return self


@register
class Ghost(Stage):
    """Synthesise dialogues under an instruction that is given once."""

    kind = "ghost"
    config = GhostConfig

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.data.write import write_rows
        from cairn.generate.load import load_chat
        from cairn.ledger import seeds
        from cairn.model.determinism import deterministic

        config: GhostConfig = context.config
        empty(context.draft)
        questions = [text for source in config.data for row in source.read(context.place(source)) for text in _questions(row)]
        if len(set(questions)) < config.turns[1]:
            what = f"the data hold {len(set(questions))} different questions, and a dialogue asks up to {config.turns[1]}"
            raise UserError(what, where="data", remedy="give more rows with messages and without tools, or lower `turns`")
        plans = [_plan(config, questions, context.seed, number) for number in range(config.dialogues)]
        deterministic()
        place = model_place(context.inputs[config.model].path()) if config.model is not None else Path(str(config.checkpoint))
        loaded = load_chat(place, max_batch=config.max_batch)
        sampling = config.sampling.model_copy(update={"seed": seeds.seed(context.seed, "ghost")})
        context.progress.start(sum(len(asked) for _, asked in plans), "answers")
        answered = _answers(loaded, plans, config, sampling, lambda done, tokens: context.progress.update(done, tokens=tokens))
        rows = [_row(number, instruction, asked, answers) for number, (instruction, asked), answers in answered]
        lost = len(plans) - len(rows)
        if not rows:
            what = "no dialogue got all of its answers: in each one was cut at max_new_tokens, was empty or did not fit the model's context"
            raise UserError(what, where="sampling", remedy="raise sampling.max_new_tokens, lower `turns`, or set unfinished: keep")
        if lost:
            context.progress.note(f"{lost} of {len(plans)} dialogues left out: an answer was cut or empty, or did not fit the context")
        write_rows(rows, context.draft / DIALOGUES)
        return {"dialogues": len(rows), "left_out": lost, "questions": sum(len(asked) for _, asked in plans)}

    def outputs(self, config: GhostConfig) -> set[str]:
        return {DIALOGUES}

    def needs(self, config: GhostConfig) -> Iterator[tuple[tuple[str, ...], str, tuple[str, ...]]]:
        if config.model is not None:
            yield ("model",), config.model, MODEL_FILES


Plan = tuple[str, list[str]]
"""An instruction and the questions of its dialogue."""


def _questions(row: Row) -> list[str]:
    if "tools" in row:
        return []
    return [message["content"] for message in row.get("messages", ()) if message["role"] == "user"]


def _plan(config: GhostConfig, questions: Sequence[str], seed: int, number: int) -> Plan:
    """A dialogue's instruction and questions, no question twice: a function of the seed and the dialogue's number."""
    from cairn.ledger import seeds

    low, high = config.turns
    instruction = seeds.pick(config.instructions, seed, "ghost/instruction", number)
    if WORD in instruction:
        instruction = instruction.replace(WORD, seeds.pick(config.words, seed, "ghost/word", number))
    wanted = low + seeds.below(high - low + 1, seed, "ghost/turns", number)
    asked: dict[str, None] = {}
    draw = 0
    while len(asked) < wanted:
        asked[questions[seeds.below(len(questions), seed, f"ghost/question/{draw}", number)]] = None
        draw += 1
    return instruction, list(asked)


def _told(instruction: str, question: str) -> Row:
    return {"role": "user", "content": f"{instruction} {question}"}


def _answers(loaded: Any, plans: Sequence[Plan], config: GhostConfig, sampling: Sampling, report: Any) -> list[tuple[int, Plan, list[Row]]]:
    """(number, plan, answers) of the dialogues whose every answer is whole; turn by turn, all dialogues at once."""
    from cairn.generate.rows import answer_rows

    going: list[tuple[int, Plan, list[Row]]] = [(number, plan, []) for number, plan in enumerate(plans)]
    whole = []
    done = tokens = 0
    for turn in range(config.turns[1]):
        prompts = []
        for _, (instruction, asked), answers in going:
            before: list[Row] = []
            if config.history == "dialogue":
                before = [m for question, answer in zip(asked, answers, strict=False) for m in (_told(instruction, question), answer)]
            prompts.append({"messages": [*before, _told(instruction, asked[turn])]})
        made = [0, 0]

        def told(answered: int, generated: int, so_far: tuple[int, int] = (done, tokens), made: list[int] = made) -> None:
            made[:] = answered, generated
            report(so_far[0] + answered, so_far[1] + generated)

        # Each turn has numbers of its own: sampled answers of two turns would share their draws otherwise.
        results = answer_rows(loaded, prompts, sampling, first=turn * len(plans), on_progress=told)
        kept = []
        for (number, plan, answers), result in zip(going, results, strict=True):
            message = result["messages"][-1]
            ended = result["reason"] == "stop" or (result["reason"] == "length" and config.unfinished == "keep")
            if ended and message["role"] == "assistant" and (message.get("content") or "").strip():
                kept.append((number, plan, [*answers, message]))
        done, tokens = done + made[0], tokens + made[1]
        whole += [one for one in kept if len(one[2]) == len(one[1][1])]
        going = [one for one in kept if len(one[2]) < len(one[1][1])]
    return sorted(whole, key=lambda one: one[0])


def _row(number: int, instruction: str, asked: Sequence[str], answers: Sequence[Row]) -> Row:
    """The instruction in front of the first question only; nothing is learnt from any answer but the last."""
    messages: list[Row] = []
    for turn, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        messages.append(_told(instruction, question) if turn == 0 else {"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer["content"], **({} if turn == len(asked) - 1 else {"weight": 0})})
    return {"messages": messages, "source": "ghost", "id": f"ghost-{number:05d}", "meta": {"instruction": instruction, "turns": len(asked)}}
