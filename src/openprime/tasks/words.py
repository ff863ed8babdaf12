"""Sentences with two given words, for a small pretrained model: many right answers to each prompt, a function judges.

Write one sentence with the words horse and bridge.    ->    The horse waits at the old bridge.
"""

import re
import zlib
from collections.abc import Sequence
from itertools import permutations
from random import Random
from typing import Any

from openprime.config import DataConfig

NOUNS = """
apple baker bird boat book bottle bread bridge candle castle chair city clock coat corn dog door dress egg
farmer field fire fish forest friend garden gate girl glass hat hill horse house island key king kitchen lamp leaf
letter market mirror moon mountain mouse night orange paper river road roof salt school ship shoe snow song spoon star
stone street table tower train tree wall window winter wolf
""".split()  # noqa: SIM905 - the list is three times as long


def rows(config: DataConfig) -> list[dict[str, Any]]:
    """Rows with prompt, words and response (a demonstration): the first `config.limit` (1,000 if 0) of the split's
    pairs, in an order of `config.task_seed`'s. A fifth of the pairs are the split `test`, whatever the seed.
    """
    pairs = [pair for pair in permutations(NOUNS, 2) if is_test(pair) == (config.split == "test")]
    Random(f"words-{config.task_seed}-{config.split}").shuffle(pairs)
    return [
        {
            "prompt": f"Write one sentence with the words {a} and {b}.",
            "words": [a, b],
            "response": f"The {a} is not far from the {b}.",
        }
        for a, b in pairs[: config.limit or 1000]
    ]


def is_test(pair: Sequence[str]) -> bool:
    """Whether a pair is for tests alone, in either order."""
    return zlib.crc32(" ".join(sorted(pair)).encode()) % 5 == 0


def score(
    prompts: Sequence[Any], completions: Sequence[Any], words: Sequence[Sequence[str]], **columns: Any
) -> list:
    """The verifier, `data.verifier: openprime.tasks.words:score`: 1 for a sentence that has the words, else 0."""
    return [
        float(is_right(completion, wanted)) for completion, wanted in zip(completions, words, strict=True)
    ]


def is_right(completion: str | list[dict[str, str]], words: Sequence[str]) -> bool:
    """Whether this is a single sentence of 5 to 20 words, hardly one of them twice, with the words asked for.

    Without the limits on length and repetition the shortest list of the words would be as good as a sentence.
    """
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    if not re.fullmatch(r"[A-Z][^.!?\n]*[.!?]", text.strip()):
        return False
    found = re.findall(r"[a-z']+", text.lower())
    return 5 <= len(found) <= 20 and len(set(found)) > 0.7 * len(found) and set(words) <= set(found)
