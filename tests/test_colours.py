"""A score in a notebook's cell: tokens, colours, numbers."""

import re
from html.parser import HTMLParser

import pytest

from openprime.colours import full_colour, tint
from openprime.prime.prm import Score


class Spans(HTMLParser):
    """The tokens of `tokens_html`: (text, colour, title)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.tags: set[str] = set()
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if "title" in given:
            background = re.search(r"rgba\(.*?\)", given["style"] or "")
            assert background
            self.found.append(["", background[0], given["title"] or ""])
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag == "span"
        if tag == "div":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside and data != "⏎":
            self.found[-1][0] += data


def score(tokens: list[str], rewards: list[float], **more) -> Score:
    """A score whose steps are lines."""
    text = "".join(tokens)
    steps = text.splitlines(keepends=True)
    places, line = [], 0
    for token in tokens:
        places.append(min(line, len(steps) - 1))
        line += token.count("\n")
    return Score(tokens, rewards, [-1.0] * len(tokens), steps, places, **more)


def test_score__a_cell_shows_tokens_in_the_colours_of_their_rewards():
    got = score(["<b>", " &amp;\n", "no", ""], [0.5, -1.0, 0.0, 0.25])
    spans = Spans(got._repr_html_())
    assert [text for text, *_ in spans.found] == ["<b>", " &amp;\n", "no", "∎"]
    assert [title for *_, title in spans.found] == ["+0.5000", "-1.0000", "+0.0000", "+0.2500"]
    assert [shade for _, shade, _ in spans.found] == [
        "rgba(37,99,235,0.375)",  # half as strong as the strongest
        "rgba(220,38,38,0.750)",
        "rgba(220,38,38,0.000)",
        "rgba(37,99,235,0.188)",
    ]
    assert "b" not in spans.tags, "text is shown and never run"
    assert "script" not in spans.tags
    assert "reward -0.2500, probability of being right 0.438" in got._repr_html_()  # sigmoid(-.25)
    assert re.findall(r">([+-]\d\.\d{4})</td>", got._repr_html_()) == ["-0.5000", "+0.2500"]


def test_score__a_token_inside_a_character_has_its_reward_with_the_character():
    spans = Spans(score(["", "é", "x", ""], [0.25, 0.5, 0.125, 0.0]).html(1.0))
    assert [(text, title) for text, _, title in spans.found] == [
        ("é", "+0.7500"),
        ("x", "+0.1250"),
        ("∎", "+0.0000"),
    ]


def test_score__its_repr_has_the_numbers_in_a_line():
    assert repr(score(["a\n", "b", ""], [1.0, -0.5, 0.25])) == (
        "Score(reward=+0.7500, probability=0.6792, step_rewards=[+1.0000, -0.2500], 3 tokens)"
    )
    assert "reward=+0.2500, " in repr(score(["a\n", "b", ""], [1.0, -0.5, 0.25], scoring="mean"))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([0.1, -0.4], 0.4), ([0.0], 1.0), ([*[0.1] * 200, 9.0], 0.1), ([0.1] * 98 + [-9.0], 9.0)],
)
def test_full_colour__is_the_largest_but_for_outliers_among_many(rewards: list[float], expected: float):
    assert full_colour(rewards) == expected


def test_tint__goes_no_further_than_three_quarters():
    assert tint(7.0) == tint(1.0) == "rgba(37,99,235,0.750)"
