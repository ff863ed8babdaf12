"""Responses in files, with the prompts that they answer and perhaps judged: read here and written here.

A row is a prompt with its `responses` (texts, or objects with a `text`, as `openprime generate` writes them), with
one `response` or `completion`, with the `steps` of one, with a better and a worse one (`chosen`, `rejected`), or a
conversation whose last message is the response.
"""

import json
import random
import re
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from openprime.config import JudgedDataConfig, PromptFormat
from openprime.data.chat import (
    Said,
    complete,
    encode_prompts,
    encode_turns,
    parsed,
    read_messages,
    read_tools,
)
from openprime.data.collate import collate
from openprime.data.readers import (
    PROMPT_FIELDS,
    RESPONSE_FIELDS,
    Row,
    as_answer,
    field_of,
    known_fields,
    load_rows,
    prompts_and_responses,
    prompts_of,
    read_file,
    refuse_columns,
    refuse_module,
    response_of,
    row_names,
    short_enough,
    value_at,
    verifiers_of,
    without_answer,
)
from openprime.data.steps import apart, steps_of_tokens
from openprime.data.template import Messages, Tools, beginning
from openprime.types import Batch, Group, Prompt, Response, UserError

OUTCOME_FIELDS = ("outcome", "correct", "label")
LABELS_FIELDS = ("labels", "label", "values", "value")
STEPS_FIELDS = ("steps", "completions")
MARKED_FIELDS = ("input", "inputs")
MARK = "ки"
"""Stands behind each step of a text in Math-Shepherd's data (arXiv 2312.08935) and OpenRLHF's."""
TESTS_FIELDS = (
    *("tests", "test", "test_list", "input_output", "functional", "official_tests"),
    *("public_tests", "public_test_cases", "private_test_cases"),
)
FIRST_STEP = re.compile(r"Step\s*1\s*[:.]", re.IGNORECASE)
PARTIAL = re.compile(r"\s*\S*\Z")
"""A word that two texts share the beginning of, with the space before it."""
WORDS = {"true": 1.0, "false": 0.0, "+": 1.0, "-": 0.0}
"""Outcomes and labels as text."""


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """A response as it stands in a file."""

    text: str
    token_ids: tuple[int, ...] | None = None
    """As they were sampled, where they are of the vocabulary asked for; None: the text has to be encoded."""
    steps: tuple[str, ...] = ()
    """Those of the row, if it has them; joined they are the text."""
    entry: Row = field(default_factory=dict)
    """The object that the file has for it."""
    message: Row | None = None
    """The assistant's message, where it has more than a text."""

    @property
    def said(self) -> Said:
        """The best that is known of it."""
        return self.token_ids or self.message or self.text

    @property
    def truncated(self) -> bool:
        """True where the limit of tokens came before its end."""
        return self.entry.get("truncated") is True


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
    texts: tuple[str, ...] = ()
    """Where steps are labelled, the part of the response's text that each token has."""


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """Judged responses, those to the same prompt one after the other."""

    rows: list[JudgedResponse]
    prompts: int
    """Number of prompts that they answer."""
    notes: list[str]
    """For the user: responses left out, and the reason."""


# A row


def read_rows(file: str | Path, key: str = "file") -> list[Row]:
    """The rows of a JSON, JSONL or parquet file that the setting `key` names; there is one at least."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{key}: there is no file {path}")
    rows = read_file(path, 0)
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def read_prompt(row: Row) -> tuple[str, Any]:
    """The field of a row's prompt and its value, an answer at the end of it left out; ("", None) without one."""
    name = next((name for name in PROMPT_FIELDS if row.get(name) is not None), "")
    return name, without_answer(row.get(name), name)


def read_responses(row: Row, where: str, vocabulary: str | None = None) -> list[RecordedResponse]:
    """The responses of a row: its list of `responses`, its `response` or `completion`, or its `steps` as one.

    Without any, that is the last message of its `messages`. The sampled token ids are taken as they are where the row's
    `vocabulary` is the one asked for (trap 13). Raises UserError, which begins with `where`, for anything else.
    """
    if "responses" in row:
        return read_list(row, where, vocabulary)
    for name in ("response", "completion"):
        if name in row:
            return [_response(parsed(row[name]), f"{where}, {name}")]
    if "steps" in row:
        return [in_steps(row["steps"], f"{where}, steps")]
    chat = parsed(row.get("messages"))
    if isinstance(chat, list) and len(chat) > 1:
        return [_response(chat[-1:], f"{where}, messages")]
    raise UserError(
        f"{where}: no field response, responses, completion or steps; there are: {known_fields([row])}"
    )


def _response(value: Any, where: str) -> RecordedResponse:
    """A text, which may be blank, or a message."""
    read = response_of(_text(value, where) if not isinstance(value, list) else value, where)
    return (
        RecordedResponse(read)
        if isinstance(read, str)
        else RecordedResponse(read.get("content") or "", message=read)
    )


def read_list(row: Row, where: str, vocabulary: str | None = None) -> list[RecordedResponse]:
    """The `responses` of a row, as `read_responses` has them."""
    if row.get("responses") is None:
        raise UserError(f'{where}: expected {{"responses": [...]}}, found the fields {known_fields([row])}')
    found = []
    for i, entry in enumerate(_filled(row["responses"], f"{where}, responses")):
        place = f"{where}, responses[{i}]"
        given = entry if isinstance(entry, dict) else {"text": entry}
        same = vocabulary is not None and row.get("vocabulary") == vocabulary
        ids = _token_ids(given.get("token_ids"), place) if same else None
        text = _text(given.get("text"), f"{place}.text" if isinstance(entry, dict) else place)
        found.append(RecordedResponse(text, ids, entry=given))
    return found


def in_steps(value: object, where: str, blank: bool = True) -> RecordedResponse:
    """A response of which the row has a list of steps: a blank line stands between them; `blank` ones may be.

    Raises UserError, which begins with `where`, for anything else.
    """
    steps = tuple(
        apart([_text(step, f"{where}[{k}]", blank) for k, step in enumerate(_filled(value, where))])
    )
    return RecordedResponse("".join(steps), steps=steps)


def to_verify(row: Row, where: str, verifier: str = "", allow_modules: Sequence[str] = ()) -> Prompt:
    """A row with a `response`, which may be null, as a verifier gets it: its answer or its tests, and its columns.

    `verifier`, else the row's, else `code` for a row with tests and `math` for others. Raises UserError for a row
    without a response, without an answer where mathematics needs one, or with a module that is not allowed.
    """
    if "response" not in row or not isinstance(row["response"], str | None):
        raise UserError(f"{where}: no text in the field response; there are: {known_fields([row])}")
    guess = "code" if any(name in row for name in TESTS_FIELDS) else "math"
    name = str(verifier or row.get("verifier") or guess)
    refuse_module(name, (verifier, *allow_modules), f"{where}, verifier")
    refuse_columns(row, where, name)
    if name == "math" and "answer" not in row:
        raise UserError(f"{where}: no field answer, nor tests for code; there are: {known_fields([row])}")
    question = read_prompt(row)[1] or ""
    messages = question if isinstance(question, str | list) else str(question)
    return Prompt(where, (), messages, as_answer(row.get("answer"), name), row, name)


# Judged responses to train a PRM on


@dataclass(frozen=True, slots=True)
class _Found:
    """A judged response, not yet tokenised."""

    name: str
    messages: Messages
    """Complete."""
    response: RecordedResponse
    outcome: float | None
    labels: tuple[float, ...] = ()
    """Of its steps."""
    tools: Tools = None
    pair: str = ""
    """Of a preference pair, its name: its two responses are compared with each other alone."""

    @property
    def key(self) -> str:
        """A text that responses to the same prompt share, or those of a pair."""
        return self.pair or _key([self.messages, self.tools])


def read_judged(
    config: JudgedDataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int, steps: bool = False
) -> JudgedSet:
    """The judged responses of a data set; responses to the same messages are one group, wherever they stand.

    Reads the file of `openprime generate` (a line a prompt with its `responses`), rows with a prompt, a
    response and an outcome in [0, 1], preference pairs (`chosen` is right, `rejected` wrong), and with `steps` rows
    with a prompt, its steps and their labels. Token ids are taken as they are if they are of this tokenizer's
    vocabulary, else the text is encoded (trap 13).

    What has no outcome or no labels, or is longer than `max_tokens` with its prompt, is left out. Raises
    UserError for rows that cannot be read, and where nothing is left.
    """
    rows = load_rows(config)
    names, notes = row_names(config, len(rows)), list[str]()
    if steps:
        found = _read_steps(config, rows, names)
    elif any(isinstance(row.get("responses"), list) for row in rows):
        found = _read_generated(config, rows, names, vocabulary_id(tokenizer), notes)
    elif not config.outcome_field and any("chosen" in row and "rejected" in row for row in rows):
        found = _read_pairs(config, rows, names, notes)
    else:
        found = _read_outcomes(config, rows, names, notes)
    kept = [one for one in found if one.outcome is not None]
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


def collate_judged(rows: Sequence[JudgedResponse], pad_id: int) -> Batch:
    """Judged responses as a batch, with the labels [B, T] of their steps.

    `step_end` marks the last token of each labelled step; labels are 0 off it. Where a step has
    no token of its own, the last step that ends at the token has the label.
    """
    batch = collate([Group(row.prompt, (row.response,), 0) for row in rows], frozenset(), pad_id)
    step_end, labels = torch.zeros_like(batch.step_end), torch.zeros_like(batch.logprobs)
    for b, row in enumerate(rows):
        for end, label in zip(row.ends, row.labels, strict=True):
            step_end[b, len(row.prompt.token_ids) + end] = True
            labels[b, len(row.prompt.token_ids) + end] = label
    group = torch.tensor([row.group for row in rows])
    return replace(batch, group=group, step_end=step_end, labels=labels)


def _read_generated(
    config: JudgedDataConfig, rows: list[Row], names: list[str], vocabulary: str, notes: list[str]
) -> list[_Found]:
    """The file of `openprime generate`; its prompts are complete already."""
    given = {name: getattr(config, name) for name in ("system", "suffix", "template", "prompt_template")}
    added = [f"data.{name}" for name, value in given.items() if value not in ("", "none")]
    if added:
        raise UserError(
            f"{config.source}: its prompts are as the model was asked, with all that was added then: "
            f"leave {' and '.join(added)} out"
        )
    field = field_of(config, rows, "prompt_field", PROMPT_FIELDS, needed=True)
    found, lines = [], []
    for name, row in zip(names, rows, strict=True):
        messages = complete(read_messages(value_at(row, field), name), name, PromptFormat(), "math")
        tools = read_tools(row, name)
        lines.append(_key([messages, tools]))
        for i, response in enumerate(read_list(row, name, vocabulary)):
            outcome = _number(response.entry.get("outcome"), f"{name}, responses[{i}]: its outcome")
            found.append(_Found(name, messages, response, outcome, tools=tools))
    foreign = sum(one.response.token_ids is None for one in found)
    if foreign:
        notes.append(
            f"{foreign} of {len(found)} responses have no token ids of this model's vocabulary: their text is encoded"
        )
    again = len(lines) - len(set(lines))
    if again:
        notes.append(f"{again} of {len(lines)} lines repeat a prompt: merged with the first")
    return found


def _read_outcomes(
    config: JudgedDataConfig, rows: list[Row], names: list[str], notes: list[str]
) -> list[_Found]:
    """A prompt, a response and its outcome a row; or a conversation, whose last message is the response."""
    field = field_of(config, rows, "outcome_field", OUTCOME_FIELDS, needed=True)
    if not field_of(config, rows, "response_field", RESPONSE_FIELDS) and any(
        config.steps_field in r for r in rows
    ):
        raise UserError(
            f"{config.source}: {config.steps_field}, but no response: step labels need loss=steps"
        )
    outcomes = [
        _number(value_at(row, field), f"{name}: its outcome ({field})")
        for name, row in zip(names, rows, strict=True)
    ]
    pairs, verifiers = prompts_and_responses(config, rows, names, notes), verifiers_of(config, rows)
    return [
        _Found(
            names[i],
            complete(prompt, names[i], config, verifiers[i]),
            _response(said if isinstance(said, str) else [said], names[i]),
            outcomes[i],
            tools=read_tools(rows[i], names[i]),
        )
        for i, (prompt, said) in pairs.items()
    ]


def _read_pairs(
    config: JudgedDataConfig, rows: list[Row], names: list[str], notes: list[str]
) -> list[_Found]:
    """A better and a worse response a row, with a prompt of their own or beginning with it.

    As in TRL's preference data: `prompt`, `chosen` and `rejected`, texts or messages; or `chosen` and `rejected` alone,
    two conversations that differ in the last message, or two texts with the same beginning.
    """
    asks = bool(config.prompt_template) or field_of(config, rows, "prompt_field", PROMPT_FIELDS) != ""
    prompts: Sequence[Any] = prompts_of(config, rows, names) if asks else [None] * len(rows)
    found, shared = [], ""
    for name, row, prompt, verifier in zip(names, rows, prompts, verifiers_of(config, rows), strict=True):
        better, worse = (parsed(row.get(key)) for key in ("chosen", "rejected"))
        if isinstance(better, list) and isinstance(worse, list) and max(len(better), len(worse)) > 1:
            if better[:-1] != worse[:-1]:
                raise UserError(
                    f"{name}: chosen and rejected are conversations that differ before their last message"
                )
            prompt, better, worse = better[:-1], better[-1:], worse[-1:]
        elif prompt is None and isinstance(better, str) and isinstance(worse, str):
            prompt = PARTIAL.sub("", beginning(better, worse))
            shared = shared or prompt
            better, worse = better[len(prompt) :], worse[len(prompt) :]
        messages = complete(read_messages(prompt, f"{name}: its prompt"), name, config, verifier)
        tools = read_tools(row, name)
        for outcome, key, said in ((1.0, "chosen", better), (0.0, "rejected", worse)):
            response = _response(said, f"{name}, {key}")
            found.append(_Found(name, messages, response, outcome, tools=tools, pair=name))
    if shared:
        notes.append(
            f"no field of a prompt: it is what chosen and rejected begin with, such as {shared!r:.60}"
        )
    return found


def _read_steps(config: JudgedDataConfig, rows: list[Row], names: list[str]) -> list[_Found]:
    """A prompt, a list of steps and their labels a row; steps are joined by a blank line.

    Labels are a list, one a step: in [0, 1], booleans, + and -, or +1 and -1 all through the data. Or one integer, the
    index of the first wrong step, -1 for none (ProcessBench): the steps before it are right, and it and all
    after it wrong, for what is built on an error cannot lead to a right answer but by luck. Or the steps and the prompt
    are one text with a mark behind each step (Math-Shepherd, OpenRLHF), and so are perhaps the labels.
    """
    labels_field = field_of(config, rows, "labels_field", LABELS_FIELDS, needed=True)
    verifiers, values = verifiers_of(config, rows), [value_at(row, labels_field) for row in rows]
    usual = STEPS_FIELDS if config.steps_field == "steps" else (config.steps_field,)
    steps_field = next((f for f in usual if any(value_at(row, f) is not None for row in rows)), "")
    marked = next((f for f in MARKED_FIELDS if any(f in row for row in rows)), "")
    parts: list[tuple[Any, RecordedResponse, Any]] = []
    if steps_field or not marked:
        steps_field = steps_field or field_of(config, rows, "steps_field", ())
        for name, row, prompt, value in zip(
            names, rows, prompts_of(config, rows, names), values, strict=True
        ):
            response = in_steps(value_at(row, steps_field), f"{name}, {steps_field}", blank=False)
            parts.append((prompt, response, value))
    else:
        for name, row, value in zip(names, rows, values, strict=True):
            parts.append(_marked(row.get(marked), value, f"{name}, {marked}"))
    signed = any(isinstance(value, list) and -1 in value for value in values)
    found = []
    for name, row, verifier, (prompt, response, value) in zip(names, rows, verifiers, parts, strict=True):
        messages = complete(read_messages(prompt, name), name, config, verifier)
        labels = _labels(value, len(response.steps), signed, f"{name}, {labels_field}")
        outcome = labels[-1] if labels else None
        found.append(_Found(name, messages, response, outcome, labels, read_tools(row, name)))
    return found


def _marked(text: Any, labels: Any, where: str) -> tuple[str, RecordedResponse, Any]:
    """(prompt, steps, their labels) of a text with a mark behind each step; in `labels` too, or they are a list."""
    *marked, rest = _text(text, where, blank=False).split(MARK)
    begin = FIRST_STEP.search(marked[0]) if marked else None
    if begin is None or rest.strip():
        raise UserError(
            f"{where}: expected a problem, then steps that begin with `Step 1:` and end with {MARK}, found {text!r:.80}"
        )
    if isinstance(labels, str):
        pattern = r"\s*([+-])\s*".join([*(re.escape(step.strip()) for step in marked), ""])
        signs = re.fullmatch(pattern, labels.strip())
        labels = list(signs.groups()) if signs else labels
    prompt, marked[0] = marked[0][: begin.start()].strip(), marked[0][begin.start() :]
    steps = [step.strip() for step in marked]
    steps = [*(f"{step}\n" for step in steps[:-1]), steps[-1]]
    return prompt, RecordedResponse("".join(steps), steps=tuple(steps)), labels


def _tokenised(
    config: JudgedDataConfig,
    found: list[_Found],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    notes: list[str],
) -> JudgedSet:
    """Judged responses as token ids, group by group."""
    groups: dict[str, list[_Found]] = {}
    for one in found:
        groups.setdefault(one.key, []).append(one)
    form = PromptFormat(chat_template=config.chat_template)  # the messages are complete
    firsts = [members[0] for members in groups.values()]
    names, chats, tools = zip(*((one.name, one.messages, one.tools) for one in firsts), strict=True)
    asked = encode_prompts(chats, names, form, tokenizer, tools=tools)
    prompts = {
        g: Prompt(names[g], tuple(asked[g]), chats[g], None)
        for g in short_enough(asked, names, config, notes)
    }
    judged = [(g, one) for g, members in enumerate(groups.values()) if g in prompts for one in members]
    turns = encode_turns(
        [one.messages for _, one in judged],
        [one.response.said for _, one in judged],
        [one.name for _, one in judged],
        form,
        tokenizer,
        tools=[one.tools for _, one in judged],
        ended=[not one.response.truncated for _, one in judged],
        texts=any(one.labels for _, one in judged),
    )
    rows = []
    for (g, one), turn in zip(judged, turns, strict=True):
        ids, response = turn.response_ids, one.response
        if len(turn.prompt_ids) + len(ids) <= max_tokens:
            prompt = prompts[g]
            if turn.prompt_ids != prompt.token_ids:
                prompt = replace(prompt, token_ids=turn.prompt_ids)
            made = Response(ids, (0.0,) * len(ids), response.text, response.truncated, one.outcome)
            ends = _ends(turn.texts, response.steps) if one.labels else ()
            rows.append(JudgedResponse(g, prompt, made, response.steps, one.labels, ends, turn.texts))
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


def _number(value: Any, what: str) -> float | None:
    """An outcome or a label; None where there is none."""
    if value is None or value != value:  # NaN is how tables say nothing
        return None
    number = WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
    if not isinstance(number, bool | int | float) or not 0 <= number <= 1:
        raise UserError(f"{what} must be true, false or a number from 0 to 1, found {value!r:.80}")
    return float(number)


def _labels(value: Any, count: int, signed: bool, where: str) -> tuple[float, ...]:
    """The labels of `count` steps; empty where the row has none."""
    if value is None or value != value:
        return ()
    if type(value) is int and -1 <= value < count:
        right = count if value == -1 else value
        return (1.0,) * right + (0.0,) * (count - right)
    if not isinstance(value, list) or len(value) != count:
        raise UserError(
            f"{where}: expected a label for each of {count} steps, or the index of the first wrong one (0 to "
            f"{count - 1}, -1 for none), found {value!r:.80}"
        )
    labels = []
    for k, label in enumerate(value):
        if signed and (isinstance(label, bool) or label not in (-1, 1)):
            raise UserError(
                f"{where}: the data has labels of -1, so that {label!r} is neither right (1) nor wrong (-1)"
            )
        number = float(label > 0) if signed else _number(label, f"{where}: the label of step {k}")
        if number is None:
            raise UserError(f"{where}: step {k} has no label")
        labels.append(number)
    return tuple(labels)


def _text(value: Any, where: str, blank: bool = True) -> str:
    """A text that is not blank unless it may be."""
    if not isinstance(value, str) or not (blank or value.strip()):
        raise UserError(f"{where}: expected text{'' if blank else ' that is not empty'}, found {value!r:.80}")
    return value


def _filled(value: Any, where: str) -> list:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a list with at least one entry, found {value!r:.80}")
    return value


def _token_ids(value: Any, where: str) -> tuple[int, ...] | None:
    """Token ids as recorded; None where there are none."""
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(type(i) is int and i >= 0 for i in value):
        raise UserError(
            f"{where}: expected token_ids as a list of numbers, and one at least, found {value!r:.80}"
        )
    return tuple(value)


def _ends(texts: Sequence[str], steps: Sequence[str]) -> tuple[int, ...]:
    """The last token that begins in each step, by the tokens' texts; of the last step it is the end of the turn."""
    step_of_token = steps_of_tokens(texts, steps)
    return tuple(bisect_right(step_of_token, k) - 1 for k in range(len(steps)))


def _key(messages: Any) -> str:
    """A text that two prompts share if they are the same."""
    return json.dumps(messages, sort_keys=True)


# The writer of `openprime generate`'s file


def group_row(item: int, group: Group, form: PromptFormat, vocabulary: str) -> dict[str, Any]:
    """A group as a row: the prompt with all that was added, as the model was asked, and each response.

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
    } | {key: value for key, value in prompt.columns.items() if key == "tools" and value}


def row_number(prompt: Prompt) -> int:
    """A prompt's row number in the data, those counted that were left out."""
    return int(prompt.id.rpartition(":")[2])


def response_row(response: Response) -> dict[str, Any]:
    """A response as an object of a row."""
    return {
        "text": response.text,
        "token_ids": list(response.token_ids),
        "outcome": response.outcome,
        "reason": response.reason,
        "truncated": response.truncated,
    }


def vocabulary_id(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name of a vocabulary: two tokenizers with the same one give the same token ids the same meaning."""
    items = sorted(tokenizer.get_vocab().items())
    return f"{zlib.crc32(repr(items).encode()):08x}"
