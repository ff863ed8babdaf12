"""Each architecture of docs/architectures.md against plain transformers: the page is what is measured."""

import warnings
from pathlib import Path

import pytest
import torch

from openprime.models.checks import positions
from support.architectures import DEFAULT, EXACT, NAMES, SLOW, VOCABULARY, ZOO, line, make, measure, page

pytest.importorskip("peft")
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
ONE_FORM = {"Nemotron-H": 1e-3, "Zamba2": 0.1}
"""Of which transformers has two forms that differ: the largest difference in nats."""


def check(name: str) -> None:
    """What is not refused differs by rounding; the page has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure(name)
    for value, most in (
        (found.scoring, EXACT),
        (found.exported, EXACT),
        (found.lora, EXACT),
        (found.plan, 0.01),
    ):
        assert isinstance(value, str) or value <= most
    assert isinstance(found.sampling, str) or found.sampling <= ONE_FORM.get(name, EXACT)
    assert line(name, found) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", DEFAULT)
def test_architectures__are_as_the_page_says(name: str):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_architectures__rarer_ones_are_as_the_page_says(name: str):
    check(name)


def test_architectures__the_page_has_them_all_and_nothing_else():
    text = PAGE.read_text(encoding="utf-8")
    rows = [
        row for row in text.splitlines() if (row.startswith("| ") and "| yes" in row) or "| refused" in row
    ]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == NAMES
    assert "\n".join(row for row in text.splitlines() if row not in rows) + "\n" == page({})
    assert len({kind for kind, _ in ZOO.values()}) >= 40


@pytest.mark.parametrize("name", DEFAULT + [name for name in SLOW if ZOO[name][1].get("n_positions")])
def test_positions__are_the_most_tokens_of_a_table_that_ends(name: str):
    """One token more than max_position_embeddings is an error in transformers, or no limit here."""
    model = make(name)
    most, why = positions(model)
    ends = False
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(65)[None] % VOCABULARY, use_cache=False)
    except (IndexError, RuntimeError):
        ends = True
    assert ends == (most == 64 and why == "positions")
