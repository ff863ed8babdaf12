"""The steps of a response, and which tokens make each of them."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from openprime.config import StepSplit
from openprime.data.chat import ACTIONS

ENDS = {
    "newline": re.compile(r"\n+"),
    "blank_line": re.compile(r"\n(?:[ \t]*\n)+"),
    "numbered": re.compile(r"(?=^[ \t]*(?:#+ *)?(?:\*\*)?Step \d+\b)", re.MULTILINE),
    "actions": re.compile(rf"(?=^[ \t]*\[(?:{'|'.join(ACTIONS)})\])", re.MULTILINE),
}
"""A step ends behind a match."""


def split_steps(text: str, how: StepSplit) -> list[str]:
    """The steps of a text; joined they are the text. A step is never blank, unless the whole text is."""
    cuts = [0, *(match.end() for match in ENDS[how].finditer(text)), len(text)]
    steps: list[str] = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        piece = text[start:end]
        if steps and not piece.strip():
            steps[-1] += piece
        elif steps and not steps[-1].strip():  # a blank beginning belongs to the first step
            steps[-1] += piece
        elif piece or not steps:
            steps.append(piece)
    return steps


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the decoded response, special tokens left out.

    A token that ends inside a character has no text of its own: the character goes to the token that
    completes it.
    """
    whole = str(tokenizer.decode(token_ids, skip_special_tokens=True))
    alone = [str(tokenizer.decode([token], skip_special_tokens=True)) for token in token_ids]
    if "".join(alone) == whole:
        return alone
    texts, done = [], ""
    for t in range(len(token_ids)):  # some tokenizers write a token differently at a text's beginning
        prefix = str(tokenizer.decode(token_ids[: t + 1], skip_special_tokens=True))
        complete = whole if t + 1 == len(token_ids) else prefix.rstrip("\ufffd")
        if not whole.startswith(complete) or len(complete) < len(done):
            complete = done
        texts.append(complete[len(done) :])
        done = complete
    return texts


def text_of_tokens(tokenizer: PreTrainedTokenizerBase, text: str, token_ids: Sequence[int]) -> list[str]:
    """As `token_texts`, for a text of which `token_ids` are the encoding and an end-of-sequence token.

    Joined they are the text itself, also where the tokenizer does not decode it as it was.
    """
    if not tokenizer.is_fast:
        return token_texts(tokenizer, token_ids)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    cuts = [0, *(start for start, _ in offsets[1:]), len(text), len(text)] if offsets else [0, len(text)]
    return [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]


def steps_of_tokens(texts: Sequence[str], steps: Sequence[str]) -> list[int]:
    """For each token the step in which it begins; what has no text belongs to the last step that has begun.

    `texts` from `token_texts`, `steps` such that both join to the same text.
    """
    ends = list(accumulate(map(len, steps)))
    starts = [0, *accumulate(map(len, texts))][: len(texts)]
    return [
        min(bisect_right(ends, start if text else start - 1), len(steps) - 1)
        for start, text in zip(starts, texts, strict=True)
    ]
