"""Responses from the shapes in which files have them, judged ones for a PRM, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from openprime.config import JudgedDataConfig, PromptFormat
from openprime.data.records import (
    JudgedResponse,
    JudgedSet,
    collate_judged,
    group_row,
    in_steps,
    read_judged,
    read_responses,
    read_rows,
    split_prompts,
    to_verify,
    vocabulary_id,
)
from openprime.types import Group, Prompt, Response, UserError

END = 2
"""Id of <|end|>."""


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def flat(question: object, response: object = "yes", outcome: object = 1) -> dict:
    return {"prompt": question, "response": response, "outcome": outcome}


def listed(*responses: object) -> dict:
    return {"prompt": "a", "responses": list(responses)}


def steps(labels: object, *texts: str, question: str = "how") -> dict:
    return {"problem": question, "steps": list(texts) or ["a b", "c", "d"], "label": labels}


@pytest.fixture
def read(tmp_path: Path, tokenizer) -> Callable[..., JudgedSet]:
    """(*rows, steps, max_tokens, **settings of the data) -> what is read of a JSONL file of these rows."""

    def go(*rows: dict, steps: bool = False, max_tokens: int = 4096, **options) -> JudgedSet:
        path = tmp_path / "judged.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_judged(JudgedDataConfig(source=str(path), **options), tokenizer, max_tokens, steps)

    return go


@pytest.fixture
def generated(tokenizer) -> Callable[..., dict]:
    """(question, *(token_ids, outcome)) -> a line as `openprime generate` writes it."""

    def row(question: str, *responses: tuple[tuple[int, ...], float | None], truncated: bool = False) -> dict:
        made = [
            Response(
                ids, (-1.0,) * len(ids), tokenizer.decode(ids, skip_special_tokens=True), truncated, outcome
            )
            for ids, outcome in responses
        ]
        group = Group(Prompt("p", (), question, "7"), tuple(made), 3)
        return group_row(0, group, PromptFormat(suffix=" Box it."), vocabulary_id(tokenizer))

    return row


# Rows


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"response": "one"}, [("one", None, ())]),
        ({"completion": "one", "steps": ["no"]}, [("one", None, ())]),
        ({"completion": [{"role": "assistant", "content": "one"}]}, [("one", None, ())]),
        ({"messages": [*ask("q"), {"role": "assistant", "content": "one"}]}, [("one", None, ())]),
        ({"messages": json.dumps([*ask("q"), {"role": "assistant", "content": "one"}])}, [("one", None, ())]),
        ({"steps": ["a", "b", ""]}, [("a\n\nb\n\n", None, ("a\n\n", "b\n\n", ""))]),
        ({"responses": ["one", {"text": ""}], "response": "no"}, [("one", None, ()), ("", None, ())]),
        ({"responses": [{"text": "x", "token_ids": [3, 4]}], "vocabulary": "v"}, [("x", (3, 4), ())]),
        ({"responses": [{"text": "x", "token_ids": [3, 4]}], "vocabulary": "w"}, [("x", None, ())]),
        (
            {"responses": [{"text": "x", "token_ids": ["?"]}]},
            [("x", None, ())],
        ),  # of no vocabulary: not looked at
    ],
)
def test_read_responses__every_shape_of_a_row(row: dict, expected: list[tuple]):
    found = read_responses(row, "here", "v")
    assert [(r.text, r.token_ids, r.steps) for r in found] == expected
    assert all(r.token_ids is None for r in read_responses(row, "here"))
    if "responses" in row:
        assert [r.entry for r in found] == [
            e if isinstance(e, dict) else {"text": e} for e in row["responses"]
        ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "q", "reply": "a"},
            "here: no field response, responses, completion or steps; there are: prompt, reply",
        ),
        ({"response": None}, "here, response: expected text, found None"),
        ({"responses": None, "id": 3}, 'here: expected {"responses": [...]}, found the fields responses, id'),
        ({"responses": []}, "here, responses: expected a list with at least one entry, found []"),
        ({"responses": ["a", 4]}, "here, responses[1]: expected text, found 4"),
        ({"responses": ["a", {"outcome": 1}]}, "here, responses[1].text: expected text, found None"),
        ({"steps": "ab"}, "here, steps: expected a list with at least one entry, found 'ab'"),
        ({"steps": ["a", None]}, "here, steps[1]: expected text, found None"),
        (
            {"messages": ask("q")},
            "here: no field response, responses, completion or steps; there are: messages",
        ),
        (
            {"messages": [*ask("q"), *ask("r")]},
            "here, messages: the response must be text or one message of the assi",
        ),
    ],
)
def test_read_responses__what_cannot_be_read(row: dict, message: str):
    with pytest.raises(UserError) as error:
        read_responses(row, "here")
    assert message in str(error.value)


def test_in_steps__a_blank_line_stands_between_them():
    assert in_steps(["one"], "here").text == "one"
    two = in_steps(["a\n", "b"], "here")
    assert two.text == "".join(two.steps) == "a\n\n\nb"
    with pytest.raises(UserError, match=r"here\[1\]: expected text that is not empty, found ' '"):
        in_steps(["a", " "], "here", blank=False)


@pytest.mark.parametrize(
    ("row", "verifier", "expected"),
    [
        ({"answer": 4.0, "question": "q"}, "", ("math", "4", "q")),
        (
            {"answer": None, "messages": [*ask("q"), {"role": "assistant", "content": "a"}]},
            "",
            ("math", None, ask("q")),
        ),
        ({"tests": {}, "prompt": 3}, "", ("code", None, "3")),
        ({"tests": {}, "verifier": "my:score"}, "", ("my:score", None, "")),
        ({"tests": {}, "verifier": "my:score", "answer": "a"}, "math", ("math", "a", "")),
    ],
)
def test_to_verify__verifier_answer_and_prompt(row: dict, verifier: str, expected: tuple):
    row |= {"response": "r"}
    prompt = to_verify(row, "here", verifier, ["my:score"])
    assert (prompt.verifier, prompt.answer, prompt.messages) == expected
    assert (prompt.id, prompt.columns) == ("here", row)
    if ":" in prompt.verifier:
        with pytest.raises(
            UserError, match=r"^here, verifier: 'my:score' would be imported .* in allow_modules"
        ):
            to_verify(row, "here", verifier, ["my:other"])


def test_read_rows__a_file_is_there_and_has_rows(tmp_path: Path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: no rows"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match=r"responses: there is no file .*gone\.jsonl"):
        read_rows(tmp_path / "gone.jsonl", "responses")


# The file of `openprime generate`


def test_trap_13__sampled_token_ids_are_taken_as_they_are(read, generated, tokenizer):
    """The ids spell the text another way than the tokenizer would."""
    whole = tokenizer("the", add_special_tokens=False)["input_ids"]
    apart = tuple(tokenizer.convert_tokens_to_ids(list("the")))
    assert whole != list(apart)
    row = generated("q", ((*apart, END), 1.0), ((*whole, END), 0.0))
    one, two = read(row).rows
    assert one.response.token_ids == (*apart, END)
    assert two.response.token_ids == (*whole, END)
    assert (one.response.outcome, two.response.outcome) == (1.0, 0.0)
    asked = tokenizer.apply_chat_template(ask("q Box it."), add_generation_prompt=True)["input_ids"]
    assert list(one.prompt.token_ids) == asked
    assert one.prompt is two.prompt
    assert one.group == two.group


@pytest.mark.parametrize("truncated", [False, True])
def test_read_judged__of_another_vocabulary_the_text_is_encoded(read, generated, tokenizer, truncated: bool):
    """With an end of sequence, but for what was cut off before it."""
    apart = tuple(tokenizer.convert_tokens_to_ids(list("the")))
    row = generated("q", ((*apart, END), 1.0), truncated=truncated) | {"vocabulary": "00000000"}
    data = read(row)
    expected = tokenizer("the", add_special_tokens=False)["input_ids"] + [END] * (not truncated)
    assert list(data.rows[0].response.token_ids) == expected
    assert data.notes[0].startswith("1 of 1 responses have no token ids of this model's vocabulary")


def test_group_row__tools_come_along(read, tokenizer):
    """As the model was asked with them, so is the PRM."""
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.name }}{% endfor %}" + tokenizer.chat_template
    group = Group(
        Prompt("p", (), "q", "7", {"tools": [{"name": "add"}], "id": 3}),
        (Response((40, END), (), "x", False, 1),),
        0,
    )
    row = group_row(0, group, PromptFormat(), vocabulary_id(tokenizer))
    assert row["tools"] == [{"name": "add"}]
    data = read(row, {key: value for key, value in row.items() if key != "tools"})
    asked = [tokenizer.decode(one.prompt.token_ids) for one in data.rows]
    assert asked == ["add<|user|>q<|end|><|assistant|>", "<|user|>q<|end|><|assistant|>"]
    assert data.prompts == 2


def test_read_judged__a_prompt_on_several_lines_is_one_group(read, generated):
    lines = [
        generated("a", ((40, END), 1.0)),
        generated("b", ((41, END), 0.0)),
        generated("a", ((42, END), 0.0), ((42, END), 0.0)),
    ]
    data = read(*lines)
    assert data.prompts == 2
    found = [(row.group, row.response.token_ids[0]) for row in data.rows]
    assert found == [(0, 40), (0, 42), (0, 42), (1, 41)]  # equal responses are kept
    assert "1 of 3 lines repeat a prompt: merged with the first" in data.notes


def test_read_judged__responses_without_an_outcome_are_left_out_and_counted(read, generated):
    data = read(generated("a", ((40, END), None), ((41, END), 0.5)), generated("b", ((42, END), None)))
    assert [row.response.token_ids[0] for row in data.rows] == [41]
    assert "2 of 3 responses have no outcome: left out" in data.notes
    data = read(
        flat("a", "b", None), flat("a", "c", math.nan), flat("a", "d", 0.5)
    )  # tables say nothing by NaN
    assert [row.response.text for row in data.rows] == ["d"]
    assert "2 of 3 responses have no outcome: left out" in data.notes


def test_read_judged__what_was_added_to_a_prompt_is_not_added_twice(read, generated):
    for name, value in {"suffix": "x", "system": "x", "template": "eurus"}.items():
        with pytest.raises(ValueError, match=rf"its prompts are as the model was asked.*data\.{name} out"):
            read(generated("a", ((40, END), 1.0)), **{name: value})


# A prompt, a response and an outcome a row


def test_read_judged__rows_with_an_outcome(read, tokenizer):
    data = read(flat("one", "yes", True), flat("two", "no", 0), flat("three", "part", 0.25), suffix="!")
    assert [row.response.outcome for row in data.rows] == [1.0, 0.0, 0.25]
    for row, question, text in zip(data.rows, ("one", "two", "three"), ("yes", "no", "part"), strict=True):
        asked = tokenizer.apply_chat_template(ask(f"{question}!"), add_generation_prompt=True)["input_ids"]
        assert list(row.prompt.token_ids) == asked
        assert list(row.response.token_ids) == [*tokenizer(text, add_special_tokens=False)["input_ids"], END]
    assert data.notes == []


def test_read_judged__fields_by_other_names(read):
    rows = [{"q": {"text": "one"}, "a": "yes", "good": 1, "label": 0}]
    data = read(*rows, prompt_field="q.text", response_field="a", outcome_field="good")
    assert data.rows[0].prompt.messages == ask("one")
    assert (data.rows[0].response.text, data.rows[0].response.outcome) == ("yes", 1.0)
    for name in ("outcome", "correct", "label"):
        assert read({"question": "one", "completion": "yes", name: False}).rows[0].response.outcome == 0.0


def test_read_judged__the_last_message_of_a_conversation_is_the_response(read):
    """The shape of the published EurusPRM data: `response` and `label`."""
    talk = [*ask("one"), {"role": "assistant", "content": "Step 1: yes"}]
    data = read(
        {"response": talk, "label": True}, {"response": talk, "label": False}, prompt_field="response"
    )
    assert data.prompts == 1
    assert [row.response.text for row in data.rows] == ["Step 1: yes"] * 2
    assert data.rows[0].prompt.messages == ask("one")
    assert [row.response.outcome for row in data.rows] == [1.0, 0.0]


def test_read_judged__rows_of_a_prompt_are_a_group_wherever_they_stand(read):
    """The complete messages count, whether they were written as text or as messages."""
    data = read(flat("one", "a"), flat("two", "b"), flat(ask("one"), "c"), flat("one ", "d"))
    assert [(row.group, row.response.text) for row in data.rows] == [(0, "a"), (0, "c"), (1, "b"), (2, "d")]
    assert data.prompts == 3
    assert "every outcome is 1: there is nothing to tell apart" in data.notes


def test_read_judged__what_is_too_long_is_dropped_and_counted(read, tokenizer):
    rows = [flat("one", "yes " * 40), flat("one", "no", 0), flat("long " * 40, "no")]
    prompt = len(tokenizer.apply_chat_template(ask("one"), add_generation_prompt=True)["input_ids"])
    limit = prompt + len(tokenizer("no", add_special_tokens=False)["input_ids"]) + 1
    data = read(*rows, max_tokens=limit, max_prompt_tokens=60)
    assert [row.response.text for row in data.rows] == ["no"]
    assert "1 of 2 prompts are over 60 tokens: dropped" in data.notes
    assert f"1 of 2 responses are over max_tokens={limit}: dropped" in data.notes
    with pytest.raises(
        ValueError, match=rf"all 3 responses are longer than max_tokens={limit - 1} .*raise it"
    ):
        read(*rows, max_tokens=limit - 1)


@pytest.mark.parametrize(
    ("value", "expected"), [("True", 1), ("false", 0), (" TRUE ", 1), ("+", 1), ("-", 0), (True, 1), (0, 0)]
)
def test_read_judged__outcomes_may_be_words(read, value: object, expected: float):
    assert read(flat("a", "b", value), flat("a", "c", 0.5)).rows[0].response.outcome == expected


# Preference pairs


def answer(text: str, **more: object) -> list[dict]:
    return [{"role": "assistant", "content": text, **more}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red."},
        {"question": "Sky?", "chosen": answer("Blue."), "rejected": answer("Red.")},
        {"prompt": ask("Sky?"), "chosen": json.dumps(answer("Blue.")), "rejected": "Red."},
        {"chosen": [*ask("Sky?"), *answer("Blue.")], "rejected": [*ask("Sky?"), *answer("Red.")]},
        {"prompt": "Sky?", "chosen": [*ask("Sky?"), *answer("Blue.")], "rejected": [*ask("Sky?"), *answer("Red.")],
         "score_chosen": 9.0, "score_rejected": 1.5},
        {"chosen": json.dumps([*ask("Sky?"), *answer("Blue.")]), "rejected": [*ask("Sky?"), *answer("Red.")]},
        {"trajectory": [{"from": "user", "value": "Sky?"}], "chosen": "Blue.", "rejected": "Red.", "id": 1},
        {"chosen": "Sky? Blue.", "rejected": "Sky? Red."},
        {"chosen": "Sky? Blue.", "rejected": "Sky? Black."},  # a word is not cut
    ],
)  # fmt: skip
def test_read_judged__preference_pairs(read, tokenizer, row: dict):
    """The shapes of TRL: with a prompt of their own or beginning with it, texts or conversations."""
    data = read(row, suffix="!")
    better, worse = data.rows
    asked = tokenizer.apply_chat_template(ask("Sky?!"), add_generation_prompt=True)["input_ids"]
    assert list(better.prompt.token_ids) == list(worse.prompt.token_ids) == asked
    words = [tokenizer.decode(one.response.token_ids) for one in data.rows]
    assert [word.strip() for word in words] == [
        "Blue.<|end|>",
        "Black.<|end|>" if "Black" in str(row) else "Red.<|end|>",
    ]
    assert [one.response.outcome for one in data.rows] == [1.0, 0.0]
    assert better.group == worse.group
    alone = str(row["chosen"]).startswith("Sky? ")
    assert (
        data.notes
        == ["no field of a prompt: it is what chosen and rejected begin with, such as 'Sky?'"] * alone
    )


def test_read_judged__each_pair_is_compared_by_itself(read):
    """The same prompt twice, and a response that is better in one pair and worse in the other."""
    pairs = [("a", "b"), ("b", "c"), ("d", "a")]
    data = read(*({"prompt": "q", "chosen": one, "rejected": two} for one, two in pairs))
    found = [(row.group, row.response.text, row.response.outcome) for row in data.rows]
    assert found == [(g, text, 1.0 - k) for g, pair in enumerate(pairs) for k, text in enumerate(pair)]
    training, held_out = split_prompts(
        data.rows + read({"prompt": "r", "chosen": "x", "rejected": "y"}).rows, 0.0, 1
    )
    assert len(training) == 8
    assert held_out == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": None}, "judged.jsonl:0, rejected: expected text, found None"),
        (
            {"chosen": [*ask("q"), *answer("a")], "rejected": [*ask("r"), *answer("b")]},
            "judged.jsonl:0: chosen and rejected are conversations that differ before",
        ),
        ({"chosen": "yes", "rejected": "no"}, "judged.jsonl:0: its prompt: expected text or a list of messages"),
        ({"prompt": "q", "chosen": ask("a"), "rejected": "b"}, "judged.jsonl:0, chosen: the response must be text"),
    ],
)  # fmt: skip
def test_read_judged__pairs_that_cannot_be_read(read, row: dict, message: str):
    with pytest.raises(UserError) as error:
        read(row)
    assert message in str(error.value)


# Steps with a mark behind each (Math-Shepherd, OpenRLHF)

MARKED = "Two and three? Step 1: 2 + 3 = 5. ки\nStep 2: So 5 ки\nStep 3: The answer is: 5 ки"


@pytest.mark.parametrize(
    "row",
    [
        {"input": MARKED, "label": "+".join(MARKED.replace("ки", "+", 1).replace("ки", "-", 1).split("ки"))},
        {"input": MARKED, "label": ["+", "-", "+"]}, {"inputs": MARKED, "labels": [True, "False", "true"]},
        {"input": MARKED, "value": [1, 0, 1]}, {"input": MARKED + " \n", "values": [1, -1, 1]},
    ],
)  # fmt: skip
def test_read_judged__steps_with_marks(read, row: dict):
    one = read(row, steps=True).rows[0]
    assert one.prompt.messages == ask("Two and three?")
    assert one.steps == ("Step 1: 2 + 3 = 5.\n", "Step 2: So 5\n", "Step 3: The answer is: 5")
    assert one.response.text == "".join(one.steps) == "".join(one.texts)
    assert one.labels == (1, 0, 1)
    assert one.response.outcome == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "Q? Step 1: a", "label": ["+"]}, "judged.jsonl:0, input: expected a problem, then steps that begin"),
        ({"input": "Q? a ки", "label": ["+"]}, "judged.jsonl:0, input: expected a problem, then steps that begin"),
        ({"input": MARKED + " Step 4", "label": ["+"]}, "judged.jsonl:0, input: expected a problem, then"),
        ({"input": MARKED, "label": MARKED}, "judged.jsonl:0, label: expected a label for each of 3 steps"),
        ({"input": MARKED, "label": MARKED.replace("ки", "+").replace("So", "so")}, "expected a label for each of 3"),
        ({"input": MARKED, "label": ["+", "?", "-"]}, "the label of step 1 must be true, false or a number"),
        ({"input": None, "label": ["+"]}, "judged.jsonl:0, input: expected text that is not empty, found None"),
        ({"input": "Step 1: a ки", "label": ["+"]}, "judged.jsonl:0: expected text or a list of messages, found ''"),
    ],
)  # fmt: skip
def test_read_judged__marks_that_cannot_be_read(read, row: dict, message: str):
    with pytest.raises(UserError) as error:
        read(row, steps=True)
    assert message in str(error.value)


# Steps


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1, [1, 1, 1]), (0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0]), ([True, False, True], [1, 0, 1]),
        ([1, 0.25, 0], [1, 0.25, 0]), ([1, -1, 1], [1, 0, 1]),
    ],
)  # fmt: skip
def test_read_judged__labels_of_steps(read, value: object, expected: list[float]):
    """An index of the first wrong step makes it and all after it wrong."""
    row = read(steps(value), steps(-1, question="other"), steps=True).rows[0]
    assert list(row.labels) == expected
    assert row.response.outcome == expected[-1]
    assert row.steps == ("a b\n\n", "c\n\n", "d")
    assert row.response.text == "a b\n\nc\n\nd"


def test_read_judged__signs_are_a_matter_of_the_whole_data(read):
    data = read(steps([1, 1, -1]), steps([1, 1, 1]), steps([-1, -1, -1]), steps=True)
    assert [row.labels for row in data.rows] == [(1, 1, 0), (1, 1, 1), (0, 0, 0)]
    with pytest.raises(
        ValueError, match=r"judged\.jsonl:1, label: the data has labels of -1, so that 0 is neither"
    ):
        read(steps([1, 1, -1]), steps([1, 0, 1]), steps=True)
    by_other_names = {"prompt": "how", "completions": ["one", "two"], "labels": [True, False]}  # as in TRL
    for settings in ({}, {"steps_field": "completions"}):
        assert read(by_other_names, steps=True, **settings).rows[0].labels == (1, 0)


def test_read_judged__rows_without_labels_are_left_out_and_counted(read):
    data = read(steps(None), steps(math.nan), steps(1), steps=True)
    assert [row.labels for row in data.rows] == [(1, 0, 0)]
    assert "2 of 3 responses have no outcome: left out" in data.notes


@pytest.mark.parametrize(
    "texts",
    [
        ("what is the answer", "to the question?", "the end"),
        ("the\nanswer\n", " is  the", "\nquestion\n\n"),
        ("täglich", "日本 語", "the 🙂"),
        ("a", "b", "c", "d"),
    ],
)
def test_collate_judged__a_step_is_labelled_at_its_last_token(read, tokenizer, texts: tuple[str, ...]):
    """Found by decoding ever longer beginnings of the response: the last token before which the step has not
    ended. The end of sequence belongs to the last step."""
    row = read(steps([0.25 * k for k in range(len(texts))], *texts), steps=True).rows[0]
    ids = row.response.token_ids
    text = "\n\n".join(texts)
    expected = []
    for k in range(len(texts)):
        step_ends = len(text) if k + 1 == len(texts) else len("\n\n".join(texts[: k + 1])) + 2
        inside = [
            t for t in range(len(ids) - 1) if len(tokenizer.decode(ids[:t]).replace("\ufffd", "")) < step_ends
        ]
        expected.append(inside[-1])
    expected[-1] = len(ids) - 1
    assert list(row.ends) == expected
    assert ids[-1] == END

    batch = collate_judged([row, row], 0)
    assert batch.labels is not None
    start = len(row.prompt.token_ids)
    for b in (0, 1):
        assert batch.step_end[b].nonzero()[:, 0].tolist() == [start + end for end in expected]
        assert batch.labels[b][batch.step_end[b]].tolist() == [0.25 * k for k in range(len(texts))]
        assert float(batch.labels[b][~batch.step_end[b]].abs().sum()) == 0


def test_collate_judged__keeps_prompts_responses_and_groups(read):
    rows = read(flat("one", "a"), flat("a longer two", "bcd", 0.5), flat("one", "efghij", 0)).rows
    batch = collate_judged(rows, 0)
    assert batch.group.tolist() == [0, 0, 1]
    assert batch.outcome.tolist() == [1.0, 0.0, 0.5]
    for b, row in enumerate(rows):
        ids = row.prompt.token_ids + row.response.token_ids
        assert batch.token_ids[b, : len(ids)].tolist() == list(ids)
        assert batch.token_ids[b][batch.response_mask[b]].tolist() == list(row.response.token_ids)
    assert not bool(batch.step_end.any())


# What is refused


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "good": 1}], ("has a field outcome or correct or label", "good", "data.outcome_field")),
        ([flat("a", "b", None)], ("no row has a field outcome or", "there are: prompt, response, outcome")),
        ([flat("a"), flat("a", "b", "yes")], ("judged.jsonl:1: its outcome (outcome)", "from 0 to 1", "'yes'")),
        ([flat("a", "b", -1)], ("judged.jsonl:0: its outcome", "-1")),
        ([flat("a", "b", 1.5)], ("judged.jsonl:0: its outcome", "1.5")),
        ([flat("a", "b", "1")], ("judged.jsonl:0: its outcome", "'1'")),
        ([flat("a", " ")], ("judged.jsonl: 1 of 1 rows have an empty response (row 0)",)),
        ([flat("", "b")], ("judged.jsonl:0: expected text or a list of messages",)),
        ([{"prompt": "a", "outcome": 1}], ("judged.jsonl:0: no response: prompt is no", "data.response_field")),
        ([{"response": "b", "outcome": 1}], ("no row has a field prompt", "data.prompt_field")),
        ([listed()], ("judged.jsonl:0, responses: expected a list with at least one entry, found []",)),
        ([listed("b"), flat("a")], ('judged.jsonl:1: expected {"responses": [...]}, found the fields prompt, resp',)),
        ([listed("b")], ("none of 1 responses has an outcome",)),
        ([listed({"text": "b", "outcome": 2})], ("judged.jsonl:0, responses[0]: its outcome", "found 2")),
        ([listed({"text": "b"})], ("none of 1 responses has an outcome",)),
    ],
)  # fmt: skip
def test_read_judged__outcomes_that_cannot_be_read(read, rows: list[dict], words: tuple[str, ...]):
    with pytest.raises(ValueError) as error:
        read(*rows)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("ids", [[], [1, -2], "abc", [1.5], [True]])
def test_read_judged__token_ids_that_cannot_be_read(read, generated, ids: object):
    row = generated("a", ((40, END), 1.0))
    row["responses"][0]["token_ids"] = ids
    with pytest.raises(
        ValueError, match=r"judged\.jsonl:0, responses\[0\]: expected token_ids as a list of numbers"
    ):
        read(row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (flat("a"), ("no row has a field labels or label", "data.labels_field")),
        ({"prompt": "a", "label": 1}, ("no row has a field steps", "data.steps_field")),
        (steps(3), ("judged.jsonl:0, label: expected", "of the first wrong one (0 to 2, -1 for none), found 3")),
        (steps(-2), ("judged.jsonl:0, label: expected a label for each of 3 steps", "found -2")),
        (steps(True), ("judged.jsonl:0, label: expected a label for each of 3 steps", "True")),
        (steps(1.0), ("expected a label for each of 3 steps", "1.0")),
        (steps("1"), ("expected a label for each of 3 steps", "'1'")),
        (steps([1, 0]), ("expected a label for each of 3 steps", "[1, 0]")),
        (steps([1, 0, 2]), ("judged.jsonl:0, label: the label of step 2", "found 2")),
        (steps([1, "good", 1]), ("the label of step 1", "'good'")),
        (steps([1, None, 1]), ("judged.jsonl:0, label: step 1 has no label",)),
        (steps([1, -1, True]), ("the data has labels of -1, so that True is neither",)),
        (steps(1, "a", " ", "c"), ("judged.jsonl:0, steps[1]: expected text that is not empty",)),
        ({"prompt": "a", "steps": "abc", "label": 1}, ("judged.jsonl:0, steps: expected a list", "'abc'")),
        ({"prompt": "a", "steps": [], "label": -1}, ("judged.jsonl:0, steps: expected a list with at least one",)),
    ],
)  # fmt: skip
def test_read_judged__steps_that_cannot_be_read(read, row: dict, words: tuple[str, ...]):
    with pytest.raises(ValueError) as error:
        read(row, steps=True)
    assert all(word in str(error.value) for word in words), error.value


# Held out


def judged(questions: list[str]) -> list[JudgedResponse]:
    """Three responses to each question."""
    response = Response((5,), (0.0,), "x", False, 1.0)
    return [
        JudgedResponse(g, Prompt(f"p{g}", (1, 2), ask(question), None), response)
        for g, question in enumerate(questions)
        for _ in range(3)
    ]


def questions_of(rows: list[JudgedResponse]) -> set[str]:
    return {row.prompt.messages[0]["content"] for row in rows}  # type: ignore[index]


def test_split_prompts__prompts_are_held_out_whole_and_about_the_share():
    rows = judged([f"q{i}" for i in range(400)])
    training, held = split_prompts(rows, 0.25, seed=3)
    assert not questions_of(training) & questions_of(held)
    assert sorted(map(id, training + held)) == sorted(map(id, rows))
    deviation = math.sqrt(400 * 0.25 * 0.75)
    assert abs(len(questions_of(held)) - 100) < 4 * deviation
    assert questions_of(held) != questions_of(split_prompts(rows, 0.25, seed=4)[1])
    assert split_prompts(rows, 0, seed=3) == (rows, [])


def test_split_prompts__does_not_depend_on_the_other_prompts():
    """So a second stage on more data never trains on what the first held out."""
    some, more = [f"q{i}" for i in range(100)], [f"q{i}" for i in range(99, -1, -3)] + ["new", "newer"]
    first, second = (questions_of(split_prompts(judged(qs), 0.3, seed=0)[1]) for qs in (some, more))
    assert first & set(more) == second & set(some)
    assert second & set(some)


def test_split_prompts__one_at_least_is_held_out_and_one_is_left():
    assert len(questions_of(split_prompts(judged(["a", "b", "c"]), 1e-9, seed=0)[1])) == 1
    for rows, share in ((judged(["a"]), 0.1), (judged(["a", "b"]), 1.0)):
        with pytest.raises(ValueError, match=r"held_out=.* keeps all . prompts from training: lower it"):
            split_prompts(rows, share, seed=0)
