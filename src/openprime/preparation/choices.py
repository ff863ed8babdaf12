"""Multiple choice: found by its options, and turned into an open question (PRIME, arXiv 2502.01456, appendix A)."""

import re
from dataclasses import dataclass
from itertools import pairwise

from openprime.verifiers.math import option
from openprime.verifiers.normal_form import tidy

SPACE = r"(?:\s|~|\\[ ,;!]|\\q?quad|\\hspace\*?\{[^}]*\}|\\\\)*"
LABEL = re.compile(
    r"(?:(?<=\s)|(?<=[$~}.?:])|(?<=quad)|^)(?P<dollar>\$)?\\?(?:(?:textbf|text|mathrm|textrm|mathbf|bf|rm)\s*)?\{?\s*(?:\\textbf\{)?"
    r"(?:\(\s*(?P<inside>[A-H])\s*\)|(?P<before>[A-H])\s*[).:])\s*\}*(?(dollar)\$?)"
)
"""(A), A), A. or A:, with what LaTeX puts around it."""
FEWEST = 3
"""Options of a multiple choice."""
NEEDED = re.compile(
    r"\b(?:following|statements?|options?|choices?|above|below|correct|incorrect|closest|nearest|best (?:describes"
    r"|approximates)|could be|cannot be|can not be|might be|must be|which (?:one )?of|none of|false|true|not)\b",
    re.IGNORECASE,
)
"""In a question that needs its options: they are compared, or several would do."""
OTHERS = re.compile(
    r"\b(?:none|all|both|neither|any) of|cannot be|not enough|undetermined|other\b", re.IGNORECASE
)
"""An option that speaks of the others."""


@dataclass(frozen=True, slots=True)
class Open:
    """A multiple choice as an open question."""

    question: str
    """Without the options."""
    answer: str
    """The text of the right option; empty where it needs its options, or which is right is not known."""


def opened(question: str, reference: str) -> Open | None:
    """The open question of a multiple choice, whose reference is an option's letter or text; None for another one."""
    found = options(question)
    if not found:
        return None
    stem, texts = found
    letter, text = option(tidy(reference))
    same = next((one for one in texts.values() if tidy(one) == tidy(text or reference)), "")
    answer = texts.get(letter, "") if letter else same or reference
    unfit = not stem or NEEDED.search(stem) or OTHERS.search(answer)
    return Open(stem, "" if unfit else answer)


def options(question: str) -> tuple[str, dict[str, str]] | None:
    """(what stands before the options, letter -> text) of a multiple choice; None for another question.

    Options are at least three texts behind the letters from A on, at the end of the question.
    """
    labels = [
        (match["inside"] or match["before"], match.start(), match.end()) for match in LABEL.finditer(question)
    ]
    first = max((i for i, (letter, _, _) in enumerate(labels) if letter == "A"), default=len(labels))
    run = labels[first:]
    if len(run) < FEWEST or [letter for letter, _, _ in run] != list("ABCDEFGH"[: len(run)]):
        return None
    ends = [later for (_, _, _), (_, later, _) in pairwise(run)] + [len(question)]
    texts = {letter: _bare(question[begin:end]) for (letter, _, begin), end in zip(run, ends, strict=True)}
    if not all(texts.values()):
        return None
    stem = question[: run[0][1]].rstrip(" \t\n$~\\")
    return (stem + "$" if stem.count("$") % 2 else stem), texts


def _bare(text: str) -> str:
    """An option without the space around it, and with both its dollars or none."""
    text = re.sub(rf"^{SPACE}|{SPACE}[;,.]?{SPACE}$", "", text)
    if text.count("$") % 2:
        text = text.removesuffix("$") if text.endswith("$") else text.removeprefix("$")
    return re.sub(rf"^{SPACE}|{SPACE}$", "", text)
