"""Messages, templates and token ids of prompts."""

import pytest

from openprime.config import DataConfig
from openprime.data.chat import SUFFIXES, complete, encode_prompts, suitable
from openprime.data.chat import SYSTEM as PUBLISHED
from openprime.data.steps import ACTIONS

CHAT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
SYSTEM = [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]


def texts(prompts, tokenizer, **settings):
    ids = encode_prompts(
        prompts, [f"row:{i}" for i in range(len(prompts))], DataConfig(**settings), tokenizer
    )
    return [tokenizer.decode(row) for row in ids]


def test_encode_prompts__ids_are_those_of_the_chat_template(tokenizer):
    prompts = ["plain", CHAT, SYSTEM]
    ids = encode_prompts(prompts, ["a", "b", "c"], DataConfig(), tokenizer)
    for made, chat in zip(ids, [[{"role": "user", "content": "plain"}], CHAT, SYSTEM], strict=True):
        expected = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert made == expected["input_ids"]
        assert all(type(i) is int for i in made)


def test_encode_prompts__a_template_with_its_own_beginning_gets_no_second(tokenizer):
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    (ids,) = encode_prompts(["q"], ["row:0"], DataConfig(), tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_encode_prompts__a_system_message_goes_first_where_there_is_none(tokenizer):
    assert texts(["q", CHAT[:1], SYSTEM], tokenizer, system="be kind") == [
        "<|system|>be kind<|end|><|user|>q<|end|><|assistant|>",
        "<|system|>be kind<|end|><|user|>one<|end|><|assistant|>",
        "<|system|>own<|end|><|user|>q<|end|><|assistant|>",
    ]


def test_encode_prompts__a_suffix_goes_behind_the_last_user_message(tokenizer):
    answered = [*CHAT[:2], {"role": "tool", "content": "5"}]
    assert texts(["q", CHAT, answered], tokenizer, suffix=" Box it.") == [
        "<|user|>q Box it.<|end|><|assistant|>",
        "<|user|>one<|end|><|assistant|>two<|end|><|user|>three Box it.<|end|><|assistant|>",
        "<|user|>one Box it.<|end|><|assistant|>two<|end|><|tool|>5<|end|><|assistant|>",
    ]
    assert CHAT[2]["content"] == "three"  # what the user wrote stays
    with pytest.raises(ValueError, match=r"row:0: the suffix .* user message.*data\.suffix"):
        texts([SYSTEM[:1]], tokenizer, suffix="x")


def test_encode_prompts__without_a_template_the_text_is_as_it_is(tokenizer):
    settings = {"chat_template": "none"}
    assert texts(["q", CHAT], tokenizer, **settings) == ["<s>q", "<s>one\ntwo\nthree"]
    assert texts(["q", SYSTEM], tokenizer, system="be kind", suffix="!", **settings) == [
        "<s>be kind\nq!",
        "<s>own\nq!",
    ]


def test_encode_prompts__plain_text_with_its_own_beginning_gets_no_second(tokenizer):
    prompts = ["<s>q", "r", "<s>t", "u<s>"]
    assert texts(prompts, tokenizer, chat_template="none") == ["<s>q", "<s>r", "<s>t", "<s>u<s>"]
    tokenizer.bos_token = None
    assert texts(["q"], tokenizer, chat_template="none") == ["<s>q"]  # the post-processor still adds it


def test_encode_prompts__auto_without_a_template_says_what_to_do(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"data\.chat_template: none.*tokenizer has one"):
        texts(["q"], tokenizer)
    assert texts(["q"], tokenizer, chat_template="none") == ["<s>q"]


def test_encode_prompts__a_template_that_refuses_a_prompt_is_named_with_the_row(tokenizer):
    clown = [{"role": "clown", "content": "q"}]
    with pytest.raises(
        ValueError, match="row:1: the tokenizer's chat template refuses this prompt: no clowns"
    ):
        texts(["q", clown, CHAT], tokenizer)


# The published templates

MATH = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
CODE = (
    "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end."
)


def test_suffixes__are_those_of_the_eurus_2_model_cards():
    """Word for word, from huggingface.co/PRIME-RL/Eurus-2-7B-SFT and Eurus-2-7B-PRIME."""
    assert PUBLISHED == (
        "\nWhen tackling complex reasoning tasks, you have access to the following actions. Use them as needed to "
        "progress through your thought process.\n\n[ASSESS]\n\n[ADVANCE]\n\n[VERIFY]\n\n[SIMPLIFY]\n\n[SYNTHESIZE]\n\n"
        "[PIVOT]\n\n[OUTPUT]\n\nYou should strictly follow the format below:\n\n[ACTION NAME]\n\n"
        "# Your action step 1\n\n# Your action step 2\n\n# Your action step 3\n\n...\n\n"
        "Next action: [NEXT ACTION NAME]\n"
    )
    assert SUFFIXES == {"math": MATH, "code": CODE}
    assert ACTIONS == ("ASSESS", "ADVANCE", "VERIFY", "SIMPLIFY", "SYNTHESIZE", "PIVOT", "OUTPUT")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


@pytest.mark.parametrize(
    ("settings", "verifier", "expected"),
    [
        ({}, "math", [user("q")]),
        ({"template": "eurus"}, "math", [user("q" + MATH)]),
        ({"template": "eurus"}, "code", [user("q" + CODE)]),
        ({"template": "eurus"}, "my_module:score", [user("q")]),
        ({"template": "eurus-actions"}, "math", [system(PUBLISHED), user("q" + MATH)]),
        ({"template": "eurus-actions"}, "code", [system(PUBLISHED), user("q" + CODE)]),
        ({"template": "eurus", "system": "s"}, "math", [system("s"), user("q" + MATH)]),
        ({"template": "eurus-actions", "system": "s"}, "math", [system("s"), user("q" + MATH)]),
        ({"template": "eurus-actions", "suffix": "!"}, "code", [system(PUBLISHED), user("q!")]),
    ],
)
def test_complete__the_template_by_verifier_and_what_goes_over_it(tokenizer, settings, verifier, expected):
    form = DataConfig(**settings)
    assert complete("q", "row:0", form, verifier) == expected
    first, last = encode_prompts(["r", "q"], ["a", "b"], form, tokenizer, ["my_module:score", verifier])
    assert last == tokenizer.apply_chat_template(
        expected, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert MATH not in tokenizer.decode(first)
    assert CODE not in tokenizer.decode(first)


def test_complete__a_system_message_of_the_row_stays_in_front():
    form = DataConfig(template="eurus-actions")
    assert complete(SYSTEM, "row:0", form, "math") == [system("own"), user("q" + MATH)]
    with pytest.raises(ValueError, match=r"row:0: the suffix .*data\.template"):
        complete(SYSTEM[:1], "row:0", form, "math")


def test_encode_prompts__a_prompt_without_a_token_is_refused(tokenizer):
    """No token would stand before the response, so its first one would have no probability."""
    tokenizer.backend_tokenizer.post_processor = None
    empty = [{"role": "user", "content": ""}]
    with pytest.raises(ValueError, match="row:1: the prompt is empty"):
        texts(["q", empty], tokenizer, chat_template="none")
    assert texts([empty], tokenizer) == ["<|user|><|end|><|assistant|>"]


def test_suitable__leaves_the_template_out_where_there_is_none(tokenizer):
    form = DataConfig(template="eurus", limit=3)
    assert suitable(form, tokenizer) is form
    tokenizer.chat_template = None
    assert suitable(form, tokenizer) == DataConfig(template="eurus", limit=3, chat_template="none")
