"""`openprime verify`: outcomes of the responses in a file."""

import json
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from openprime.config import VerifyStageConfig
from openprime.data.readers import Row
from openprime.data.records import read_rows, to_verify
from openprime.run.console import Bar
from openprime.types import Prompt, UserError, Verdict
from openprime.verifiers.cases import Reading
from openprime.verifiers.pool import Pool

AHEAD = 1000
"""Rows that are submitted before the first of them is written."""
REPORTED = 100
"""Rows between two reports of progress."""


def verify(config: VerifyStageConfig) -> None:
    """Judge every row of `config.file` and write it with outcome, reason and seconds to `config.out`.

    Raises UserError for rows without a response, or without an answer or tests. An empty answer, or tests
    that cannot be read, have no outcome.
    """
    config.check()
    path, out, console = Path(config.file), Path(config.out), Console()
    rows = read_rows(path)
    if out.exists() and out.samefile(path):
        raise UserError(f"out: {out} is the file to read")
    names = [f"{path}, row {i + 1}" for i in range(len(rows))]
    named = (config.verifier, config.allow_modules)
    prompts = [to_verify(row, name, *named) for row, name in zip(rows, names, strict=True)]
    counts: Counter[str] = Counter()
    with Pool(config.verify) as pool:
        pool.prepare(prompt.verifier for prompt in prompts)
        readings = pool.read(prompts)
        begun = time.monotonic()
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8") as file, Bar(console, "verify", len(rows), 0) as bar:
            for done, (row, verdict) in enumerate(_judged(pool, rows, prompts, readings), 1):
                taken = round(verdict.seconds, 6)
                result = {"outcome": verdict.outcome, "reason": verdict.reason, "seconds": taken}
                result |= {"note": verdict.note} if verdict.note else {}
                file.write(json.dumps(row | result, ensure_ascii=False) + "\n")
                counts[verdict.reason] += 1
                if done % REPORTED == 0:
                    bar.report(done, {})
    seconds = time.monotonic() - begun
    share = counts["right"] / max(1, len(rows))
    said = dict.fromkeys(("right", "wrong", "no_answer", "rejected", "timeout"), 0) | counts
    console.print(", ".join(f"{reason} {count}" for reason, count in said.items()), highlight=False)
    console.print(
        f"{len(rows)} responses, {share:.1%} right; {len(rows) / seconds:,.0f} a second with {pool.workers} workers"
        + (f"; sandbox: {pool.sandbox}" if pool.sandbox else ""),
        highlight=False,
    )
    for line in _constant(prompts, readings):
        console.print(line, highlight=False)
    console.print(f"written: {out}", highlight=False)


def _judged(
    pool: Pool, rows: list[Row], prompts: list[Prompt], readings: list[Reading]
) -> Iterator[tuple[Row, Verdict]]:
    """Rows and verdicts in order, with a bounded number under way."""
    waiting: deque[tuple[Row, Future[Verdict]]] = deque()
    for row, prompt, reading in zip(rows, prompts, readings, strict=True):
        if reading.packed:
            prompt = replace(prompt, columns={}, tests=reading.packed)
        future = pool.submit(prompt, [row["response"] or ""])[0] if not reading.fault else Future()
        if reading.fault:
            future.set_result(Verdict(None, "no_verdict", note=reading.fault))
        waiting.append((row, future))
        while len(waiting) >= AHEAD or (waiting and waiting[0][1].done()):
            done, future = waiting.popleft()
            yield done, future.result()
    for row, future in waiting:
        yield row, future.result()


def _constant(prompts: list[Prompt], readings: list[Reading]) -> Iterator[str]:
    """Shares of the rows that an answer solves without a look at the question."""
    tests = [reading for prompt, reading in zip(prompts, readings, strict=True) if prompt.verifier == "code"]
    if tests:
        share = sum(bool(reading.constant) for reading in tests) / len(tests)
        yield f"one output, whatever the input, passes the tests of {share:.1%} of {len(tests)} rows with tests"
    answers = Counter((p.answer or "").strip() for p in prompts if p.verifier == "math")
    del answers[""]
    if answers:
        (answer, count), total = answers.most_common(1)[0], answers.total()
        yield f"the answer {answer:.40} is that of {count / total:.1%} of {total} rows with an answer"
