"""The items of benchmarks, and recorded responses to them."""

import ast
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from openprime.config import BenchmarkConfig, DataConfig, EvaluateConfig, PromptFormat
from openprime.data.chat import read_messages, suitable
from openprime.data.readers import (
    PROMPT_FIELDS,
    Row,
    field_of,
    keeps,
    load_rows,
    read_json,
    read_prompts,
    read_questions,
)
from openprime.evaluation.benchmarks import find_benchmark
from openprime.models.hub import read_format
from openprime.types import Prompt, UserError
from openprime.verifiers.math import Answers, extract_answer

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
LATEX = re.compile(r"\\text\s*\{[^{}]*\}|\\[a-zA-Z]+")
PROSE = re.compile(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}")
"""Two words."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its items read."""

    name: str
    config: BenchmarkConfig
    items: list[Prompt]
    recorded: list[list[str]] | None
    """Recorded responses of each item; None where they are to be sampled."""
    left_out: int = 0
    """Items that are not judged: their prompt is too long, or their tests cannot be read."""

    @property
    def is_process(self) -> bool:
        """Whether a PRM is asked for the first wrong step."""
        return self.config.kind == "first_error"

    @property
    def is_sampled(self) -> bool:
        """Whether the model is asked."""
        return self.recorded is None and not self.is_process


Tokenizer = Callable[[], PreTrainedTokenizerBase]
"""Loads the model's."""


def read_benchmarks(config: EvaluateConfig, tokenizer: Tokenizer) -> list[Benchmark]:
    """All benchmarks with their items and recorded responses: what is wrong with a file is said at once."""
    if config.model and not all(config.responses or [""]):
        tokenizer()  # a model that is not there is said so at once
    saved = read_format(config.model) if config.model and config.template == "auto" else None
    found: list[Benchmark] = []
    for i, name in enumerate(config.benchmark):
        name, entry = find_benchmark(name)
        if any(name == other.name for other in found):
            raise UserError(f"benchmark: {name} is named twice: {', '.join(config.benchmark)}")
        changed: dict[str, Any] = {"limit": config.limit or entry.data.limit}
        if config.data and config.data[i]:
            changed |= {"source": config.data[i]}
        if config.template != "auto":
            changed |= {"template": config.template, "system": "", "suffix": ""}
        elif saved:
            changed |= {field: getattr(saved, field) for field in PromptFormat.model_fields}
        answers = entry.answers if config.verify.answers == "auto" else config.verify.answers
        entry = entry.model_copy(update={"data": entry.data.model_copy(update=changed), "answers": answers})
        responses = config.responses[i] if config.responses else ""
        found.append(read_benchmark(name, entry, responses, config, tokenizer))
    return found


def read_benchmark(
    name: str, entry: BenchmarkConfig, responses: str, config: EvaluateConfig, tokenizer: Tokenizer
) -> Benchmark:
    """One benchmark with its items, tokenised where the model is to be asked."""
    if entry.kind == "first_error":
        if responses:
            raise UserError(f"responses: {name} asks a PRM for the first wrong step; it takes no responses")
        if not config.prm:
            raise UserError(f"prm is not set: {name} asks a PRM for the first wrong step: name it with --prm")
        return Benchmark(name, entry, read_solutions(entry.data), None)
    if responses:
        items = read_questions(entry.data)
        return Benchmark(name, entry, items, read_recorded(config, responses, entry, items))
    if not config.model:
        raise UserError(f"model is not set: name the model to evaluate on {name}, or recorded --responses")
    plain = {"chat_template": suitable(entry.data, tokenizer()).chat_template}
    entry = entry.model_copy(update={"data": entry.data.model_copy(update=plain)})
    read = read_prompts(entry.data, tokenizer())
    return Benchmark(name, entry, read.prompts, None, read.dropped_long)


def read_solutions(data: DataConfig) -> list[Prompt]:
    """The rows as prompts: a problem, `steps` (texts) and `label` (index of the first wrong step, -1: none).

    Raises ValueError, with the row, for anything else.
    """
    rows = load_rows(data)
    field = field_of(data, rows, "prompt_field", PROMPT_FIELDS)
    missing = [name for name in ("steps", "label") if all(row.get(name) is None for row in rows)]
    if missing:
        raise UserError(
            f"{data.source}: no row has a field {' nor '.join(missing)}; there are: {', '.join(rows[0])}"
        )
    items = []
    for i, row in enumerate(rows):
        name = f"{Path(data.source).name}:{i}"
        steps, label = row.get("steps"), row.get("label")
        if not isinstance(steps, list) or not steps or not all(isinstance(s, str) for s in steps):
            raise UserError(f"{name}: steps must be a list of texts, at least one, found {steps!r:.80}")
        if type(label) is not int or not -1 <= label < len(steps):
            raise UserError(f"{name}: label must be the index of a step or -1, found {label!r}")
        items.append(Prompt(name, (), read_messages(row.get(field), name), None, row))
    return items


def read_recorded(
    config: EvaluateConfig, file: str, entry: BenchmarkConfig, items: list[Prompt]
) -> list[list[str]]:
    """Recorded responses, a list of texts an item: line i of the file is that of item i, or of row i of the data.

    A text that is nothing but an answer, or nothing but a program, counts as one. Raises ValueError, with
    the line, for lines that are no lists of texts, and where N is larger than the responses at hand.
    """
    path, data = Path(file), entry.data
    if not path.is_file():
        raise UserError(f"responses: there is no file {file}")
    rows, lines = read_json(path, 0), []
    for i, row in enumerate(rows):
        try:
            texts = texts_of(row)
            if len(texts) < config.samples:
                raise UserError(f"{len(texts)} responses, fewer than samples={config.samples}")
        except ValueError as error:
            raise UserError(f"{file}:{line_of(path, i)}: {error}") from None
        lines.append(texts[: config.samples] if config.samples else texts)
    if len(lines) != len(items) and (data.where or data.limit):
        every = load_rows(data.model_copy(update={"where": {}, "limit": 0}))
        if len(lines) == len(every):
            lines = [line for line, row in zip(lines, every, strict=True) if keeps(data, row)][: len(items)]
    if len(lines) != len(items):
        raise UserError(
            f"{file}: {len(lines)} lines for the {len(items)} items of {data.source}: line i holds the responses "
            "to item i"
        )
    fewest = min(map(len, lines))
    if fewest < max(map(len, lines)):
        short = [len(line) for line in lines].index(fewest)
        raise UserError(
            f"{file}:{line_of(path, short)}: {fewest} responses, other lines have more: use the first of each with "
            f"--samples {fewest}"
        )
    return [
        [whole(text, item, entry.answers) for text in texts] for texts, item in zip(lines, items, strict=True)
    ]


def texts_of(row: Row) -> list[str]:
    """The responses in a line of a file; those of our own files are objects with a text.

    Raises ValueError for anything else.
    """
    found = row.get("responses")
    if found is None:
        raise UserError(f'expected {{"responses": [...]}}, found the fields {", ".join(row) or "(none)"}')
    if not isinstance(found, list) or not found:
        raise UserError(f"responses must be a list of one text or more, found {found!r:.80}")
    texts = []
    for i, entry in enumerate(found):
        text = entry.get("text") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise UserError(f"response {i} is no text: {entry!r:.80}")
        if HALF_CHARACTER.search(text):
            raise UserError(f"response {i} is no text: it holds half a character, such as \\ud83d alone")
        texts.append(text)
    return texts


def line_of(path: Path, row: int) -> int:
    """The line of a row: blank lines are no rows."""
    with path.open("rb") as file:
        return next(islice((n for n, line in enumerate(file, 1) if line.strip()), row, None), row + 1)


def whole(text: str, item: Prompt, answers: Answers = "auto") -> str:
    r"""A recorded response as a model would write it: a bare answer in a box, a bare program in a fence."""
    bare = text.strip()
    if item.verifier == "math" and is_answer(bare, item):
        return f"#### {bare}" if answers == "hashes" else rf"\boxed{{{bare}}}"
    if item.verifier == "code" and "```" not in text and bare:
        signature = item.columns.get("prompt")
        completed = [f"{signature}{text}"] if isinstance(signature, str) else []
        for program in (text, *completed):
            if parses(program):
                return f"```python\n{program}\n```"
    return text


def is_answer(bare: str, item: Prompt) -> bool:
    """Whether a text is nothing but an answer: a line without words one after the other, or the reference itself."""
    if not bare or "\n" in bare or extract_answer(bare) is not None:
        return False
    return bare == item.answer or not PROSE.search(LATEX.sub(" ", bare))


def parses(program: str) -> bool:
    """Whether a text is a Python program."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
