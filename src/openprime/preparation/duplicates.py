"""Questions that are the same or nearly: word for word by their hashes, nearly by datasketch's MinHash and LSH."""

import importlib.util
import re
import zlib
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from openprime.types import UserError

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 64
"""Of a MinHash. What it finds is compared by its words, so that more would only find more."""
FOUND = 0.85
"""Probability with which a pair at the threshold is found; 0.997 at a similarity of 0.9 where it is 0.8."""
WORD = re.compile(r"\w+|[^\w\s$]")
SPACING = re.compile(r"\\(?:[,;:! ]|(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z]))")


def check_installed() -> None:
    """Raises UserError where datasketch is not installed."""
    if importlib.util.find_spec("datasketch") is None:
        raise UserError(
            "near duplicates and benchmarks need datasketch: pip install 'openprime[data]', or leave near_duplicate "
            "and benchmarks out"
        )


def words(question: str) -> list[str]:
    """The words of a question, without case, white space, dollars, and LaTeX that only spaces."""
    return WORD.findall(SPACING.sub(" ", question).lower())


def digest(question: str) -> bytes:
    """What questions of the same words share."""
    return blake2b(" ".join(words(question)).encode("utf-8", "replace"), digest_size=8).digest()


def pieces(question: str) -> set[str]:
    """Every three words in a row."""
    found = words(question)
    return {" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Share of the pieces of two questions that both have."""
    return len(one & other) / max(1, len(one | other))


class Sketcher:
    """Makes signatures of questions, all with the same permutations."""

    def __init__(self) -> None:
        from datasketch import MinHash

        self.make = MinHash
        self.base = MinHash(PERMUTATIONS, hashfunc=zlib.crc32)

    def sketch(self, question: str, answer: str = "") -> "MinHash":
        """The MinHash of a question's pieces. Those of two questions with different answers have none in common, so
        that variants of one question with other numbers are never compared, however many there are."""
        found = self.of(self.base.hashvalues)
        found.update_batch([f"{answer}\0{piece}".encode("utf-8", "replace") for piece in pieces(question)])
        return found

    def of(self, values: np.ndarray) -> "MinHash":
        """A MinHash with these values [PERMUTATIONS] uint32."""
        base: Any = self.base
        own = {"permutations": base.permutations, "scheme": base.scheme, "hashfunc": base.hashfunc}
        return self.make(hashvalues=values, **own)


class Index:
    """Questions by their signatures."""

    def __init__(self, similarity: float) -> None:
        """`similarity`: the Jaccard similarity from which on two are nearly the same."""
        from datasketch import MinHashLSH

        self.similarity = similarity
        self.lsh = MinHashLSH(num_perm=PERMUTATIONS, params=bands(similarity), hashfunc=_short)

    def add(self, number: int, sketch: "MinHash") -> None:
        """Take a question up."""
        self.lsh.insert(number, sketch, check_duplication=False)

    def find(self, question: str, sketch: "MinHash", text_of: Callable[[int], str]) -> int | None:
        """The first question that is nearly this one; `text_of` gives the texts of those that may be."""
        own, numbers = set[str](), cast(list[int], self.lsh.query(sketch))
        for number in sorted(numbers):
            own = own or pieces(question)
            if jaccard(own, pieces(text_of(number))) >= self.similarity:
                return number
        return None


def bands(similarity: float) -> tuple[int, int]:
    """How many bands of how many values: the longest ones by which a pair of this similarity is found with probability
    FOUND, 1 - (1 - s^r)^b (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4)."""
    lengths = range(1, PERMUTATIONS // 2 + 1)
    long_enough = [r for r in lengths if 1 - (1 - similarity**r) ** (PERMUTATIONS // r) >= FOUND]
    return PERMUTATIONS // max(long_enough), max(long_enough)


def _short(band: bytes) -> bytes:
    return blake2b(band, digest_size=8).digest()
