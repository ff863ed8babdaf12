"""Rows as the chat templates of published families write them, and the token that ends a turn."""

from typing import Any

import pytest

from openprime.config import PromptFormat
from openprime.data.chat import Turn, encode_prompts, encode_turns
from openprime.data.template import Template, turn_ends
from openprime.types import UserError
from support.chat_templates import FAMILIES, Family, chatml, make_tokenizer

QUESTION = [{"role": "user", "content": "Q?"}]
LONGER = [*QUESTION, {"role": "assistant", "content": "First."}, {"role": "user", "content": "And?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *QUESTION]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}],
}
CALLED = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>'
THOUGHT = "<think>\nOne and one.\n</think>\n\nA!"


def turn(
    name: str, chat: list[dict[str, Any]], said: Any, tools: Any = None, **options: Any
) -> tuple[str, str, Turn]:
    """(prompt, response, turn) of a conversation, the first two decoded."""
    tokenizer = make_tokenizer(FAMILIES[name])
    (made,) = encode_turns(
        [chat], [said], ["row"], PromptFormat(), tokenizer, tools=[tools], texts=True, **options
    )
    return *(tokenizer.decode(ids) for ids in (made.prompt_ids, made.response_ids)), made


@pytest.mark.parametrize("name", FAMILIES)
def test_encode_turns__a_question_and_an_answer_by_hand(name: str):
    """What stands behind the question, what a model says, and the very token that it ends with."""
    family = FAMILIES[name]
    prompt, response, made = turn(name, QUESTION, "A!")
    assert prompt.partition("Q?")[2] == family.prompt
    assert response == family.turn
    assert "".join(made.texts) == "A!"
    assert turn_ends(make_tokenizer(family)) == {made.response_ids[-1]}
    asked = turn(name, QUESTION, "cut o", ended=[False])
    tokenizer = make_tokenizer(family)
    assert asked[0] == tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert asked[1] == "cut o"


@pytest.mark.parametrize("chat", [QUESTION, LONGER, SYSTEM], ids=["question", "longer", "system"])
@pytest.mark.parametrize("said", ["A!", "  two\nlines \n", "x = 1 # <b>bold</b>", THOUGHT])
@pytest.mark.parametrize("name", FAMILIES)
def test_encode_turns__the_row_is_what_apply_chat_template_writes(name: str, chat: list[dict], said: str):
    """Token by token, as far as the token that ends the turn; the prompt is the beginning of the one that is asked."""
    family, tokenizer = FAMILIES[name], make_tokenizer(FAMILIES[name])
    if chat is SYSTEM and name == "gemma":
        with pytest.raises(
            UserError, match="row: the tokenizer's chat template refuses this prompt: no system role"
        ):
            turn(name, chat, said)
        return
    _, _, made = turn(name, chat, said)
    (asked,) = encode_prompts([chat], ["row"], PromptFormat(), tokenizer)
    whole = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": said}], return_dict=False)
    shown = [*made.prompt_ids, *made.response_ids]
    assert tuple(asked[: len(made.prompt_ids)]) == made.prompt_ids
    if said is THOUGHT and name in ("deepseek r1 distill", "qwq"):  # it would leave out the reasoning
        assert list(made.prompt_ids) == asked
        assert (
            tokenizer.decode(made.response_ids) == THOUGHT.removeprefix("<think>\n") + Template(tokenizer).end
        )
    elif name in (
        "glm 4",
        "glm 4.5",
        "alpaca, without special tokens",
    ):  # it writes no end behind the last turn
        assert shown[:-1] == whole
    else:
        assert shown == whole[: len(shown)]
        assert tokenizer.decode(whole[len(shown) :]) == family.rest
    assert "".join(made.texts) == said
    if said is not THOUGHT:  # what the template adds has no part of the text
        pairs = zip(made.response_ids, made.texts, strict=True)
        assert not any(text for token, text in pairs if token in tokenizer.added_tokens_decoder)


def test_encode_turns__a_think_tag_is_opened_once():
    """By the prompt, by the template or by the response itself."""
    for name in ("deepseek r1 distill", "qwq", "qwen3", "qwen3 thinking"):
        for said in (THOUGHT, THOUGHT.removeprefix("<think>\n")):
            prompt, response, _ = turn(name, QUESTION, said)
            assert (prompt + response).count("<think>") == 1, name
            assert "<think>\nOne and one.\n</think>\n\nA!" in prompt + response
    prompt, response, _ = turn("qwq", QUESTION, "<think>\nOne and", ended=[False])
    assert (prompt + response).endswith("assistant\n<think>\nOne and")


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3 thinking", "gpt-oss"])
def test_encode_turns__the_prompt_of_a_sampled_response_is_what_was_asked(name: str):
    tokenizer = make_tokenizer(FAMILIES[name])
    (asked,) = encode_prompts([QUESTION], ["row"], PromptFormat(), tokenizer)
    _, _, made = turn(name, QUESTION, (40, 41, 300 - 300))
    assert (list(made.prompt_ids), made.response_ids) == (asked, (40, 41, 0))


def test_encode_turns__a_token_over_the_border_is_none_of_the_prompt():
    """A tokenizer that would join the prompt's last line feed with the response's first one; nobody samples that."""
    tokenizer = make_tokenizer(FAMILIES["qwen2.5"])
    tokenizer.add_tokens("\n\n")
    (made,) = encode_turns([QUESTION], ["\nA!"], ["row"], PromptFormat(), tokenizer, texts=True)
    (asked,) = encode_prompts([QUESTION], ["row"], PromptFormat(), tokenizer)
    assert list(made.prompt_ids) == asked
    assert tokenizer.decode(made.response_ids) == "\nA!<|im_end|>"
    assert made.texts == ("\n", "A", "!", "")


def test_encode_turns__a_template_that_changes_a_response_is_refused():
    tokenizer = make_tokenizer(Family(chatml("{{ m.content | upper }}"), "<|im_end|>", "", ""))
    with pytest.raises(UserError, match="row: the tokenizer's chat template leaves out or changes a part"):
        encode_turns([QUESTION], ["abc"], ["row"], PromptFormat(), tokenizer)


def test_encode_turns__a_template_may_want_contents_in_parts():
    """As those of models that see do: a text would be left out."""
    template = (
        "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}<end>\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = make_tokenizer(Family(template, "<end>", "", ""))
    (made,) = encode_turns([LONGER], ["A!"], ["row"], PromptFormat(), tokenizer)
    prompt = "user: Q?<end>\nassistant: First.<end>\nuser: And?<end>\nassistant: "
    assert [tokenizer.decode(ids) for ids in (made.prompt_ids, made.response_ids)] == [prompt, "A!<end>"]


# Keys beside role and content


@pytest.mark.parametrize(
    ("name", "said", "response"),
    [
        ("qwen2.5", CALL, '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>'),
        (
            "qwen2.5",
            CALL | {"content": None},
            '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>',
        ),
        (
            "qwen3",
            {"role": "assistant", "content": "A!", "reasoning_content": "Why."},
            "<think>\nWhy.\n</think>\n\nA!<|im_end|>",
        ),
        (
            "gpt-oss",
            {"role": "assistant", "content": "A!", "thinking": "Why."},
            "<|channel|>analysis<|message|>Why.<|end|><|start|>assistant<|channel|>final<|message|>A!<|return|>",
        ),
    ],
)
def test_encode_turns__keys_of_a_message_are_written(name: str, said: dict, response: str):
    tools = TOOLS if name == "qwen2.5" else None
    prompt, written, made = turn(name, QUESTION, said, tools)
    assert written == response
    assert "".join(made.texts) == (said["content"] or "")
    assert ('"name": "add"' in prompt) == bool(tools)


def test_encode_prompts__reasoning_of_an_earlier_turn_is_the_templates_matter():
    """Qwen3 leaves it out where a question follows, but knows it."""
    past = {"role": "assistant", "content": "A!", "reasoning_content": "Why."}
    tokenizer = make_tokenizer(Family(chatml(QWEN3_LAST), "<|im_start|> <|im_end|>", "", ""))
    (ids,) = encode_prompts([[*QUESTION, past, *QUESTION]], ["row"], PromptFormat(), tokenizer)
    assert "Why." not in tokenizer.decode(ids)


QWEN3_LAST = "{% if loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"


@pytest.mark.parametrize(
    ("name", "chat", "said", "tools", "message"),
    [
        ("qwen2.5", QUESTION, {"role": "assistant", "content": "A!", "reasoning_content": "w"}, None,
         r"message 1 \(assistant\) has reasoning_content"),
        ("zephyr", QUESTION, CALL, None, r"message 1 \(assistant\) has tool_calls"),
        ("deepseek r1 distill", QUESTION, CALL, None, r"message 1 \(assistant\) has tool_calls"),
        ("llama 3", QUESTION, "A!", TOOLS, "the row has tools"),
        ("qwen3", [QUESTION[0] | {"weight": 0}], "A!", None, r"message 0 \(user\) has weight"),
        ("qwen3", [LONGER[0], LONGER[1] | {"thinking": "w"}, LONGER[2]], "A!", None, r"message 1 .* has thinking"),
    ],
)  # fmt: skip
def test_encode_turns__keys_that_a_template_leaves_out_are_refused(name, chat, said, tools, message: str):
    with pytest.raises(UserError, match=f"^row: {message}, which the tokenizer's chat template leaves out"):
        turn(name, chat, said, tools)
    if said == "A!":
        with pytest.raises(UserError, match=message):
            encode_prompts([chat], ["row"], PromptFormat(), make_tokenizer(FAMILIES[name]), tools=[tools])


@pytest.mark.parametrize("options", [{"said": (40, 41)}, {"said": "cut", "ended": [False]}])
def test_encode_turns__a_prompt_of_sampled_tokens_is_held_against_its_template_too(options: dict):
    with pytest.raises(UserError, match=r"^row: message 0 \(user\) has weight"):
        turn("qwen3", [QUESTION[0] | {"weight": 0}], **options)


def test_encode_turns__without_a_template_there_is_text_alone():
    tokenizer, form = make_tokenizer(FAMILIES["qwen2.5"]), PromptFormat(chat_template="none")
    for chat, said, tools in ((QUESTION, CALL, None), (QUESTION, "a", TOOLS), ([CALL, *QUESTION], "a", None)):
        with pytest.raises(UserError, match=r"^row: .*, which chat_template: none leaves out"):
            encode_turns([chat], [said], ["row"], form, tokenizer, tools=[tools])


# Several templates, and none that can end


def test_template__of_several_the_default_is_taken_and_that_of_tools():
    tokenizer = make_tokenizer(FAMILIES["qwen2.5"])
    other = chatml("{{ m.content }}", "Tools: {{ tools }}\n")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": other}
    for tools, begin in ((None, "<|im_start|>user"), (TOOLS, "Tools: ")):
        (ids,) = encode_prompts([QUESTION], ["row"], PromptFormat(), tokenizer, tools=[tools])
        assert tokenizer.decode(ids).startswith(begin)
    tokenizer.chat_template = {"rag": other, "tool_use": other}
    with pytest.raises(UserError, match=r"several chat templates \(rag, tool_use\), and none .* default"):
        encode_prompts([QUESTION], ["row"], PromptFormat(), tokenizer)
    assert turn_ends(tokenizer) == frozenset()  # said where it is used
    assert len(encode_prompts(["q"], ["row"], PromptFormat(chat_template="none"), tokenizer)) == 1


def test_turn_ends__the_first_token_of_the_next_turn_where_nothing_ends_one():
    template = "{% for m in messages %}<|{{ m.role }}|><|sep|>{{ m.content }}{% endfor %}"
    tokenizer = make_tokenizer(Family(template, "<|user|> <|assistant|> <|sep|>", "", ""))
    assert turn_ends(tokenizer) == {tokenizer.convert_tokens_to_ids("<|user|>")}


def test_turn_ends__without_a_template_there_is_none():
    tokenizer = make_tokenizer(FAMILIES["zephyr"])
    tokenizer.chat_template = None
    assert turn_ends(tokenizer) == frozenset()
    tokenizer.chat_template, tokenizer.eos_token = "{{ messages[0].content }}", None
    assert turn_ends(tokenizer) == frozenset()
    with pytest.raises(UserError, match="has a token that ends a response"):
        Template(tokenizer)
