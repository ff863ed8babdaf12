"""Rows of data sets, and what training makes of them: prompts with a reference answer, demonstrations."""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from openprime.config import DataConfig
from openprime.data.chat import (
    Turn,
    encode_prompts,
    encode_turns,
    parsed,
    read_message,
    read_messages,
    read_tools,
)
from openprime.data.template import Messages, one_line
from openprime.types import Prompt, UserError

PROMPT_FIELDS = (
    "prompt",
    "messages",
    "question",
    "problem",
    "query",
    "question_content",
    "conversations",
    "trajectory",
)
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
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
NO_JSON = re.compile(r"date|time|decimal|binary|duration|interval|map|half|Image|Audio")
"""In the name of an Arrow type whose values are no JSON."""

DEEPEST = 100
"""Levels of brackets in a row, more than any data have: what walks through a row must come to an end."""
ROWS = 1000
"""Rows that are read at a time of what is not read whole."""
MOST_FIELDS = 40
"""Names in an error's text."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts to answer."""

    prompts: list[Prompt]
    """In the order of the rows."""
    rows: int
    """Rows read, those left out included."""
    notes: list[str]
    """For the user: rows left out, and the reason."""


@dataclass(frozen=True, slots=True)
class DemonstrationSet:
    """Demonstrations to imitate."""

    rows: list[Turn]
    """In the order of the rows."""
    notes: list[str]
    """For the user: rows left out, and the reason."""


def read_questions(config: DataConfig, notes: list[str] | None = None) -> list[Prompt]:
    """The prompts of a data set, not yet tokenised, in the order of the rows.

    Raises UserError for rows that cannot be read, and for rows of the verifier `math` without an answer; with `notes`
    few of the latter are left out and noted.
    """
    rows = load_rows(config)
    names = row_names(config, len(rows))
    prompts = prompts_of(config, rows, names)
    messages = [read_messages(prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    answer_field = field_of(config, rows, "answer_field", ANSWER_FIELDS)
    verifiers = verifiers_of(config, rows)
    for row, name, verifier in zip(rows, names, verifiers, strict=True):
        refuse_columns(row, name, verifier)
    answers = [as_answer(value_at(row, answer_field), v) for row, v in zip(rows, verifiers, strict=True)]
    missing = [i for i, answer in enumerate(answers) if verifiers[i] == "math" and not (answer or "").strip()]
    why = f", which data.verifier=math needs: name its field in data.answer_field; there are: {known_fields(rows)}"
    kept = leave_out(config, missing, rows, "have no answer", why, notes)
    return [Prompt(names[i], (), messages[i], answers[i], rows[i], verifiers[i]) for i in kept]


def read_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    """The prompts of a data set, tokenised; those that are too long and a few without an answer are left out.

    Raises UserError as `read_questions` does, for prompts that are too long (where `too_long` is
    error), and where no prompt is left.
    """
    notes: list[str] = []
    questions = read_questions(config, notes)
    names, messages, verifiers = zip(*((q.id, q.messages, q.verifier) for q in questions), strict=True)
    tools = [read_tools(q.columns, q.id) for q in questions]
    encoded = encode_prompts(messages, names, config, tokenizer, verifiers, tools)
    kept = short_enough(encoded, names, config, notes)
    prompts = [replace(questions[i], token_ids=tuple(encoded[i])) for i in kept]
    return PromptSet(prompts, len(questions), notes)


def read_demonstrations(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> DemonstrationSet:
    """The demonstrations of a data set, tokenised; those of more than `max_tokens` in all are left out.

    Without a field for the response, the prompt's field is a conversation and its last message, which
    must be the assistant's, is the response. Raises UserError for rows that cannot be read, for empty
    responses that are not few, for prompts that are too long (where `too_long` is error), and where no row is left.
    """
    rows, notes = load_rows(config), list[str]()
    names = row_names(config, len(rows))
    pairs = prompts_and_responses(config, rows, names, notes)
    prompts, responses = zip(*pairs.values(), strict=True)
    names, tools = [names[i] for i in pairs], [read_tools(rows[i], names[i]) for i in pairs]
    turns = encode_turns(prompts, responses, names, config, tokenizer, tools=tools)
    kept = [turns[i] for i in short_enough([turn.prompt_ids for turn in turns], names, config, notes)]
    short = [turn for turn in kept if len(turn.prompt_ids) + len(turn.response_ids) <= max_tokens]
    if not short:
        raise UserError(
            f"{config.source}: all {len(rows)} rows are longer than max_tokens={max_tokens}: raise it"
        )
    if len(short) < len(kept):
        notes.append(f"{len(kept) - len(short)} demonstrations are over max_tokens={max_tokens}: dropped")
    return DemonstrationSet(short, notes)


def read_texts(config: DataConfig) -> list[str]:
    """All prompts and responses of a data set as plain text, to train a tokenizer on."""
    rows = load_rows(config)
    texts = [config.suffix, config.system]
    for prompt, response in prompts_and_responses(config, rows, row_names(config, len(rows)), []).values():
        said = [*([prompt] if isinstance(prompt, str) else prompt), response]
        texts += [one if isinstance(one, str) else one.get("content") or "" for one in said]
    return texts


def leave_out(
    config: DataConfig,
    missing: Sequence[int],
    rows: Sequence[Any],
    what: str,
    why: str,
    notes: list[str] | None,
) -> list[int]:
    """The numbers of the other rows. Raises UserError unless `missing` are under 1 in 100 and may be noted."""
    which = ", ".join(str(i) for i in missing[:3]) + (", ..." if len(missing) > 3 else "")
    said = f"{len(missing)} of {len(rows)} rows {what} (row {which})"
    if missing and (notes is None or 100 * len(missing) >= len(rows)):
        raise UserError(f"{config.source}: {said}{why}")
    if missing and notes is not None:
        notes.append(f"{said}: left out")
    gone = set(missing)
    return [i for i in range(len(rows)) if i not in gone]


def prompts_of(config: DataConfig, rows: list[Row], names: Sequence[str]) -> list[Any]:
    """Each row's prompt: what `data.prompt_template` makes of it, or a field, without the answer at its end."""
    if config.prompt_template:
        return [filled(config, row, name, rows) for row, name in zip(rows, names, strict=True)]
    field = field_of(config, rows, "prompt_field", PROMPT_FIELDS, needed=True)
    return [without_answer(value_at(row, field), field) for row in rows]


def prompts_and_responses(
    config: DataConfig, rows: list[Row], names: Sequence[str], notes: list[str]
) -> dict[int, tuple[str | Messages, str | dict[str, Any]]]:
    """Row number -> prompt and response: two fields, or a conversation whose last message is the response.

    A response that has more than text is a message. Raises UserError, with the row, where there is no response, or it
    is not the assistant's, and where it is empty in more than a few rows, which are left out and noted.
    """
    response_field = field_of(config, rows, "response_field", RESPONSE_FIELDS)
    prompt_field = (
        "" if config.prompt_template else field_of(config, rows, "prompt_field", PROMPT_FIELDS, needed=True)
    )
    if response_field and response_field != prompt_field:
        prompts = prompts_of(config, rows, names)
        responses = [value_at(row, response_field) for row in rows]
    else:
        chats = [parsed(value_at(row, prompt_field)) for row in rows]
        for name, chat in zip(names, chats, strict=True):
            if not isinstance(chat, list) or len(chat) < 2:
                raise UserError(
                    f"{name}: no response: {prompt_field or 'the prompt'} is no conversation, and no row has a "
                    f"field {' or '.join(RESPONSE_FIELDS)}; there are: {known_fields(rows)}. "
                    "Name it in data.response_field"
                )
        prompts, responses = [chat[:-1] for chat in chats], [chat[-1:] for chat in chats]
    read = [response_of(response, name) for name, response in zip(names, responses, strict=True)]
    blank = [i for i, response in enumerate(read) if isinstance(response, str) and not response.strip()]
    kept = leave_out(config, blank, rows, "have an empty response", "", notes)
    return {i: (read_messages(prompts[i], names[i]), read[i]) for i in kept}


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
        rows = read_file(path, 0 if config.where else config.limit)
    elif path.is_file():
        raise UserError(f"data.source: {source} is not one of the kinds that can be read: {', '.join(FILES)}")
    else:
        rows = list(islice(_each_of_hub(config), None if config.where else config.limit or None))
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


def each_row(config: DataConfig) -> Iterator[Row]:
    """The rows that `load_rows` returns, one after the other: of JSONL, parquet or the hub few are in memory at a time.

    Raises UserError as that does, but not where there is no row.
    """
    path = Path(config.source).expanduser()
    if path.suffix in FILES and path.is_file():
        rows = (_each_parquet if path.suffix == ".parquet" else _each_json)(path)
    elif config.source.startswith(("task:", "gym:")) or path.suffix in FILES or path.is_file():
        rows = iter(load_rows(config))
    else:
        rows = _each_of_hub(config)
    return islice((row for row in rows if keeps(config, row)), config.limit or None)


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
    """The value at a dotted path, None where there is none; a key may itself have dots."""
    if not isinstance(row, dict):
        return None
    if path in row:
        return row[path]
    splits = [i for i, letter in enumerate(path) if letter == "." and path[:i] in row]
    found = (value_at(row[path[:i]], path[i + 1 :]) for i in splits)
    return next((value for value in found if value is not None), None)


def known_fields(rows: list[Row]) -> str:
    """The dotted paths of the fields that rows have, in a line."""

    def paths(row: Row, prefix: str) -> Iterator[str]:
        for name, value in row.items():
            if isinstance(value, dict) and value:
                yield from paths(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    found = [*islice(dict.fromkeys(path for row in rows[:100] for path in paths(row, "")), MOST_FIELDS + 1)]
    shown = [path if path.isprintable() and len(path) < 80 else f"{path!r:.80}" for path in found]
    return ", ".join([*shown[:MOST_FIELDS], *["..."] * (len(found) > MOST_FIELDS)]) or "(none)"


def identity(*parts: Any) -> bytes:
    """Bytes that tell an item of the data from others; token ids are tuples."""
    return b"\0".join(
        array("q", part).tobytes() if isinstance(part, tuple) else str(part).encode("utf-8", "replace")
        for part in parts
    )


def row_names(config: DataConfig, count: int) -> list[str]:
    """The rows' ids."""
    path = Path(config.source)
    name = path.name if path.suffix in FILES else f"{config.source}:{config.split}"
    return [f"{name}:{i}" for i in range(count)]


def without_answer(value: Any, field: str) -> Any:
    """A prompt's value; of a conversation all before the assistant's answer at the end.

    Not of a field called `prompt`, which has no answer: what ends with the assistant's message there is refused later.
    """
    value = parsed(value)
    if isinstance(value, list) and len(value) > 1 and field.split(".")[-1] != "prompt":
        last = value[-1]
        return value[:-1] if isinstance(last, dict) and last.get("role") == "assistant" else value
    return value


def response_of(value: Any, name: str) -> str | dict[str, Any]:
    """A response's text, or the assistant's message that it is where there is more to it."""
    value = parsed(value)
    if isinstance(value, str):
        return value
    chat = (
        [read_message(message, f"{name}, its response") for message in value]
        if isinstance(value, list)
        else []
    )
    if [message["role"] for message in chat] != ["assistant"]:
        raise UserError(
            f"{name}: the response must be text or one message of the assistant, found {value!r:.80}"
        )
    return chat[0] if chat[0].keys() - {"role", "content"} else chat[0]["content"]


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
    for i, name in enumerate(found):
        allowed = (config.verifier, *config.allow_modules)
        refuse_module(str(name), allowed, f"{config.source}: row {i}, {config.verifier_field}", "data.")
    return [str(name) for name in found]


def refuse_module(name: str, allowed: Sequence[str], where: str, section: str = "") -> None:
    """Raises UserError for a verifier of the user's own that a row names and the configuration does not."""
    if ":" in name and name not in allowed:
        raise UserError(
            f"{where}: {name!r:.200} would be imported and run, which a row must not decide: list it in "
            f"{section}allow_modules if you trust it"
        )


def refuse_columns(row: Row, where: str, verifier: str) -> None:
    """Raises UserError for columns that a verifier of the user's own could not get, for it gets others of that name."""
    taken = sorted({"prompts", "completions"} & row.keys()) if ":" in verifier else []
    if taken:
        raise UserError(
            f"{where}: the verifier {verifier} gets prompts and completions, and the columns of a row by their names: "
            f"rename the column {' and '.join(taken)}"
        )


def short_enough(
    encoded: Sequence[Sequence[int]], names: Sequence[str], config: DataConfig, notes: list[str]
) -> list[int]:
    """The numbers of the prompts within the limit; others are dropped and noted, or an error."""
    limit = config.max_prompt_tokens
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= limit]
    if config.too_long == "error" and len(kept) < len(encoded):
        i = next(i for i, ids in enumerate(encoded) if len(ids) > limit)
        raise UserError(
            f"{names[i]}: the prompt has {len(encoded[i])} tokens, more than data.max_prompt_tokens={limit}: "
            "raise it, or set data.too_long: drop"
        )
    if not kept:
        raise UserError(
            f"{config.source}: all {len(encoded)} prompts exceed data.max_prompt_tokens={limit}: raise it"
        )
    if len(kept) < len(encoded):
        notes.append(f"{len(encoded) - len(kept)} of {len(encoded)} prompts are over {limit} tokens: dropped")
    return kept


def read_file(path: Path, limit: int) -> list[Row]:
    """The rows of a .jsonl, .json or .parquet file, the first `limit` of them unless that is 0."""
    return (_read_parquet if path.suffix == ".parquet" else read_json)(path, limit)


def read_json(path: Path, limit: int) -> list[Row]:
    """The objects of a JSON array, or of a file with one object a line."""
    return list(islice(_each_json(path), limit or None))


def _each_json(path: Path) -> Iterator[Row]:
    """The same one after the other; of a file with one a line no more than that is in memory."""
    with path.open("rb") as file:
        if path.suffix == ".json" and file.read(100).removeprefix(BOM).lstrip().startswith(b"["):
            file.seek(0)
            entries = _parse(file.read(), path, 1)
            for i, entry in enumerate(entries):
                if not isinstance(entry, dict):
                    raise UserError(f"{path}: entry {i} is not an object: {entry!r:.80}")
            yield from entries
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            half = "" if line.endswith(b"\n") else HALF
            row = _parse(line.rstrip(b"\r\n"), path, number, half)  # a half line's fault is on it, not behind
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}:{number}: expected an object {{...}} on each line, found {row!r:.80}"
                )
            yield row


def _parse(data: bytes, path: Path, line: int, hint: str = "") -> Any:
    """JSON from bytes that begin at a line of a file; `hint` goes behind the error's text."""
    try:
        value = json.loads(data.removeprefix(BOM).decode("utf-8"))
        if SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
        if data.count(b"[") + data.count(b"{") > DEEPEST:
            level = [value]
            for _ in range(DEEPEST + (path.suffix == ".json")):
                level = [child for one in level for child in _children(one)]
            if level:
                raise UserError(f"{path}:{line}: more than {DEEPEST} brackets in one another")
        return value
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not UTF-8: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}:{line}: half a character (a lone surrogate, {error.object[error.start]!a}) in its text"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{line + error.lineno - 1}: not valid JSON: {error.msg} at column {error.colno}{hint}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{path}:{line}: JSON that cannot be read: {error}") from error


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _read_parquet(path: Path, limit: int) -> list[Row]:
    return list(islice(_each_parquet(path), limit or None))


def _each_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            types = str(file.schema_arrow.types)
            for part in file.iter_batches(ROWS):
                yield from _as_json(part.to_pylist(), types)
    except Exception as error:  # a damaged file: Arrow raises errors of many kinds
        raise UserError(f"{path}: not a readable parquet file: {one_line(error)}") from error


def _as_json(rows: list[Row], types: str) -> list[Row]:
    """Rows with what JSON has no words for, such as dates, as text."""
    return [json.loads(json.dumps(row, default=str)) for row in rows] if NO_JSON.search(types) else rows


def _each_of_hub(config: DataConfig) -> Iterator[Row]:
    import datasets

    path = Path(config.source).expanduser()
    if path.is_dir():
        kinds = sorted({file.suffix for file in path.rglob("*") if file.suffix in FILES})
        if len(kinds) != 1:
            raise UserError(
                f"data.source: the folder {config.source} has files of {len(kinds)} kinds ({', '.join(kinds) or 'none'}"
                f" of {', '.join(FILES)}): name one file"
            )
    try:
        data = datasets.load_dataset(config.source, config.subset or None, split=config.split)
        assert isinstance(data, datasets.Dataset)
        types = str(data.features)
        for start in range(0, len(data), ROWS):
            yield from _as_json(data.select(range(start, min(start + ROWS, len(data)))).to_list(), types)
    except Exception as error:  # the network, the hub or a file: anything may come
        raise UserError(
            f"data.source: {config.source} is neither a local file ({', '.join(FILES)}) nor a data set "
            f"that can be reached on the hub and has a split {config.split} (data.split) and a subset "
            f"{config.subset!r} (data.subset). A copy in a file will do: name it in data.source (evaluate: --data): "
            f"{one_line(error)}"
        ) from error
