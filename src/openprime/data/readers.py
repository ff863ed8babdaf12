"""Rows of data sets, and what training makes of them: prompts with a reference answer, demonstrations."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from openprime.config import DataConfig
from openprime.data.chat import encode_prompts, encode_responses, read_messages
from openprime.types import Prompt

PROMPT_FIELDS = ("prompt", "messages", "question", "problem")
ANSWER_FIELDS = ("reward_model.ground_truth", "answer", "expected_answer")
RESPONSE_FIELDS = ("completion", "response")
FILES = (".jsonl", ".json", ".parquet")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts to answer."""

    prompts: list[Prompt]
    """In the order of the rows."""
    dropped_long: int
    """Rows left out because their prompt is longer than `data.max_prompt_tokens`."""
    rows: int
    """Rows read, those left out included."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the response to imitate."""

    prompt_ids: tuple[int, ...]
    """The rendered prompt, chat template and generation prompt included."""
    response_ids: tuple[int, ...]
    """The response and the end-of-sequence token."""


@dataclass(frozen=True, slots=True)
class DemonstrationSet:
    """Demonstrations to imitate."""

    rows: list[Demonstration]
    """In the order of the rows."""
    dropped_long: int
    """Rows left out because they are too long."""


def read_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    """The prompts of a data set, tokenised.

    Raises ValueError for rows that cannot be read, for prompts that are too long (where `too_long` is
    error), where no prompt is left, and with the verifier `math` for rows without an answer.
    """
    rows = load_rows(config)
    names = _names(config, len(rows))
    fields = _Fields.find(config, rows)
    messages = [read_messages(_prompt(fields.prompt, row), name) for row, name in zip(rows, names, strict=True)]
    answers = [as_answer(_get(row, fields.answer)) if fields.answer else None for row in rows]
    if config.verifier == "math":
        _require_answers(config, answers, fields)
    kept = _short_enough(encode_prompts(messages, names, config, tokenizer), names, config)
    prompts = [Prompt(names[i], tuple(ids), messages[i], answers[i], rows[i]) for i, ids in kept.items()]
    return PromptSet(prompts, len(rows) - len(prompts), len(rows))


def read_demonstrations(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> DemonstrationSet:
    """The demonstrations of a data set, tokenised; those of more than `max_tokens` in all are left out.

    Raises ValueError for rows that cannot be read, for empty responses, for prompts that are too long
    (where `too_long` is error), and where no demonstration is left.
    """
    rows = load_rows(config)
    names = _names(config, len(rows))
    fields = _Fields.find(config, rows)
    messages = [read_messages(_prompt(fields.prompt, row), name) for row, name in zip(rows, names, strict=True)]
    texts = [_response(fields, row, name) for row, name in zip(rows, names, strict=True)]
    kept = _short_enough(encode_prompts(messages, names, config, tokenizer), names, config)
    responses = encode_responses([texts[i] for i in kept], tokenizer)
    made = [Demonstration(tuple(p), tuple(r)) for p, r in zip(kept.values(), responses, strict=True)]
    short = [d for d in made if len(d.prompt_ids) + len(d.response_ids) <= max_tokens]
    if not short:
        raise ValueError(f"{config.source}: all {len(rows)} rows are longer than max_tokens={max_tokens}: raise it")
    return DemonstrationSet(short, len(rows) - len(short))


def load_rows(config: DataConfig) -> list[Row]:
    """The rows of `data.source`, the first `data.limit` of them; a file is read anew each time.

    Raises ValueError for a source that is not there, and for a file that cannot be read (FILE:LINE).
    """
    source = config.source
    path = Path(source).expanduser()
    if source.startswith("task:"):
        from openprime import tasks

        rows = tasks.rows(config)
    elif path.suffix in FILES:
        if not path.is_file():
            raise ValueError(f"data.source: there is no file {source}")
        rows = _read_parquet(path, config.limit) if path.suffix == ".parquet" else _read_json(path, config.limit)
    elif path.is_file():
        raise ValueError(f"data.source: {source} is not one of the kinds that can be read: {', '.join(FILES)}")
    else:
        rows = _read_hub(config)
    if not rows:
        raise ValueError(f"{source}: no rows")
    return rows


def as_answer(value: object) -> str | None:
    """A reference answer as text: 142.0 is "142"; None where there is nothing, NaN included."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class _Fields:
    """Where a row has what; `response` is '' where it is the last of the messages."""

    prompt: str
    answer: str
    response: str
    known: str

    @staticmethod
    def find(config: DataConfig, rows: list[Row]) -> "_Fields":
        """The fields that the configuration names, or those that the rows have."""
        known = ", ".join(dict.fromkeys(path for row in rows[:100] for path in _paths(row)))

        def pick(key: str, named: str, usual: tuple[str, ...]) -> str:
            found = next((p for p in ([named] if named else usual) if any(_get(r, p) is not None for r in rows)), "")
            if named and not found:
                raise ValueError(f"{config.source}: no field {named} (data.{key}); there are: {known}")
            return found

        prompt = pick("prompt_field", config.prompt_field, PROMPT_FIELDS)
        if not prompt:
            raise ValueError(
                f"{config.source}: none of the fields {', '.join(PROMPT_FIELDS)}; name the prompt's in "
                f"data.prompt_field; there are: {known}"
            )
        answer = pick("answer_field", config.answer_field, ANSWER_FIELDS)
        return _Fields(prompt, answer, pick("response_field", config.response_field, RESPONSE_FIELDS), known)


def _get(row: Row, path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _paths(row: Row, prefix: str = "") -> Iterator[str]:
    """The dotted paths of all fields."""
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _names(config: DataConfig, count: int) -> list[str]:
    """The rows' ids."""
    is_file = Path(config.source).suffix in FILES
    name = Path(config.source).name if is_file else f"{config.source}:{config.split}"
    return [f"{name}:{i}" for i in range(count)]


def _prompt(path: str, row: Row) -> Any:
    """The prompt's value; of a conversation, all before the answer of the assistant at its end."""
    value = _get(row, path)
    if path.split(".")[-1] == "messages" and isinstance(value, list) and len(value) > 1:
        last = value[-1]
        if isinstance(last, dict) and last.get("role") == "assistant":
            return value[:-1]
    return value
