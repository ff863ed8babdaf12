"""The inspector of sampled responses, in a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openprime.cli import main
from support.sampled_runs import sampled_run


@pytest.fixture
def page(tmp_path: Path, browser: Any) -> Iterator[Any]:
    """The page of two runs of three and two groups; it must say nothing on the console."""
    runs = [
        sampled_run(tmp_path / "first"),
        sampled_run(tmp_path / "second", steps=2, algorithm="outcome"),
    ]
    out = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(out.as_uri())
    yield opened
    assert said == []
    opened.close()


def listed(page: Any) -> list[str]:
    """(run, step) of the groups that are listed."""
    return [button.get_attribute("data-key")[:-2] for button in page.locator("#groups button").all()]


def test_filters__by_run_step_outcome_and_text_in_every_order(page: Any):
    assert listed(page) == ["first 3", "first 2", "second 2", "first 1", "second 1"]
    assert page.locator("#count").inner_text() == "5 of 5 groups"
    page.select_option("#order", "largest")
    assert listed(page)[0] == "first 3"
    page.select_option("#order", "step")
    assert listed(page)[0] == "first 1"
    page.select_option("#run", "second")
    assert listed(page) == ["second 1", "second 2"]
    page.select_option("#step", "2")
    assert listed(page) == ["second 2"]
    page.select_option("#step", "3")
    assert page.locator("#group").inner_text() == "No group is like this."
    page.select_option("#step", "")
    page.select_option("#outcome", "right")
    assert len(listed(page)) == 2
    page.fill("#search", "STEP 1")
    assert listed(page) == ["second 1"]
    page.fill("#search", "plus\nfi".replace("\n", ""))
    assert listed(page) == []
    page.fill("#search", "five")
    assert len(listed(page)) == 2
    assert page.locator(".found").all_inner_texts() == ["FIVE"]


def test_group__right_and_wrong_side_by_side_with_tokens_in_their_colours(page: Any):
    first, second = page.locator("article.card").all()
    assert first.locator("h4").inner_text() == "3 ✓ right"
    assert second.locator("h4").inner_text() == "1 ✗ wrong"
    assert first.bounding_box()["y"] == second.bounding_box()["y"]
    assert [token.inner_text() for token in first.locator(".tok").all()] == ["two", " plus⏎\n", "four", "∎"]
    background = "token => token.style.backgroundColor"
    strongest = [
        card.locator(".tok").last.evaluate(background).removesuffix(")").split(", ")
        for card in (first, second)
    ]
    assert strongest == [["rgba(37", "99", "235", "0.75"], ["rgba(220", "38", "38", "0.75"]]
    assert first.locator(".steps tbody tr").count() == 2
    assert first.locator(".steps tbody td").all_inner_texts() == [
        "+0.3750", "", "two plus", "+1.8750", "", "four"
    ]  # fmt: skip
    page.select_option("#colour", "logprobs")
    assert first.locator(".tok").last.evaluate(background) == "rgba(220, 38, 38, 0.75)"
    page.click("[data-pick='3']")
    assert page.locator("article.card").count() == 3
    page.click("[data-pick='0']")
    page.click("[data-walk='1']")
    assert page.locator("#group h3").inner_text() == "Step 2, first"


def test_token__its_numbers_by_pointer_and_by_keyboard(page: Any):
    tokens = page.locator("article.card").first.locator(".tok")
    tokens.nth(2).hover()
    assert page.locator(".tip").inner_text().split("\n") == [
        "four", "reward +0.7500", "return +1.8750", "advantage +0.5000", "log-probability −0.5000"
    ]  # fmt: skip
    page.mouse.move(0, 0)
    assert page.locator(".tip").count() == 0
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tip b").inner_text() == "␣plus⏎"
    assert page.evaluate("document.activeElement.ariaLabel").startswith("␣plus⏎: reward +0.3750, return")
    page.keyboard.press("End")
    assert page.locator(".tip b").inner_text() == "end"
    page.keyboard.press("Escape")
    assert page.locator(".tip").count() == 0
    page.keyboard.press("Tab")  # one stop for all tokens of a response
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_page__on_a_phone_and_in_the_dark(page: Any):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    first, second = (card.bounding_box() for card in page.locator("article.card").all())
    assert first["x"] == second["x"]
    assert first["y"] < second["y"]
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(11, 18, 32)"
    button = page.locator("[data-run=second]")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
