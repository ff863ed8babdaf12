"""Tasks of reasoning-gym: rows of its generators as prompts and demonstrations."""

import pytest

from openprime.config import DataConfig
from openprime.data.readers import load_rows, read_demonstrations, read_prompts
from openprime.models.tiny import build_tokenizer

pytest.importorskip("reasoning_gym")
SUMS = DataConfig(source="gym:chain_sum", limit=20, gym={"min_terms": 2, "max_terms": 2})


def test_rows__are_those_of_the_generator_and_splits_share_no_seed():
    first = load_rows(SUMS)
    assert len(first) == 20
    for row in first:
        expression = row["question"].rpartition(":")[2].rstrip(" =")
        assert int(row["answer"]) == eval(expression)
        assert row["response"] == f"<answer>{row['answer']}</answer>"
    assert first == load_rows(SUMS)
    for change in ({"split": "test"}, {"task_seed": 1}):
        assert first != load_rows(SUMS.model_copy(update=change))


def test_rows__name_their_verifier_and_can_be_imitated():
    tokenizer = build_tokenizer([row["question"] for row in load_rows(SUMS)], 300)
    assert {prompt.verifier for prompt in read_prompts(SUMS, tokenizer).prompts} == {"reasoning_gym"}
    own = SUMS.model_copy(update={"verifier": "my:score"})
    assert {prompt.verifier for prompt in read_prompts(own, tokenizer).prompts} == {"my:score"}
    assert len(read_demonstrations(SUMS, tokenizer, 500).rows) == 20


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("gym:chain_sums", {}, "no task 'chain_sums'; did you mean chain_sum"),
        ("gym:zzzzzz", {}, "such as chain_sum"),
        ("gym:chain_sum", {"terms": 2}, "refuses .*terms"),
        ("gym:chain_sum", {"min_terms": 0}, "refuses .*min_terms"),
    ],
)
def test_rows__what_reasoning_gym_does_not_have_is_refused(source: str, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        load_rows(DataConfig(source=source, gym=settings))
