"""The steps of a response, and which tokens make each of them."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from transformers import PreTrainedTokenizerBase

from openprime.config import StepSplit

ACTIONS = ("ASSESS", "ADVANCE", "VERIFY", "SIMPLIFY", "SYNTHESIZE", "PIVOT", "OUTPUT")
"""The seven actions of the published SFT data (PRIME, section 4.1)."""
ENDS = {
    "newline": re.compile(r"\n+"),
    "blank_line": re.compile(r"\n(?:[ \t\r]*\n)+"),
    "numbered": re.compile(r"(?=^[ \t]*(?:#+ *)?(?:\*\*)?Step \d+\b)", re.MULTILINE),
    "actions": re.compile(rf"(?=^[ \t]*\[(?:{'|'.join(ACTIONS)})\])", re.MULTILINE),
}
"""A step ends behind a match."""


def split_steps(text: str, how: StepSplit) -> list[str]:
    """The steps of a text; joined they are the text. A step is never blank, unless the whole text is."""
    cuts = [0, *(match.end() for match in ENDS[how].finditer(text)), len(text)]
    steps = [""]
    for start, end in pairwise(cuts):
        piece = text[start:end]
        if steps[-1].strip() and piece.strip():
            steps.append(piece)
        else:  # blank lines belong to the step before them, a blank beginning to the first step
            steps[-1] += piece
    return steps


def apart(steps: Sequence[str]) -> list[str]:
    """Steps that data sets keep as a list, with a blank line between them: joined they are the response."""
    return [*(f"{step}\n\n" for step in steps[:-1]), *steps[-1:]]


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the decoded response, special tokens left out.

    A token that ends inside a character has no text of its own: the character goes to the token that
    completes it.
    """

    def decode(start: int, end: int) -> str:
        return str(tokenizer.decode(list(token_ids[start:end]), skip_special_tokens=True))

    whole = decode(0, len(token_ids))
    alone = [decode(t, t + 1) for t in range(len(token_ids))]
    if "".join(alone) == whole:
        return alone
    # Some tokenizers write a token differently at a text's beginning: decode each behind those before it.
    texts: list[str] = []
    done = start = end = 0  # characters that have a token; the tokens that made the last of them
    for t in range(len(token_ids)):
        piece = decode(start, t + 1)[len(decode(start, end)) :]
        if t + 1 == len(token_ids):
            piece = whole[done:]
        elif piece.endswith("\ufffd") or not whole.startswith(piece, done):  # inside a character
            piece = ""
        if piece:
            start, end, done = end, t + 1, done + len(piece)
        texts.append(piece)
    return texts


def pieces(text: str, written: str, starts: Sequence[int]) -> list[str]:
    """The part of `text` that each token has, where tokens begin at `starts` of a text in which it is `written`.

    Joined they are `text`. It may be written with other white space, as templates trim it. What stands before it and
    behind it has no part of it, such as a header or the end of a turn. Empty where it is not written there.
    """
    at = written.rfind(text)
    if at >= 0:
        places = [min(max(start - at, 0), len(text)) for start in starts]
    else:
        own, theirs = ([i for i, c in enumerate(one) if not c.isspace()] for one in (text, written))
        before = "".join(written.split()).rfind("".join(text.split()))
        if before < 0:
            return []
        counts = [bisect_left(theirs, start) - before for start in starts]
        places = [len(text) if count >= len(own) else own[count] if count > 0 else 0 for count in counts]
    cuts = [0, *places[1:], len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def steps_of_tokens(texts: Sequence[str], steps: Sequence[str]) -> list[int]:
    """For each token the step in which it begins; what has no text goes with the text behind it.

    `texts` from `token_texts`, `steps` such that both join to the same text. What stands behind all text,
    such as the end-of-sequence token, belongs to the last step.
    """
    ends = list(accumulate(map(len, steps)))
    starts = [0, *accumulate(map(len, texts))][: len(texts)]
    return [min(bisect_right(ends, start), len(steps) - 1) for start in starts]
