"""What a row is dropped for: patterns of its question, and references that a verifier cannot read."""

import re
from collections.abc import Collection

from openprime.data.readers import Row
from openprime.preparation.choices import opened
from openprime.verifiers.math import is_readable, reference_of

REASONS = {
    "no_question": "no question, or a prompt that cannot be read",
    "figure": "a question about a figure, which the text does not have",
    "proof": "a proof is asked for, which no final answer stands for",
    "no_reference": "no reference answer",
    "choice": "a multiple choice that cannot be asked without its options",
    "unparsable": "a reference that the verifier cannot read",
    "duplicate": "the question of an earlier row",
    "near_duplicate": "nearly the question of an earlier row, with its answer",
    "benchmark": "a question of a benchmark, or nearly",
    "refused": "the model's server refused the question",
    "unsolvable": "the model says that the question cannot be solved",
    "other_answer": "the model's responses agree on another answer than the reference",
    "no_agreement": "the model's responses do not agree on an answer",
}
"""Why rows are dropped, in the order in which it is looked for."""

SHOWN = r"(?:figure|diagram|picture|image|graph|drawing|illustration|sketch|chart|number line)s?"
FIGURE = re.compile(
    r"\[asy\]|\\begin\{(?:asy|tikzpicture|picture|figure)\}|\\includegraphics|!\[[^\]]*\]\(|<(?:img|image)\b"
    rf"|\b(?:as )?(?:shown|depicted|pictured|illustrated|given) (?:\w+ )?(?:in|on|by) the (?:\w+ )?{SHOWN}\b"
    rf"|\b(?:in|see|from|consider|on) the (?:(?:following|adjacent|above|accompanying|given|attached) )?"
    rf"(?:figure|diagram|illustration)s?\b"
    rf"|\b{SHOWN} (?:(?:is |are )?shown|(?:to the |at )?(?:right|left)|below|above|shows)\b"
    r"|\b(?:as )?(?:shown|pictured|illustrated) (?:below|above|here|at right|at left|to the right)\b"
    r"|\bas (?:shown|pictured|illustrated)\b[.,]",
    re.IGNORECASE,
)
PROOF = re.compile(
    r"(?:^|[.!?:;,)\]$*\n]\s*|\b(?:and|then|to|also|please|us|\d\))\s+)"
    r"(?:(?:dis)?prove\b(?! (?:to be|useful|helpful))|(?:show|demonstrate|verify)(?=,? that\b|\s*:|\s*\$|\s+\\)"
    r"|(?:give|write|find) a (?:\w+ )?proof\b)",
    re.IGNORECASE,
)
NO_REFERENCE = re.compile(
    r"(?:proof|see (?:the )?(?:solution|proof|explanation)|not (?:found|provided|available)|n/?a|nan|null|undefined"
    r"|answer|notfound)\W*",
    re.IGNORECASE,
)
"""What stands in the place of a reference where there is none."""


def fault(question: str, answer: str, filters: Collection[str]) -> str:
    """Why a mathematical question is dropped, one of REASONS; empty where it is kept. An option is no reference yet."""
    if not question.strip():
        return "no_question"
    if "figure" in filters and FIGURE.search(question):
        return "figure"
    reference = reference_of(answer)
    if "proof" in filters and (
        PROOF.search(question) or re.fullmatch(r"\W*proof\W*", reference, re.IGNORECASE)
    ):
        return "proof"
    if not reference or NO_REFERENCE.fullmatch(reference):
        return "no_reference"
    return ""


def judge(record: Row, filters: Collection[str], choices: str) -> tuple[str, str, str]:
    """(reason, question, answer) of a record: the reason is empty where it is kept; of a multiple choice that is kept
    question and answer are the open ones.

    What another verifier than `math` judges is dropped for nothing but an empty question.
    """
    question, answer = record["question"], record["answer"]
    if record["verifier"] != "math":
        return ("" if question.strip() else "no_question"), question, answer
    if reason := fault(question, answer, filters):
        return reason, question, answer
    found = opened(question, reference_of(answer))
    if found is not None:
        if choices == "drop" or not found.answer:
            return "choice", question, answer
        question, answer = found.question, found.answer
    if "unparsable" in filters and not is_readable(reference_of(answer)):
        return "unparsable", question, answer
    return "", question, answer
