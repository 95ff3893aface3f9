"""Token healing: the border between prompt and answer is open, and nothing of the prompt is lost or doubled."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.generate import grammar
from cairn.generate.constrain import Constrainer
from cairn.generate.continuation import continuation
from cairn.generate.healing import HealingMatcher, heal
from cairn.generate.request import Completion
from cairn.generate.sampling import Sampling
from cairn.tokenizer.load import Tokenizer

from .constrained import TEXTS


def written(tokenizer: Tokenizer, made: object, seed: int, length: int = 12) -> list[int]:
    matcher, rng, out = made(), random.Random(seed), []  # type: ignore[operator]
    while len(out) < length and not matcher.finished:
        left = length - len(out)
        mask = matcher.allowed(left)
        ids = list(range(5, tokenizer.vocab_size)) if mask is None else mask.nonzero()[:, 0].tolist()
        id = rng.choice(ids)
        if matcher.accept(id, left):
            out.append(id)
    return out


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(1, len(TEXTS[1])), text=st.sampled_from(TEXTS[:3]), seed=st.integers(0, 1 << 20))
def test_prompt_and_answer_are_the_prompt_continued(constrainer: Constrainer, tokenizer: Tokenizer, cut: int, text: str, seed: int) -> None:
    prompt = text[:cut]
    healed = heal(constrainer.vocabulary, tokenizer.encode(prompt))
    assert healed.ids + healed.taken == tokenizer.encode(prompt)
    assert healed.ids
    out = written(tokenizer, lambda: HealingMatcher(constrainer.vocabulary, healed.text), seed, len(healed.taken) + 1)
    assert tokenizer.decode(healed.ids + out).startswith(prompt)


def test_a_longer_token_can_be_chosen(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    plain = [id for id in range(tokenizer.vocab_size) if tokenizer.special_name(id) is None and tokenizer.decode([id]).isascii()]
    whole = max(plain, key=lambda id: len(tokenizer.decode([id])))
    word = tokenizer.decode([whole])
    prompt = "The " + word[:-1]
    healed = heal(constrainer.vocabulary, tokenizer.encode(prompt))
    assert healed.taken
    matcher = HealingMatcher(constrainer.vocabulary, healed.text)
    mask = matcher.allowed(9)
    assert mask is not None
    starts = [tokenizer.decode([id]) for id in mask.nonzero()[:, 0].tolist()]
    assert all(start.startswith(healed.text) or healed.text.startswith(start) for start in starts)
    assert any(len(start) > len(healed.text) for start in starts)
    assert matcher.accept(mask.nonzero()[0].item(), 9)


def test_a_border_that_nothing_crosses_stays(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("Oslo"), tokenizer.special["<|beginofuser|>"]]
    assert heal(constrainer.vocabulary, ids).taken == []
    assert heal(constrainer.vocabulary, tokenizer.encode("T")).taken == []


def test_answers_are_read_without_the_healed_text(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    prompt = "The weather in Os"
    made = continuation(tokenizer, constrainer, prompt, Sampling(), healed=True, stop_strings=["END", "Os"])
    assert made.taken
    out = tokenizer.encode(tokenizer.decode(made.taken) + "lo today")
    assert made.answer(Completion(out, "length")) == "lo today"
    assert made.stop is not None
    assert not made.stop(out)  # "Os" stands in the prompt, not in the answer
    assert made.stop(out + tokenizer.encode(" END"))
    assert made.answer(Completion(out, "stop")) == "lo today "


def test_a_healed_border_and_a_constraint(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    prompt = '{"city": "Oslo", "day'
    made = continuation(tokenizer, constrainer, prompt, Sampling(), healed=True, constraint=grammar.regex('s": [0-9]{1,3}}'))
    assert made.taken
    for seed in range(10):
        out = written(tokenizer, made.request.constraint, seed, 14)
        answer = made.answer(Completion(out, "stop"))
        assert answer.startswith('s": ')
        assert answer.rstrip("}").removeprefix('s": ').isdigit()
