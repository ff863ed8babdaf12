"""All rows through the filters: each row alone on all cores, then one after the other for what was there before.

The rows lie in Arrow files on the disk (`datasets`), mapped into memory as they are read. In memory are hashes and
the index of near duplicates, about 3 KB a row that is kept.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import datasets
import numpy as np
from rich.console import Console

from openprime.config import DataConfig, PrepareConfig
from openprime.data.readers import FILES, Row
from openprime.evaluation.benchmarks import find_benchmark
from openprime.preparation.duplicates import Index, Sketcher, check_installed, digest
from openprime.preparation.filters import REASONS, judge
from openprime.preparation.rows import finished, records, records_of
from openprime.run.console import Bar
from openprime.types import StorageError, UserError
from openprime.verifiers.math import canonical_answer, reference_of

TEXTS = ("origin", "prompt", "question", "answer", "verifier", "rest")
FEATURES = datasets.Features({name: datasets.Value("large_string") for name in TEXTS})
LOOKED = datasets.Features(
    {
        **{name: datasets.Value("large_string") for name in ("reason", "question", "answer", "note")},
        **{name: datasets.Value("binary") for name in ("digest", "sketch")},
    }
)
AT_A_TIME = 1000
"""Rows."""
EXAMPLES = 3
"""Of each reason, in the report."""
SHOWN = 300
"""Characters of a text in the report."""


@dataclass
class Report:
    """What became of the rows."""

    rows: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    """Rows of each."""
    opened: int = 0
    """Multiple choices that were turned into open questions and kept."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    examples: dict[str, list[Row]] = field(default_factory=dict)
    """Reason -> some of them."""

    def drop(self, row: Row) -> None:
        """Count a row of dropped.jsonl."""
        reason = row["reason"]
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if len(shown := self.examples.setdefault(reason, [])) < EXAMPLES:
            shown.append({k: v[:SHOWN] if isinstance(v, str) else v for k, v in row.items() if k != "reason"})

    @property
    def kept(self) -> int:
        """Rows that are left."""
        return self.rows - sum(self.dropped.values())


@dataclass
class Known:
    """The questions of benchmarks."""

    names: list[str] = field(default_factory=list)
    """Of each question, its benchmark."""
    texts: list[str] = field(default_factory=list)
    digests: dict[bytes, int] = field(default_factory=dict)
    index: Index | None = None

    def find(self, question: str, sketcher: Sketcher) -> str:
        """The benchmark that has a question, or nearly, and its own words; empty for none."""
        number = self.digests.get(digest(question))
        if number is None and self.index is not None:
            number = self.index.find(question, sketcher.sketch(question), self.texts.__getitem__)
        return "" if number is None else f"{self.names[number]}: {self.texts[number]}"


def read_known(config: PrepareConfig) -> Known:
    """The questions of `config.benchmarks`. Raises UserError for one that cannot be read."""
    known = Known()
    if not config.benchmarks:
        return known
    known.index, sketcher = Index(config.similarity), Sketcher()
    for name in config.benchmarks:
        data = DataConfig(source=name) if name.endswith(FILES) else find_benchmark(name)[1].data
        before = len(known.texts)
        for record in records_of(data, name):
            number = len(known.texts)
            if not record["question"]:
                continue
            known.names.append(Path(name).name)
            known.texts.append(record["question"])
            known.digests.setdefault(digest(record["question"]), number)
            known.index.add(number, sketcher.sketch(record["question"]))
        if len(known.texts) == before:
            raise UserError(
                f"benchmarks: {name} has no question in any row: name its fields in a YAML file as those of "
                "configs/benchmarks are, or rename its field to question"
            )
    return known


def filter_rows(config: PrepareConfig, folder: Path, console: Console) -> Report:
    """Leave dropped.jsonl in the folder, with filtered.jsonl, or prepared.jsonl where no model is asked; the numbers in
    filtered.json.

    The last is written when the others are whole; where it is there already, nothing is done again.
    """
    path = folder / "filtered.json"
    if path.is_file():
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    if "near_duplicate" in config.filters or config.benchmarks:
        check_installed()
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    known = read_known(config)
    (datasets.enable_progress_bars if console.is_terminal else datasets.disable_progress_bars)()
    read = _read(config, cache, console)
    workers = min(config.workers or len(os.sched_getaffinity(0)), -(-len(read) // AT_A_TIME))
    console.print(f"{len(read):,} rows; filters on {workers} cores", highlight=False)
    looked = read.map(
        partial(look, filters=config.filters, choices=config.choices, known=known),
        batched=True,
        batch_size=AT_A_TIME,
        writer_batch_size=AT_A_TIME,
        num_proc=workers if workers > 1 else None,
        remove_columns=list(TEXTS),
        features=LOOKED,
        cache_file_name=str(cache / "looked.arrow"),
        new_fingerprint="looked",
        desc="filter",
    )
    report = Report()
    try:
        with (
            (folder / ("filtered.jsonl" if config.asks else "prepared.jsonl")).open(
                "w", encoding="utf-8"
            ) as kept,
            (folder / "dropped.jsonl").open("w", encoding="utf-8") as dropped,
            Bar(console, "deduplicate", len(read), 0) as bar,
        ):
            _write(config, read, looked, report, kept, dropped, bar)
        path.write_text(json.dumps(vars(report), ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error}): make room and go on with --resume"
        ) from error
    del read, looked
    shutil.rmtree(cache, ignore_errors=True)
    if not report.kept:
        said = ", ".join(f"{reason} {count}" for reason, count in report.dropped.items())
        raise UserError(f"none of {report.rows} rows is kept: {said}; see {folder / 'dropped.jsonl'}")
    return report


def _read(config: PrepareConfig, cache: Path, console: Console) -> datasets.Dataset:
    """All records, on the disk."""
    faults: list[UserError] = []

    def every() -> Iterator[Row]:
        try:
            yield from records(config)
        except UserError as error:
            faults.append(error)
            raise

    try:
        return _dataset(
            datasets.Dataset.from_generator(every, FEATURES, cache_dir=str(cache), fingerprint="read")
        )
    except Exception as error:
        if faults:  # datasets has its own error for it
            raise faults[0] from error
        raise


def _dataset(found: Any) -> datasets.Dataset:
    assert isinstance(found, datasets.Dataset)
    return found


def look(batch: dict[str, list], filters: tuple[str, ...], choices: str, known: Known) -> dict[str, list]:
    """What is seen of each record alone: a reason to drop it, its open question, and its signatures."""
    sketcher = Sketcher() if "near_duplicate" in filters or known.texts else None
    found: dict[str, list] = {name: [] for name in LOOKED}
    for values in zip(*(batch[name] for name in TEXTS), strict=True):
        record: Row = dict(zip(TEXTS, values, strict=True))
        reason, question, answer = judge(record, filters, choices)
        note, sketch = "", b""
        if not reason and sketcher is not None:
            if note := known.find(question, sketcher):
                reason = "benchmark"
            elif "near_duplicate" in filters:
                canonical = _canonical(answer) if record["verifier"] == "math" else ""
                sketch = sketcher.sketch(question, canonical).hashvalues.tobytes()
        row = (reason, question, answer, note, digest(question), sketch)
        for name, value in zip(LOOKED, row, strict=True):
            found[name].append(value)
    return found


def _canonical(answer: str) -> str:
    """A reference in a normal form."""
    reference = reference_of(answer)
    return canonical_answer(rf"\boxed{{{reference}}}") or reference


def _write(
    config: PrepareConfig,
    read: datasets.Dataset,
    looked: datasets.Dataset,
    report: Report,
    kept: TextIO,
    dropped: TextIO,
    bar: Bar,
) -> None:
    """The rows in their order: kept, or dropped with the reason."""
    seen: dict[bytes, int] = {}
    near = "near_duplicate" in config.filters
    index, sketcher = (Index(config.similarity), Sketcher()) if near else (None, None)
    texts = looked.select_columns(["question"])

    def text_of(number: int) -> str:
        return texts[number]["question"]

    number = 0
    for records_, looks in zip(read.iter(AT_A_TIME), looked.iter(AT_A_TIME), strict=True):
        for record, one in zip(_rows_of(records_), _rows_of(looks), strict=True):
            reason, question, note, twin = one["reason"], one["question"], one["note"], None
            if not reason and "duplicate" in config.filters:
                twin = seen.setdefault(one["digest"], number)
                reason = "duplicate" if twin != number else ""
            if not reason and index is not None and sketcher is not None:
                sketch = sketcher.of(np.frombuffer(one["sketch"], np.uint32))
                twin = index.find(question, sketch, text_of)
                if twin is None:
                    index.add(number, sketch)
                else:
                    reason = "near_duplicate"
            source = record["origin"].rpartition(":")[0]
            report.sources[source] = report.sources.get(source, 0) + 1
            report.rows += 1
            if reason:
                if twin is not None:
                    earlier = read[twin]
                    note = f"{earlier['origin']}: {earlier['question']}"
                row = {"origin": record["origin"], "reason": reason, "question": record["question"]}
                row |= {"answer": record["answer"]} | ({"note": note} if note else {})
                report.drop(row)
                dropped.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                report.opened += question != record["question"]
                kept.write(json.dumps(_row(record, question, one["answer"]), ensure_ascii=False) + "\n")
            number += 1
        bar.report(number, {"kept": f"{report.kept:,}"})


def _rows_of(columns: Any) -> Iterator[Row]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _row(record: Row, question: str, answer: str) -> Row:
    """A row that is kept; a multiple choice with its open question, and the one that it was as `original`."""
    row = finished(record | {"answer": answer})
    return (
        row
        if question == record["question"]
        else with_question(row, question) | {"original": record["question"]}
    )


def with_question(row: Row, question: str) -> Row:
    """The row with another text in the place of the user's last one."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return row | {"prompt": question}
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    return row | {"prompt": [*prompt[:last], prompt[last] | {"content": question}, *prompt[last + 1 :]]}


def table(report: Report) -> list[tuple[str, str, str]]:
    """(reason, rows, why) in the order of REASONS."""
    return [
        (name, f"{report.dropped[name]:,}", why) for name, why in REASONS.items() if name in report.dropped
    ]
