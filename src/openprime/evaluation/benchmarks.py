"""Benchmarks: found by name in configs/benchmarks, their items read, and recorded responses to them."""

import ast
import difflib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from openprime.config import (
    BenchmarkConfig,
    DataConfig,
    EvaluateConfig,
    PromptFormat,
    find_config,
    package_configs,
    read_config,
)
from openprime.data.chat import read_messages, suitable
from openprime.data.readers import (
    PROMPT_FIELDS,
    field_of,
    keeps,
    load_rows,
    read_prompts,
    read_questions,
    row_names,
)
from openprime.data.records import in_steps, read_list, read_rows
from openprime.models.hub import read_format
from openprime.types import Prompt, UserError
from openprime.verifiers.math import Answers, extract_answer

LATEX = re.compile(r"\\text\s*\{[^{}]*\}|\\[a-zA-Z]+")
PROSE = re.compile(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}")
"""Two words."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its items read."""

    name: str
    config: BenchmarkConfig
    items: list[Prompt]
    recorded: dict[str, list[str]] | None
    """Id of an item -> its recorded responses; None where they are to be sampled."""
    left_out: int = 0
    """Items that are not judged: their prompt is too long, or their tests cannot be read."""

    @property
    def is_process(self) -> bool:
        """True where a PRM is asked for the first wrong step."""
        return self.config.kind == "first_error"

    @property
    def is_sampled(self) -> bool:
        """True where the model is asked."""
        return self.recorded is None and not self.is_process


Tokenizer = Callable[[], PreTrainedTokenizerBase]
"""Loads the model's."""


def find_benchmark(name: str) -> tuple[str, BenchmarkConfig]:
    """A benchmark by its name, as `math-500`, `MATH500` or `math_500`, or by a YAML file; returns its name too.

    Raises UserError for a name that is not there, with the nearest ones.
    """
    if name.endswith((".yaml", ".yml")):
        path = find_config(name)
        return path.stem, read_config(BenchmarkConfig, path)
    paths = (package_configs() / "benchmarks").glob("*.yaml")
    entries = {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}
    alike = {_plain(entry): entry for entry in entries}
    found = alike.get(_plain(name))
    if found is None:
        near = difflib.get_close_matches(_plain(name), alike, 1)
        hint = f"did you mean {alike[near[0]]}? There are" if near else "there are"
        raise UserError(
            f"no benchmark {name!r}; {hint}: {', '.join(entries)}; or name a YAML file of your own"
        )
    return found, read_config(BenchmarkConfig, entries[found])


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
    return Benchmark(name, entry, read.prompts, None, read.rows - len(read.prompts))


def read_solutions(data: DataConfig) -> list[Prompt]:
    """The rows as prompts: a problem, `steps` (texts) and `label` (index of the first wrong step, -1: none).

    Raises UserError, with the row, for anything else.
    """
    rows = load_rows(data)
    field = field_of(data, rows, "prompt_field", PROMPT_FIELDS, needed=True)
    missing = [name for name in ("steps", "label") if all(row.get(name) is None for row in rows)]
    if missing:
        raise UserError(
            f"{data.source}: no row has a field {' nor '.join(missing)}; there are: {', '.join(rows[0])}"
        )
    items = []
    for name, row in zip(row_names(data, len(rows)), rows, strict=True):
        count, label = len(in_steps(row.get("steps"), f"{name}, steps").steps), row.get("label")
        if type(label) is not int or not -1 <= label < count:
            raise UserError(f"{name}: label must be the index of a step or -1, found {label!r}")
        items.append(Prompt(name, (), read_messages(row.get(field), name), None, row))
    return items


def read_recorded(
    config: EvaluateConfig, file: str, entry: BenchmarkConfig, items: list[Prompt]
) -> dict[str, list[str]]:
    """Recorded responses by the item's id: line i of the file is that of item i, or of row i of the data.

    A text that is nothing but an answer, or nothing but a program, counts as one. Raises UserError, with
    the line, for lines that are no lists of texts, and where N is larger than the responses at hand.
    """
    data, rows = entry.data, read_rows(file, "responses")
    with Path(file).open("rb") as opened:  # blank lines are no rows
        numbers = [number for number, line in enumerate(opened, 1) if line.strip()]
    places = [f"{file}:{number}" for number in numbers]
    if len(places) != len(rows):  # a JSON array
        places = [f"{file}, entry {i}" for i in range(len(rows))]
    lines = []
    for row, place in zip(rows, places, strict=True):
        texts = [response.text for response in read_list(row, place)]
        if len(texts) < config.samples:
            raise UserError(f"{place}: {len(texts)} responses, fewer than samples={config.samples}")
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
            f"{places[short]}: {fewest} responses, other lines have more: use the first of each with "
            f"--samples {fewest}"
        )
    return {
        item.id: [mark_bare(text, item, entry.answers) for text in texts]
        for texts, item in zip(lines, items, strict=True)
    }


def mark_bare(text: str, item: Prompt, answers: Answers = "auto") -> str:
    r"""A recorded response; one that is nothing but an answer gets a box, nothing but a program a fence."""
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
    """True for a text that is nothing but an answer: a line without two words in a row, or the reference itself."""
    if not bare or "\n" in bare or extract_answer(bare) is not None:
        return False
    return bare == item.answer or not PROSE.search(LATEX.sub(" ", bare))


def parses(program: str) -> bool:
    """True for a Python program."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
