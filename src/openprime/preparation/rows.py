"""Rows of all sources in one shape, from each source one after the other."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from openprime.config import DataConfig, PrepareConfig
from openprime.data.chat import parsed, read_messages
from openprime.data.readers import (
    ANSWER_FIELDS,
    FILES,
    PROMPT_FIELDS,
    Row,
    as_answer,
    each_row,
    field_of,
    filled,
    identity,
    refuse_module,
    value_at,
    without_answer,
)
from openprime.types import UserError

HEAD = 1000
"""Rows of a source from which it is seen how its fields are called."""


def sources(config: PrepareConfig) -> list[DataConfig]:
    """The settings of each source."""
    return [
        config.data,
        *(config.data.model_copy(update={"source": source}) for source in config.more_sources),
    ]


def fingerprint(source: DataConfig) -> bytes:
    """Bytes that tell a source from others: of a file those of its content."""
    path = Path(source.source).expanduser()
    if path.suffix in FILES and path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    return identity(source.source, source.subset, source.split)


def records(config: PrepareConfig) -> Iterator[Row]:
    """One record a row, of texts alone: `origin` (its source and number), `prompt` (JSON: text or messages),
    `question` (its last text of the user), `answer`, `verifier`, and `rest` (JSON: the row's other fields).

    A prompt that cannot be read is a record with an empty question. Raises UserError for a source that cannot be read
    or has no field of a prompt.
    """
    every = sources(config)
    names = Counter(_name(source) for source in every)
    for source in every:
        name = _name(source)
        yield from records_of(source, name if names[name] == 1 else source.source)


def _name(source: DataConfig) -> str:
    """What the rows of a source are called."""
    path = Path(source.source)
    return path.name if path.suffix in FILES else f"{source.source}:{source.split}"


def records_of(source: DataConfig, name: str) -> Iterator[Row]:
    """The records of one source, as `records` has them; `name` is the source's in their origin."""
    rows = each_row(source)
    head = list(islice(rows, HEAD))
    if not head:
        raise UserError(f"{source.source}: no rows")
    template = source.prompt_template
    prompt_field = "" if template else field_of(source, head, "prompt_field", PROMPT_FIELDS, needed=True)
    answer_field = field_of(source, head, "answer_field", ANSWER_FIELDS)
    for i, row in enumerate(chain(head, rows)):
        origin, verifier = f"{name}:{i}", source.verifier
        if source.verifier_field:
            verifier = str(value_at(row, source.verifier_field) or source.verifier)
            allowed = (source.verifier, *source.allow_modules)
            refuse_module(verifier, allowed, f"{origin}, {source.verifier_field}", "data.")
        given = filled(source, row, origin, head) if template else value_at(row, prompt_field)
        value = given if template else without_answer(given, prompt_field)
        try:
            prompt = read_messages(value, origin)
        except UserError:
            prompt = ""
        said = (
            prompt
            if isinstance(prompt, str)
            else next((str(one["content"]) for one in reversed(prompt) if one["role"] == "user"), "")
        )
        used = {prompt_field, "prompt", "origin"} | ({answer_field} if answer_field == "answer" else set())
        yield {
            "origin": origin,
            "prompt": json.dumps(prompt, ensure_ascii=False),
            "question": said,
            "answer": as_answer(parsed(value_at(row, answer_field)), verifier) or "",
            "verifier": verifier,
            "rest": json.dumps(
                {k: v for k, v in row.items() if k not in used}, ensure_ascii=False, default=str
            ),
        }


def finished(record: Row) -> Row:
    """The row to train on: `prompt` and `answer` first, then `origin` and what else the row had."""
    own = {"prompt": json.loads(record["prompt"]), "answer": record["answer"], "origin": record["origin"]}
    return own | {k: v for k, v in json.loads(record["rest"]).items() if k not in own}
