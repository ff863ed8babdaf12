"""Judged responses, to train an implicit PRM on: each with an outcome, or with a label for each of its steps."""

import json
import math
import random
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.config import JudgedDataConfig, PromptFormat
from openprime.data.chat import Messages, complete, encode_prompts, encode_responses, read_messages
from openprime.data.collate import collate
from openprime.data.readers import (
    PROMPT_FIELDS,
    RESPONSE_FIELDS,
    Row,
    field_of,
    filled,
    known_fields,
    load_rows,
    response_text,
    row_names,
    short_enough,
    value_at,
    verifiers_of,
    without_answer,
)
from openprime.data.steps import apart, steps_of_tokens, text_of_tokens
from openprime.types import Batch, Group, Prompt, Response, UserError

OUTCOME_FIELDS = ("outcome", "correct", "label")
LABELS_FIELDS = ("labels", "label")


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """A response to a prompt, and how it was judged."""

    group: int
    """Number of the prompt: those with the same number answer the same one."""
    prompt: Prompt
    """Its messages are complete, as the model is asked."""
    response: Response
    """With its outcome; where steps are labelled that is the label of the last one."""
    steps: tuple[str, ...] = ()
    """The labelled steps; joined they are the response's text."""
    labels: tuple[float, ...] = ()
    """A label in [0, 1] for each step."""
    ends: tuple[int, ...] = ()
    """The last token of each step, counted from the first of the response."""


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """Judged responses, those to the same prompt one after the other."""

    rows: list[JudgedResponse]
    prompts: int
    """How many prompts they answer."""
    notes: list[str]
    """What was left out and why, for the user."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A judged response as it stands in the data."""

    name: str
    messages: Messages
    text: str
    outcome: float | None
    token_ids: tuple[int, ...] | None = None
    """None: the text has to be encoded."""
    truncated: bool = False
    steps: tuple[str, ...] = ()
    labels: tuple[float, ...] = ()


def read_judged(
    config: JudgedDataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int, steps: bool = False
) -> JudgedSet:
    """The judged responses of a data set; responses to the same messages are one group, wherever they stand.

    Reads the file of `openprime generate` (a line a prompt with its `responses`), rows with a prompt, a
    response and an outcome in [0, 1], and with `steps` rows with a prompt, its steps and their labels. Token
    ids are taken as they are if they are of this tokenizer's vocabulary, else the text is encoded (trap 13).

    What has no outcome or no labels, or is longer than `max_tokens` with its prompt, is left out. Raises
    ValueError for rows that cannot be read, and where nothing is left.
    """
    rows = load_rows(config)
    generated = any(isinstance(row.get("responses"), list) for row in rows)
    read = _read_steps if steps else _read_generated if generated else _read_outcomes
    found, notes = read(config, rows, tokenizer)
    kept = [f for f in found if f.outcome is not None]
    if not kept:
        raise UserError(
            f"{config.source}: none of {len(found)} responses has an outcome: nothing to learn from"
        )
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} of {len(found)} responses have no outcome: left out")
    return _tokenised(config, kept, tokenizer, max_tokens, notes)


def split_prompts(
    rows: Sequence[JudgedResponse], share: float, seed: int
) -> tuple[list[JudgedResponse], list[JudgedResponse]]:
    """(training, held out): about `share` of the prompts with all their responses, at least one if share > 0.

    Who is held out depends on the seed and the prompt's own messages, not on the other prompts. Raises
    ValueError where none is left to train on.
    """
    asked = {row.group: _key(row.prompt.messages) for row in rows}
    place = {group: random.Random(f"held-out-{seed}-{key}").random() for group, key in asked.items()}
    held = {group for group, at in place.items() if at < share}
    if share and not held:
        held = {min(place, key=lambda group: place[group])}
    if len(held) == len(place):
        raise UserError(
            f"held_out={share} keeps all {len(place)} prompts from training: lower it, or take more prompts"
        )
    return [r for r in rows if r.group not in held], [r for r in rows if r.group in held]


def collate_judged(rows: Sequence[JudgedResponse], pad_id: int) -> tuple[Batch, Tensor]:
    """Judged responses as a batch, and the labels [B, T] of their steps.

    The batch's `step_end` marks the last token of each labelled step; labels are 0 off it. Where a step has
    no token of its own, the last step that ends at the token has the label.
    """
    batch = collate([Group(row.prompt, (row.response,), 0) for row in rows], frozenset(), pad_id)
    step_end, labels = torch.zeros_like(batch.step_end), torch.zeros_like(batch.logprobs)
    for b, row in enumerate(rows):
        for end, label in zip(row.ends, row.labels, strict=True):
            step_end[b, len(row.prompt.token_ids) + end] = True
            labels[b, len(row.prompt.token_ids) + end] = label
    return replace(batch, group=torch.tensor([row.group for row in rows]), step_end=step_end), labels


def _read_generated(
    config: JudgedDataConfig, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[_Found], list[str]]:
    """The file of `openprime generate`; its prompts are complete already."""
    added = [name for name in ("system", "suffix", "prompt_template") if getattr(config, name)]
    if config.template != "none":
        added.append("template")
    if added:
        raise UserError(
            f"{config.source}: its prompts are as the model was asked, with all that was added then: "
            f"leave {' and '.join(f'data.{name}' for name in added)} out"
        )
    prompt_field = field_of(config, rows, "prompt_field", PROMPT_FIELDS)
    own, found, lines, foreign = vocabulary_id(tokenizer), [], [], 0
    for name, row in zip(row_names(config, len(rows)), rows, strict=True):
        messages = complete(read_messages(value_at(row, prompt_field), name), name, PromptFormat(), "math")
        responses = row.get("responses")
        if not isinstance(responses, list) or not responses:
            raise UserError(
                f"{name}: expected a list of responses, and one at least, found {responses!r:.80}"
            )
        lines.append(_key(messages))
        for i, response in enumerate(responses):
            where = f"{name}, response {i}"
            text = response.get("text") if isinstance(response, dict) else None
            if not isinstance(text, str):
                raise UserError(f"{where}: expected an object with a `text`, found {response!r:.80}")
            ids = _token_ids(response.get("token_ids"), where) if row.get("vocabulary") == own else None
            foreign += ids is None
            outcome = _number(response.get("outcome"), f"{where}: its outcome")
            found.append(_Found(where, messages, text, outcome, ids, response.get("truncated") is True))
    notes = []
    if foreign:
        notes.append(
            f"{foreign} of {len(found)} responses have no token ids of this model's vocabulary: their text is encoded"
        )
    if len(set(lines)) < len(lines):
        notes.append(
            f"{len(lines) - len(set(lines))} of {len(lines)} lines repeat a prompt: merged with the first"
        )
    return found, notes


def _read_outcomes(
    config: JudgedDataConfig, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[_Found], list[str]]:
    """A prompt, a response and its outcome a row; or a conversation, whose last message is the response."""
    outcome_field = field_of(config, rows, "outcome_field", OUTCOME_FIELDS)
    if not outcome_field:
        raise UserError(
            f"{config.source}: no row has an outcome: no field {', '.join(OUTCOME_FIELDS)}; there are: "
            f"{known_fields(rows)}. Name the right one in data.outcome_field"
        )
    response_field = field_of(config, rows, "response_field", RESPONSE_FIELDS)
    names, verifiers = row_names(config, len(rows)), verifiers_of(config, rows)
    prompt_field = "" if config.prompt_template else field_of(config, rows, "prompt_field", PROMPT_FIELDS)
    found = []
    for name, row, verifier in zip(names, rows, verifiers, strict=True):
        if response_field and response_field != prompt_field:
            prompt, response = _prompt(config, rows, row, name, prompt_field), value_at(row, response_field)
        else:
            chat = value_at(row, prompt_field)
            if not isinstance(chat, list) or len(chat) < 2:
                raise UserError(
                    f"{name}: no response to judge: {prompt_field or 'the prompt'} is no conversation, and no row has "
                    f"a field {' or '.join(RESPONSE_FIELDS)}; there are: {known_fields(rows)}. "
                    "Name it in data.response_field; step labels need loss=steps"
                )
            prompt, response = chat[:-1], chat[-1:]
        messages = complete(read_messages(prompt, name), name, config, verifier)
        outcome = _number(value_at(row, outcome_field), f"{name}: its outcome ({outcome_field})")
        found.append(_Found(name, messages, response_text(response, name), outcome))
    return found, []


def _read_steps(
    config: JudgedDataConfig, rows: list[Row], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[_Found], list[str]]:
    """A prompt, a list of steps and their labels a row; steps are joined by a blank line.

    Labels are a list, one a step: in [0, 1], booleans, or +1 and -1 all through the data. Or one integer, the
    index of the first wrong step, -1 for none (ProcessBench): the steps before it are right, and it and all
    after it wrong, for what is built on an error cannot lead to a right answer but by luck.
    """
    labels_field = field_of(config, rows, "labels_field", LABELS_FIELDS)
    if not labels_field or all(value_at(row, config.steps_field) is None for row in rows):
        missing = LABELS_FIELDS if not labels_field else (config.steps_field,)
        raise UserError(
            f"{config.source}: loss=steps needs steps and their labels, but no row has a field "
            f"{' or '.join(missing)}; there are: {known_fields(rows)}. "
            f"Name the right one in data.{'steps_field' if labels_field else 'labels_field'}"
        )
    names, verifiers = row_names(config, len(rows)), verifiers_of(config, rows)
    prompt_field = "" if config.prompt_template else field_of(config, rows, "prompt_field", PROMPT_FIELDS)
    values = [value_at(row, labels_field) for row in rows]
    signed = any(isinstance(value, list) and -1 in value for value in values)
    found = []
    for name, row, verifier, value in zip(names, rows, verifiers, values, strict=True):
        prompt = _prompt(config, rows, row, name, prompt_field)
        messages = complete(read_messages(prompt, name), name, config, verifier)
        texts = value_at(row, config.steps_field)
        if not isinstance(texts, list) or not texts:
            raise UserError(f"{name}: expected a list of steps, and one at least, found {texts!r:.80}")
        for k, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{name}: step {k} must be a text that is not empty, found {text!r:.80}")
        steps = tuple(apart(texts))
        labels = _labels(value, len(steps), signed, f"{name}, {labels_field}")
        outcome = labels[-1] if labels else None
        found.append(_Found(name, messages, "".join(steps), outcome, steps=steps, labels=labels or ()))
    return found, []


def _tokenised(
    config: JudgedDataConfig,
    found: list[_Found],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    notes: list[str],
) -> JudgedSet:
    """Judged responses as token ids, group by group."""
    groups: dict[str, list[_Found]] = {}
    for f in found:
        groups.setdefault(_key(f.messages), []).append(f)
    firsts = [members[0] for members in groups.values()]
    names, chats = [f.name for f in firsts], [f.messages for f in firsts]
    form = PromptFormat(chat_template=config.chat_template)  # the messages are complete
    short = short_enough(encode_prompts(chats, names, form, tokenizer), names, config)
    if len(short) < len(groups):
        limit = config.max_prompt_tokens
        notes.append(f"{len(groups) - len(short)} of {len(groups)} prompts are over {limit} tokens: dropped")
    prompts = {g: Prompt(names[g], tuple(ids), chats[g], None) for g, ids in short.items()}
    judged = [(g, f) for g, members in enumerate(groups.values()) if g in prompts for f in members]
    unread = [f for _, f in judged if f.token_ids is None]
    encoded = iter(encode_responses([f.text for f in unread], tokenizer))
    rows = []
    for g, f in judged:
        ids = f.token_ids
        if ids is None:
            own = next(encoded)
            ids = tuple((own[:-1] if f.truncated else own) or own)  # what was cut off has no end
        if len(prompts[g].token_ids) + len(ids) <= max_tokens:
            response = Response(ids, (0.0,) * len(ids), f.text, f.truncated, f.outcome)
            ends = _ends(tokenizer, f.text, ids, f.steps)
            rows.append(JudgedResponse(g, prompts[g], response, f.steps, f.labels, ends))
    if not rows:
        raise UserError(
            f"{config.source}: all {len(judged)} responses are longer than max_tokens={max_tokens} with their "
            "prompts: raise it"
        )
    if len(rows) < len(judged):
        notes.append(
            f"{len(judged) - len(rows)} of {len(judged)} responses are over max_tokens={max_tokens}: dropped"
        )
    if len({row.response.outcome for row in rows}) == 1:
        notes.append(f"every outcome is {rows[0].response.outcome:g}: there is nothing to tell apart")
    return JudgedSet(rows, len({row.group for row in rows}), notes)


def _prompt(config: JudgedDataConfig, rows: list[Row], row: Row, name: str, field: str) -> Any:
    """A row's prompt, as `data.prompt_template` or its field has it."""
    return (
        filled(config, row, name, rows)
        if config.prompt_template
        else without_answer(value_at(row, field), field)
    )


def _number(value: Any, what: str) -> float | None:
    """An outcome or a label; None where there is none."""
    if value is None or value != value:  # NaN is how tables say nothing
        return None
    if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
        raise UserError(f"{what} must be true, false or a number from 0 to 1, found {value!r:.80}")
    return float(value)


def _labels(value: Any, count: int, signed: bool, where: str) -> tuple[float, ...] | None:
    """The labels of `count` steps; None where the row has none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if not -1 <= value < count:
            raise UserError(
                f"{where}: {value} is not the index of the first wrong of {count} steps (0 to {count - 1}, -1 for none)"
            )
        right = count if value == -1 else value
        return (1.0,) * right + (0.0,) * (count - right)
    if not isinstance(value, list) or len(value) != count:
        raise UserError(
            f"{where}: expected a label for each of {count} steps, or the index of the first wrong one, "
            f"found {value!r:.80}"
        )
    if signed:
        wrong = [label for label in value if isinstance(label, bool) or label not in (-1, 1)]
        if wrong:
            raise UserError(
                f"{where}: the data has labels of -1, so that {wrong[0]!r} is neither right (1) nor wrong (-1)"
            )
        return tuple(float(label > 0) for label in value)
    numbers = [_number(label, f"{where}: the label of step {k}") for k, label in enumerate(value)]
    if None in numbers:
        raise UserError(f"{where}: step {numbers.index(None)} has no label")
    return tuple(number for number in numbers if number is not None)


def _token_ids(value: Any, where: str) -> tuple[int, ...] | None:
    """Token ids as recorded; None where there are none."""
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(type(i) is int and i >= 0 for i in value):
        raise UserError(
            f"{where}: expected token_ids as a list of numbers, and one at least, found {value!r:.80}"
        )
    return tuple(value)


def _ends(
    tokenizer: PreTrainedTokenizerBase, text: str, token_ids: Sequence[int], steps: Sequence[str]
) -> tuple[int, ...]:
    """The last token that begins in each step; of the last step it is the end-of-sequence token."""
    if not steps:
        return ()
    step_of_token = steps_of_tokens(text_of_tokens(tokenizer, text, token_ids), steps)
    return tuple(bisect_right(step_of_token, k) - 1 for k in range(len(steps)))


def _key(messages: str | Messages) -> str:
    """What makes two prompts the same."""
    return json.dumps(messages, sort_keys=True)


# The writer of `openprime generate`'s file


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
