"""The index against a comparison of all pairs."""

import random

import numpy as np
import pytest

from openprime.preparation.duplicates import Index, Sketcher, bands, digest, jaccard, pieces

WORDS = [f"w{i}" for i in range(400)]


def test_pieces__three_words_in_a_row_without_case_dollars_and_spacing():
    assert pieces(r"Find $x$, if\, \left(x\right) = 2") == {
        "find x ,", "x , if", ", if (", "if ( x", "( x )", "x ) =", ") = 2"
    }  # fmt: skip
    assert pieces("Hello you") == {"hello you"}
    assert digest("Find $x$.") == digest("find  x .")
    assert digest("Find $x$.") != digest("find y .")


def test_jaccard__by_hand():
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert jaccard(set(), set()) == 0


def changed(text: str, words: int, rng: random.Random) -> str:
    parts = text.split()
    for at in rng.sample(range(len(parts)), words):
        parts[at] = rng.choice(WORDS)
    return " ".join(parts)


def test_index__finds_what_all_pairs_find():
    """Nothing that is not there; of what is, nearly all."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=60)) for _ in range(60)]
    texts += [changed(rng.choice(texts[:60]), rng.randint(1, 6), rng) for _ in range(140)]
    index, sketcher = Index(0.8), Sketcher()
    found, expected = [], []
    for i, text in enumerate(texts):
        sketch = sketcher.of(np.frombuffer(sketcher.sketch(text).hashvalues.tobytes(), np.uint32))
        found.append(index.find(text, sketch, texts.__getitem__))
        expected.append(next((j for j in range(i) if jaccard(pieces(text), pieces(texts[j])) >= 0.8), None))
        index.add(i, sketch)
    there = [i for i, j in enumerate(expected) if j is not None]
    assert len(there) > 40
    assert all(expected[i] is not None for i, j in enumerate(found) if j is not None)
    assert sum(found[i] is not None for i in there) > 0.95 * len(there)


@pytest.mark.parametrize(("answer", "expected"), [("5", 0), ("6", None)])
def test_sketch__questions_with_different_answers_are_never_compared(answer: str, expected: int | None):
    text = "Tom has three boxes of twelve eggs and sells twenty of them before noon"
    index, sketcher = Index(0.8), Sketcher()
    index.add(0, sketcher.sketch(text, "5"))
    asked: list[int] = []
    assert index.find(text, sketcher.sketch(text, answer), lambda i: asked.append(i) or text) == expected
    assert asked == ([0] if expected == 0 else [])


def test_bands__by_hand():
    assert bands(0.8) == (9, 7)  # 1 - (1 - .2097)^9 = .880; with 8 values in 8 bands .770
    assert bands(0.5) == (21, 3)  # 1 - (1 - .125)^21 = .939; with 4 values in 16 bands .644
