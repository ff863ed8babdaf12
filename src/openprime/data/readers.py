"""Rows of data sets, and what training makes of them: prompts with a reference answer, demonstrations."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from openprime.config import DataConfig
from openprime.data.chat import Messages, encode_prompts, encode_responses, read_messages
from openprime.types import Prompt, UserError

PROMPT_FIELDS = ("prompt", "messages", "question", "problem", "query", "question_content")
ANSWER_FIELDS = (
    "reward_model.ground_truth",
    "answer",
    "expected_answer",
    "final_answer",
    "input_output",
    "solution",
)
RESPONSE_FIELDS = ("completion", "response")
FILES = (".jsonl", ".json", ".parquet")

HALF = "; the file ends in this line, so its writing was interrupted: finish it with --resume, or delete the line"

BOM = b"\xef\xbb\xbf"

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


def read_questions(config: DataConfig) -> list[Prompt]:
    """The prompts of a data set, not yet tokenised, in the order of the rows.

    Raises UserError for rows that cannot be read, and for rows of the verifier `math` without an answer.
    """
    rows = load_rows(config)
    names = row_names(config, len(rows))
    prompts = prompts_of(config, rows, names)
    messages = [read_messages(prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    answer_field = field_of(config, rows, "answer_field", ANSWER_FIELDS)
    verifiers = verifiers_of(config, rows)
    answers = [as_answer(value_at(row, answer_field), v) for row, v in zip(rows, verifiers, strict=True)]
    _require_answers(config, rows, answers, verifiers)
    return [
        Prompt(*values)
        for values in zip(names, [()] * len(rows), messages, answers, rows, verifiers, strict=True)
    ]


def read_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    """The prompts of a data set, tokenised.

    Raises UserError as `read_questions` does, for prompts that are too long (where `too_long` is
    error), and where no prompt is left.
    """
    questions = read_questions(config)
    names, messages, verifiers = zip(*((q.id, q.messages, q.verifier) for q in questions), strict=True)
    kept = short_enough(encode_prompts(messages, names, config, tokenizer, verifiers), names, config)
    prompts = [replace(questions[i], token_ids=tuple(ids)) for i, ids in kept.items()]
    return PromptSet(prompts, len(questions) - len(prompts), len(questions))


def read_demonstrations(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> DemonstrationSet:
    """The demonstrations of a data set, tokenised; those of more than `max_tokens` in all are left out.

    Without a field for the response, the prompt's field is a conversation and its last message, which
    must be the assistant's, is the response. Raises UserError for rows that cannot be read, for empty
    responses, for prompts that are too long (where `too_long` is error), and where no row is left.
    """
    rows = load_rows(config)
    names = row_names(config, len(rows))
    messages, texts = zip(*prompts_and_responses(config, rows, names), strict=True)
    kept = short_enough(encode_prompts(messages, names, config, tokenizer), names, config)
    responses = encode_responses([texts[i] for i in kept], tokenizer)
    made = [Demonstration(tuple(p), tuple(r)) for p, r in zip(kept.values(), responses, strict=True)]
    short = [d for d in made if len(d.prompt_ids) + len(d.response_ids) <= max_tokens]
    if not short:
        raise UserError(
            f"{config.source}: all {len(rows)} rows are longer than max_tokens={max_tokens}: raise it"
        )
    return DemonstrationSet(short, len(rows) - len(short))


def read_texts(config: DataConfig) -> list[str]:
    """All prompts and responses of a data set as plain text, to train a tokenizer on."""
    rows = load_rows(config)
    fields = [
        field_of(config, rows, "prompt_field", PROMPT_FIELDS, needed=True),
        field_of(config, rows, "response_field", RESPONSE_FIELDS),
    ]
    values = [value for row in rows for field in fields if field and (value := value_at(row, field))]
    chats = [[{"content": value}] if isinstance(value, str) else value for value in values]
    return [config.suffix, config.system, *(message["content"] for chat in chats for message in chat)]


def prompts_of(config: DataConfig, rows: list[Row], names: Sequence[str]) -> list[Any]:
    """Each row's prompt: what `data.prompt_template` makes of it, or a field, without the answer at its end."""
    if config.prompt_template:
        return [filled(config, row, name, rows) for row, name in zip(rows, names, strict=True)]
    field = field_of(config, rows, "prompt_field", PROMPT_FIELDS, needed=True)
    return [without_answer(value_at(row, field), field) for row in rows]


def prompts_and_responses(
    config: DataConfig, rows: list[Row], names: Sequence[str]
) -> list[tuple[str | Messages, str]]:
    """Each row's prompt and its response: two fields, or a conversation whose last message is the response.

    Raises UserError, with the row, where there is no response, it is empty, or it is not the assistant's.
    """
    response_field = field_of(config, rows, "response_field", RESPONSE_FIELDS)
    prompt_field = (
        "" if config.prompt_template else field_of(config, rows, "prompt_field", PROMPT_FIELDS, needed=True)
    )
    if response_field and response_field != prompt_field:
        prompts = prompts_of(config, rows, names)
        responses = [value_at(row, response_field) for row in rows]
    else:
        chats = [value_at(row, prompt_field) for row in rows]
        for name, chat in zip(names, chats, strict=True):
            if not isinstance(chat, list) or len(chat) < 2:
                raise UserError(
                    f"{name}: no response: {prompt_field or 'the prompt'} is no conversation, and no row has a "
                    f"field {' or '.join(RESPONSE_FIELDS)}; there are: {known_fields(rows)}. "
                    "Name it in data.response_field"
                )
        prompts, responses = [chat[:-1] for chat in chats], [chat[-1:] for chat in chats]
    return [
        (read_messages(prompt, name), response_text(response, name))
        for name, prompt, response in zip(names, prompts, responses, strict=True)
    ]


def load_rows(config: DataConfig) -> list[Row]:
    """The rows of `data.source`, the first `data.limit` of them; a file is read again each time.

    Raises UserError for a source that is not there, and for a file that cannot be read (FILE:LINE).
    """
    source = config.source
    path = Path(source).expanduser()
    if source.startswith(("task:", "gym:")):
        from openprime import tasks

        rows = tasks.rows(config)
    elif path.suffix in FILES:
        if not path.is_file():
            raise UserError(f"data.source: there is no file {source}")
        read = _read_parquet if path.suffix == ".parquet" else read_json
        rows = read(path, 0 if config.where else config.limit)
    elif path.is_file():
        raise UserError(f"data.source: {source} is not one of the kinds that can be read: {', '.join(FILES)}")
    else:
        rows = _read_hub(config)
    if not rows:
        raise UserError(f"{source}: no rows")
    for field in config.where:
        if all(value_at(row, field) is None for row in rows):
            raise UserError(
                f"{source}: no row has a field {field} (data.where); there are: {known_fields(rows)}"
            )
    kept = [row for row in rows if keeps(config, row)]
    if not kept:
        raise UserError(f"{source}: none of {len(rows)} rows is kept by data.where {config.where}")
    return kept[: config.limit] if config.limit else kept


def keeps(config: DataConfig, row: Row) -> bool:
    """True for a row that `data.where` keeps."""
    return all(text in str(value_at(row, field)) for field, text in config.where.items())


def as_answer(value: object, verifier: str = "") -> str | None:
    """A reference answer as text: 142.0 is "142"; None where there is nothing, NaN included.

    Several answers are one list for the verifier `math`, with commas between them, and JSON for others.
    """
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, list) and verifier == "math" and not any(isinstance(v, list | dict) for v in value):
        return ", ".join(filter(None, map(as_answer, value)))
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def field_of(
    config: DataConfig, rows: list[Row], key: str, usual: tuple[str, ...], needed: bool = False
) -> str:
    """The field that `data.KEY` names, or the first usual one that a row has; '' for none, unless it is needed."""
    named = getattr(config, key)
    fields = (named,) if named else usual
    found = next((field for field in fields if any(value_at(row, field) is not None for row in rows)), "")
    if not found and (named or needed):
        raise UserError(
            f"{config.source}: no row has a field {' or '.join(fields)}; there are: {known_fields(rows)}. "
            f"Name the right one in data.{key}"
        )
    return found


def filled(config: DataConfig, row: Row, name: str, rows: list[Row]) -> str:
    """The prompt that `data.prompt_template` makes of a row."""

    def text(match: re.Match[str]) -> str:
        value = value_at(row, match[1])
        if value is None and all(value_at(other, match[1]) is None for other in rows):
            raise UserError(
                f"{name}: no row has a field {match[1]} (data.prompt_template); there are: {known_fields(rows)}"
            )
        return "\n".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)

    return re.sub(r"\{([\w.]+)\}", text, config.prompt_template).strip()


def value_at(row: Row, path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def known_fields(rows: list[Row]) -> str:
    """The dotted paths of the fields that rows have."""

    def paths(row: Row, prefix: str) -> Iterator[str]:
        for name, value in row.items():
            if isinstance(value, dict) and value:
                yield from paths(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    return ", ".join(dict.fromkeys(path for row in rows[:100] for path in paths(row, "")))


def row_names(config: DataConfig, count: int) -> list[str]:
    """The rows' ids."""
    path = Path(config.source)
    name = path.name if path.suffix in FILES else f"{config.source}:{config.split}"
    return [f"{name}:{i}" for i in range(count)]


def without_answer(value: Any, field: str) -> Any:
    """A prompt's value; of `messages` all before the assistant's answer at the end."""
    is_chat = field.split(".")[-1] == "messages" and isinstance(value, list) and len(value) > 1
    if is_chat and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        return value[:-1]
    return value


def response_text(value: Any, name: str) -> str:
    """A response's text, out of a message of the assistant where it is one."""
    if not isinstance(value, str):
        chat = read_messages(value, f"{name}, its response") if value else []
        if not isinstance(chat, list) or not chat or [m["role"] for m in chat] != ["assistant"]:
            raise UserError(
                f"{name}: the response must be text or one message of the assistant, found {value!r:.80}"
            )
        value = chat[0]["content"]
    if not value.strip():
        raise UserError(f"{name}: the response is empty")
    return value


def verifiers_of(config: DataConfig, rows: list[Row]) -> list[str]:
    """The verifier of each row."""
    if config.source.startswith("gym:") and config.verifier == "math":
        return ["reasoning_gym"] * len(rows)
    if not config.verifier_field:
        return [config.verifier] * len(rows)
    found = [value_at(row, config.verifier_field) for row in rows]
    missing = [i for i, name in enumerate(found) if not isinstance(name, str) or not name]
    if missing:
        raise UserError(
            f"{config.source}: row {missing[0]} has no verifier's name in {config.verifier_field} "
            f"(data.verifier_field), found {found[missing[0]]!r}; there are: {known_fields(rows)}"
        )
    return [str(name) for name in found]


def _require_answers(
    config: DataConfig, rows: list[Row], answers: list[str | None], verifiers: list[str]
) -> None:
    missing = [i for i, answer in enumerate(answers) if verifiers[i] == "math" and not (answer or "").strip()]
    if missing:
        which = ", ".join(str(i) for i in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"{config.source}: {len(missing)} of {len(rows)} rows have no answer (row {which}), which "
            f"data.verifier=math needs: name its field in data.answer_field; there are: {known_fields(rows)}"
        )


def short_enough(encoded: list[list[int]], names: Sequence[str], config: DataConfig) -> dict[int, list[int]]:
    """Row number -> token ids of the prompts within the limit; others are dropped, or an error."""
    limit = config.max_prompt_tokens
    kept = {i: ids for i, ids in enumerate(encoded) if len(ids) <= limit}
    if config.too_long == "error" and len(kept) < len(encoded):
        i = next(i for i in range(len(encoded)) if i not in kept)
        raise UserError(
            f"{names[i]}: the prompt has {len(encoded[i])} tokens, more than data.max_prompt_tokens={limit}: "
            "raise it, or set data.too_long: drop"
        )
    if not kept:
        raise UserError(
            f"{config.source}: all {len(encoded)} prompts exceed data.max_prompt_tokens={limit}: raise it"
        )
    return kept


def read_json(path: Path, limit: int) -> list[Row]:
    """The objects of a JSON array, or of a file with one object a line."""
    with path.open("rb") as file:
        if path.suffix == ".json" and file.read(100).removeprefix(BOM).lstrip().startswith(b"["):
            file.seek(0)
            entries = _parse(file.read(), path, 1)
            for i, entry in enumerate(entries):
                if not isinstance(entry, dict):
                    raise UserError(f"{path}: entry {i} is not an object: {entry!r:.80}")
            return entries[:limit] if limit else entries
        file.seek(0)
        rows = []
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            half = "" if line.endswith(b"\n") else HALF
            row = _parse(line.rstrip(b"\r\n"), path, number, half)  # a half line's fault is on it, not behind
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}:{number}: expected an object {{...}} on each line, found {row!r:.80}"
                )
            rows.append(row)
            if len(rows) == limit:
                break
    return rows


def _parse(data: bytes, path: Path, line: int, hint: str = "") -> Any:
    """JSON from bytes that begin at a line of a file; `hint` goes behind the error's text."""
    try:
        return json.loads(data.removeprefix(BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not UTF-8: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{line + error.lineno - 1}: not valid JSON: {error.msg} at column {error.colno}{hint}"
        ) from error


def _read_parquet(path: Path, limit: int) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error
    return table.slice(0, limit or None).to_pylist()


def _read_hub(config: DataConfig) -> list[Row]:
    import datasets

    try:
        data = datasets.load_dataset(config.source, config.subset or None, split=config.split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"data.source: {config.source} is neither a local file ({', '.join(FILES)}) nor a data set "
            f"that can be reached on the hub and has a split {config.split} (data.split) and a subset "
            f"{config.subset!r} (data.subset). A copy in a file will do: name it in data.source (evaluate: --data): "
            f"{error}"
        ) from error
    assert isinstance(data, datasets.Dataset)
    limit = 0 if config.where else config.limit
    return data.select(range(min(limit or len(data), len(data)))).to_list()
