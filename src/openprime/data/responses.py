"""Judged responses in files: a line a prompt, with all its responses."""

import zlib
from typing import Any

from transformers import PreTrainedTokenizerBase

from openprime.config import PromptFormat
from openprime.data.chat import complete
from openprime.types import Group, Prompt, Response


def group_row(item: int, group: Group, form: PromptFormat, vocabulary: str) -> dict[str, Any]:
    """What is written of a group: the whole prompt as the model was asked, and each response.

    `item` is the row's number in the data; `vocabulary` from `vocabulary_id` says whose the token ids are.
    """
    prompt = group.prompt
    return {
        "item": item,
        "id": prompt.id,
        "prompt": complete(prompt.messages, prompt.id, form, prompt.verifier),
        "answer": prompt.answer,
        "vocabulary": vocabulary,
        "responses": [response_row(response) for response in group.responses],
    }


def row_number(prompt: Prompt) -> int:
    """Which row of the data a prompt is, those counted that were left out."""
    return int(prompt.id.rpartition(":")[2])


def response_row(response: Response) -> dict[str, Any]:
    """What is written of a response."""
    return {
        "text": response.text,
        "token_ids": list(response.token_ids),
        "outcome": response.outcome,
        "reason": response.reason,
        "truncated": response.truncated,
    }


def vocabulary_id(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name of a vocabulary: two tokenizers with the same one read the same token ids alike."""
    items = sorted(tokenizer.get_vocab().items())
    return f"{zlib.crc32(repr(items).encode()):08x}"
