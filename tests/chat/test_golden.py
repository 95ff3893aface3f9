"""The rendered text of every format, letter by letter."""

from __future__ import annotations

import pytest

from cairn.chat.format import format_names, load_format
from cairn.chat.render import Renderer, render_text
from cairn.errors import UserError
from cairn.tokenizer.train import byte_tokenizer

DIALOGUE = [
    {"role": "system", "content": "SYS"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HEAD = {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "assistant", "ipython")}
ATTRIBUTES = "helpfulness: 4 correctness: 4 coherence: 4 complexity: 4 verbosity: 4 quality: 4 toxicity: 0 humor: 0 creativity: 0"

GOLDEN = {
    "k2": "SYS<|endofsystemprompt|><|beginofuser|>one<|beginofsystem|>two<|beginofuser|>three<|beginofsystem|>four<|endoftext|>",
    "k2_attributes": f"SYS<|endofsystemprompt|><|beginofuser|>one [ATTR] {ATTRIBUTES} [/ATTR]<|beginofsystem|>two"
    f"<|beginofuser|>three [ATTR] {ATTRIBUTES} [/ATTR]<|beginofsystem|>four<|endoftext|>",
    "k2_steerable": "SYS<|endofsystemprompt|><|beginofuser|>one<|beginofsystem|>two<|beginofuser|>three<|beginofsystem|>four<|endoftext|>",
    "crystal": "<s> <|sys_start|> SYS <|sys_end|> <|im_start|> one <|im_end|> two <|im_start|> three <|im_end|> four </s>",
    "komt": "SYS\n\n### instruction: one\n\n### Response: two</s>\n\n### instruction: three\n\n### Response: four</s>",
    "karakuri": f"<s>[INST] <<SYS>>\nSYS\n<</SYS>>\n\none [ATTR] {ATTRIBUTES} [/ATTR] [/INST] two </s>"
    f"<s>[INST] three [ATTR] {ATTRIBUTES} [/ATTR] [/INST] four </s>",
    "llama2": "<s>[INST] <<SYS>>\nSYS\n<</SYS>>\n\none [/INST] two </s><s>[INST] three [/INST] four </s>",
    "chatml": "<|im_start|>system\nSYS<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
    "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n",
    "llama3": f"<|begin_of_text|>{HEAD['system']}SYS<|eot_id|>{HEAD['user']}one<|eot_id|>{HEAD['assistant']}two<|eot_id|>"
    f"{HEAD['user']}three<|eot_id|>{HEAD['assistant']}four<|eot_id|>",
    "mistral": "<s>[SYSTEM_PROMPT]SYS[/SYSTEM_PROMPT][INST]one[/INST]two</s>[INST]three[/INST]four</s>",
    "vicuna": "<s>SYS USER: one ASSISTANT: two</s>USER: three ASSISTANT: four</s>",
    "zephyr": "<|system|>\nSYS</s>\n<|user|>\none</s>\n<|assistant|>\ntwo</s>\n<|user|>\nthree</s>\n<|assistant|>\nfour</s>\n",
    "alpaca": "SYS\n\n### Instruction:\none\n\n### Response:\ntwo</s>\n\n### Instruction:\nthree\n\n### Response:\nfour</s>",
}
WITHOUT_SYSTEM = {
    "k2": "<|beginofuser|>one<|beginofsystem|>",
    "k2_attributes": f"<|beginofuser|>one [ATTR] {ATTRIBUTES} [/ATTR]<|beginofsystem|>",
    "k2_steerable": "<|beginofuser|>one<|beginofsystem|>",
    "crystal": "<s> <|im_start|> one <|im_end|> ",
    "komt": "### instruction: one\n\n### Response: ",
    "karakuri": f"<s>[INST] one [ATTR] {ATTRIBUTES} [/ATTR] [/INST] ",
    "llama2": "<s>[INST] one [/INST] ",
    "chatml": "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n",
    "llama3": f"<|begin_of_text|>{HEAD['user']}one<|eot_id|>{HEAD['assistant']}",
    "mistral": "<s>[INST]one[/INST]",
    "vicuna": f"<s>{VICUNA} USER: one ASSISTANT: ",
    "zephyr": "<|user|>\none</s>\n<|assistant|>\n",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\none\n\n### Response:\n",
}
CALL = {"type": "function", "function": {"name": "news", "arguments": {"country": "Norway"}}}
TOOL_ROUND = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"news": []}'},
    {"role": "assistant", "content": "- none"},
]
CALLED = '<tool_call>\n{"arguments": {"country": "Norway"}, "name": "news"}\n</tool_call>'
GAVE = '<tool_response>\n{"news": []}\n</tool_response>'
TOOLS = {
    "k2": f"<|beginofuser|>one<|beginofsystem|>{CALLED}<|endoftext|>{GAVE}- none<|endoftext|>",
    "k2_attributes": f"<|beginofuser|>one [ATTR] {ATTRIBUTES} [/ATTR]<|beginofsystem|>{CALLED}<|endoftext|>{GAVE}- none<|endoftext|>",
    "k2_steerable": f"<|beginofuser|>one<|beginofsystem|>{CALLED}<|endoftext|>{GAVE}- none<|endoftext|>",
    "crystal": f"<s> <|im_start|> one <|im_end|> {CALLED} </s> {GAVE} - none </s>",
    "komt": f"### instruction: one\n\n### Response: {CALLED}</s>\n\n### instruction: {GAVE}\n\n### Response: - none</s>",
    "karakuri": f"<s>[INST] one [ATTR] {ATTRIBUTES} [/ATTR] [/INST] {CALLED} </s><s>[INST] {GAVE} [/INST] - none </s>",
    "llama2": f"<s>[INST] one [/INST] {CALLED} </s><s>[INST] {GAVE} [/INST] - none </s>",
    "chatml": f"<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n{CALLED}<|im_end|>\n<|im_start|>tool\n{GAVE}<|im_end|>\n"
    "<|im_start|>assistant\n- none<|im_end|>\n",
    "llama3": f"<|begin_of_text|>{HEAD['user']}one<|eot_id|>{HEAD['assistant']}{CALLED}<|eot_id|>"
    f"{HEAD['ipython']}{GAVE}<|eot_id|>{HEAD['assistant']}- none<|eot_id|>",
    "mistral": f"<s>[INST]one[/INST]{CALLED}</s>[INST]{GAVE}[/INST]- none</s>",
    "vicuna": f"<s>{VICUNA} USER: one ASSISTANT: {CALLED}</s>USER: {GAVE} ASSISTANT: - none</s>",
    "zephyr": f"<|user|>\none</s>\n<|assistant|>\n{CALLED}</s>\n<|user|>\n{GAVE}</s>\n<|assistant|>\n- none</s>\n",
    "alpaca": WITHOUT_SYSTEM["alpaca"] + f"{CALLED}</s>\n\n### Instruction:\n{GAVE}\n\n### Response:\n- none</s>",
}
STOPS = {
    "k2": ["<|endoftext|>", "<|beginofuser|>"],
    "k2_attributes": ["<|endoftext|>", "<|beginofuser|>"],
    "k2_steerable": ["<|endoftext|>", "<|beginofuser|>"],
    "crystal": ["</s>", "<|im_start|>"],
    "chatml": ["<|im_end|>"],
    "llama3": ["<|eot_id|>"],
}


def test_every_format_has_a_golden_text() -> None:
    assert sorted(GOLDEN) == sorted(WITHOUT_SYSTEM) == sorted(TOOLS) == format_names()


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden(name: str) -> None:
    format = load_format(name)
    assert render_text(format, DIALOGUE) == GOLDEN[name]
    assert render_text(format, DIALOGUE[1:2], add_generation_prompt=True) == WITHOUT_SYSTEM[name]
    assert render_text(format, TOOL_ROUND) == TOOLS[name]
    renderer = Renderer(format, byte_tokenizer(format))
    for messages in (DIALOGUE, TOOL_ROUND):
        rendered = renderer.render(messages)
        assert rendered.text == renderer.tokenizer.decode(rendered.ids) == render_text(format, messages)
    assert [renderer.tokenizer.special_name(i) for i in renderer.stop_ids] == STOPS.get(name, ["</s>"])


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_prompt_after_a_tools_response(name: str) -> None:
    format = load_format(name)
    prompt = render_text(format, TOOL_ROUND[:3], add_generation_prompt=True)
    assert TOOLS[name].startswith(prompt)
    assert TOOLS[name][len(prompt) :].startswith("- none")


def test_k2_offers_tools_as_the_card_does() -> None:
    tools = [
        {"type": "function", "function": {"name": "news", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "b"}},
    ]
    text = render_text(load_format("k2"), DIALOGUE, tools=tools)
    system, _, rest = text.partition("<|endofsystemprompt|>")
    assert rest == GOLDEN["k2"].partition("<|endofsystemprompt|>")[2]
    assert "function calling AI model" in system
    assert '\n<tools>\n[{"name": "news", "parameters": {"type": "object"}}, {"name": "b"}]\n</tools>\n' in system
    assert '"title": "FunctionCall"' in system
    assert '"required": ["arguments", "name"]' in system
    assert "<tool_call>\n{" in system
    assert "bullet points" in system
    assert system.endswith("\n\nSYS")
    boilerplate = system.partition("<tools>")[0] + system.partition("</tools>")[2]
    assert len(boilerplate.removesuffix("SYS").split()) <= 75


def test_k2_several_calls_are_a_list_in_one_tag() -> None:
    twice = [{**TOOL_ROUND[0]}, {"role": "assistant", "content": "Both.", "tool_calls": [CALL, CALL]}]
    one = '{"arguments": {"country": "Norway"}, "name": "news"}'
    expected = f"<|beginofuser|>one<|beginofsystem|>Both.\n<tool_call>\n[{one}, {one}]\n</tool_call><|endoftext|>"
    assert render_text(load_format("k2"), twice) == expected


def test_karakuri_takes_attributes_of_the_conversation_and_of_a_turn() -> None:
    format = load_format("karakuri")
    messages = [DIALOGUE[1], DIALOGUE[2], {**DIALOGUE[3], "attributes": {"humor": 3}}, DIALOGUE[4]]
    text = render_text(format, messages, attributes={"humor": 1, "verbosity": 0})
    first = ATTRIBUTES.replace("humor: 0", "humor: 1").replace("verbosity: 4", "verbosity: 0")
    second = first.replace("humor: 1", "humor: 3")
    assert text == f"<s>[INST] one [ATTR] {first} [/ATTR] [/INST] two </s><s>[INST] three [ATTR] {second} [/ATTR] [/INST] four </s>"


@pytest.mark.parametrize(
    ("attributes", "where", "remedy"),
    [
        ({"humour": 1}, "attributes.humour", "did you mean 'humor'?"),
        ({"humor": 5}, "attributes.humor", "from 0 to 4"),
        ({"humor": True}, "attributes.humor", "without quotes"),
        ({"humor": "1"}, "attributes.humor", "without quotes"),
    ],
)
def test_attributes_are_checked(attributes: dict[str, object], where: str, remedy: str) -> None:
    renderer = Renderer(load_format("karakuri"), byte_tokenizer(load_format("karakuri")))
    with pytest.raises(UserError) as error:
        renderer.render(DIALOGUE, attributes=attributes)
    assert error.value.where == where
    assert remedy in error.value.remedy
    with pytest.raises(UserError) as error:
        renderer.render([{**DIALOGUE[1], "attributes": attributes}])
    assert error.value.where == f"messages[0].{where}"


def test_other_formats_refuse_attributes() -> None:
    renderer = Renderer(load_format("k2"), byte_tokenizer(load_format("k2")))
    with pytest.raises(UserError, match="unknown attribute 'humor'") as error:
        renderer.render(DIALOGUE, attributes={"humor": 1})
    assert "has no attributes" in error.value.remedy


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UserError, match="unknown chat format 'karakri'") as error:
        load_format("karakri")
    assert "did you mean 'karakuri'?" in error.value.remedy
