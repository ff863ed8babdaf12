"""`openprime data`: filter, validate, report; rows to train on, and demonstrations."""

import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openprime.config import PrepareConfig
from openprime.data.readers import Row, value_at
from openprime.models.placement import pick_device
from openprime.preparation.asking import Asker, make_asker
from openprime.preparation.checking import action_chats, demonstrated, question_of, rewritten, solved
from openprime.preparation.duplicates import check_installed
from openprime.preparation.filtering import Report, filter_rows, table, with_question
from openprime.preparation.filters import REASONS
from openprime.preparation.rows import fingerprint, sources
from openprime.run.folder import check_folder, made_of, open_folder
from openprime.run.jsonl import fill_jsonl, index_jsonl
from openprime.types import StorageError
from openprime.verifiers.pool import Pool


def prepare(config: PrepareConfig) -> None:
    """Leave prepared.jsonl in `config.out`, rows to train on, with report.json, and dropped.jsonl for the others."""
    config.check()
    check_folder(config, "data")
    if "near_duplicate" in config.filters or config.benchmarks:
        check_installed()
    pick_device(config.device)  # what is wrong with it is said at once
    console, begun = Console(), time.perf_counter()
    folder = open_folder(config, "data", (fingerprint(source) for source in sources(config)))
    report = filter_rows(config, folder, console)
    filtered = time.perf_counter() - begun
    demonstrations = None
    if config.asks:
        with Pool(config.verify) as pool:
            stage = Stage(config, folder, console, make_asker(config, folder, console), pool)
            stage.check(report)
            if config.demonstrations:
                demonstrations = stage.demonstrate()
    seconds = {"filter": round(filtered, 1), "all": round(time.perf_counter() - begun, 1)}
    _show(report, folder, seconds, demonstrations, console)


class Stage:
    """The rows that passed the filters, of which a model is asked."""

    def __init__(
        self, config: PrepareConfig, folder: Path, console: Console, asker: Asker, pool: Pool
    ) -> None:
        self.config, self.folder, self.console, self.asker, self.pool = config, folder, console, asker, pool

    def check(self, report: Report) -> None:
        """Write prepared.jsonl and dropped-by-model.jsonl, and count in `report`; checked.jsonl goes on."""
        path = self.folder / "filtered.jsonl"
        places = index_jsonl(path, "origin")
        origins, at = list(places), list(places.values())

        def make(items: range, check: Callable[[], None]) -> list[Row]:
            return self._checked(list(_lines(path, at[items.start : items.stop])), check)

        marks = [{"origin": origin} for origin in origins]
        checked = fill_jsonl(self.folder / "checked.jsonl", marks, "ask", self.console, make)
        written = ("prepared.jsonl", "dropped-by-model.jsonl")
        with made_of(self.folder / "checked.jsonl"), _writing(self.folder, *written) as (kept, dropped):
            for row, found in zip(_lines(path, at), checked, strict=True):
                if found["reason"]:
                    report.opened -= "original" in row
                    note = {"note": found["note"]} if found.get("note") else {}
                    lost = {"origin": row["origin"], "reason": found["reason"], "question": row["prompt"]}
                    lost |= {"answer": row["answer"]} | note
                    report.drop(lost)
                    dropped(lost)
                else:
                    more = {"accuracy": found["accuracy"]} if "accuracy" in found else {}
                    kept((with_question(row, found["question"]) if found.get("question") else row) | more)

    def _checked(self, rows: list[Row], check: Callable[[], None]) -> list[Row]:
        """What the model says of each row: reason, share of right responses, open question."""
        found: list[Row] = [{"origin": row["origin"], "reason": ""} for row in rows]
        if self.config.choices == "ask":
            closed = [i for i, row in enumerate(rows) if "original" in row]
            said = rewritten(self.asker, [rows[i] for i in closed], check)
            for i, question in zip(closed, said, strict=True):
                found[i] |= {"question": question} if question else {"reason": "choice"}
        if self.config.samples:
            asked = [i for i, row in enumerate(rows) if not found[i]["reason"] and self._is_math(row)]
            put = [with_question(rows[i], found[i].get("question") or question_of(rows[i])) for i in asked]
            verdicts = solved(self.asker, self.pool, put, self.config.samples, self.config.agreement, check)
            for i, (reason, share, note) in zip(asked, verdicts, strict=True):
                found[i] |= {"reason": reason, "accuracy": round(share, 4)} | ({"note": note} if note else {})
        return found

    def demonstrate(self) -> dict[str, int]:
        """Write demonstrations.jsonl; returns what became of the rows."""
        path = self.folder / "prepared.jsonl"
        places = index_jsonl(path, "origin")
        rows = list(places.items())

        def make(items: range, check: Callable[[], None]) -> list[Row]:
            chosen = list(_lines(path, [at for _, at in rows[items.start : items.stop]]))
            asked = [i for i, row in enumerate(chosen) if self._is_math(row)]
            own = [chosen[i] for i in asked]
            found = demonstrated(self.asker, self.pool, own, self.config.demonstrations, check)
            said = {
                i: {"number": number, "why": why} for i, (_, number, why) in zip(asked, found, strict=True)
            }
            other = {"number": -1, "why": "not mathematics"}
            return [{"origin": row["origin"]} | said.get(i, other) for i, row in enumerate(chosen)]

        marks = [{"origin": origin} for origin, _ in rows]
        made = fill_jsonl(self.folder / "demonstrated.jsonl", marks, "demonstrate", self.console, make)
        with (
            made_of(self.folder / "demonstrated.jsonl"),
            _writing(self.folder, "demonstrations.jsonl") as (write,),
        ):
            for row, found in zip(_lines(path, list(places.values())), made, strict=True):
                if found["number"] >= 0:
                    (chat,) = action_chats([row])
                    (key,) = self.asker.keys([chat], self.config.demonstrations)
                    said = self.asker.answers.texts(key)[found["number"]].strip()
                    write(
                        {"messages": [*chat, {"role": "assistant", "content": said}], "origin": row["origin"]}
                    )
        return dict(Counter(found["why"] or "written" for found in made))

    def _is_math(self, row: Row) -> bool:
        data = self.config.data
        return (value_at(row, data.verifier_field) if data.verifier_field else data.verifier) == "math"


def _lines(path: Path, at: Sequence[int]) -> Iterator[Row]:
    """The rows of a file that begin at these bytes."""
    with path.open("rb") as file:
        for begin in at:
            file.seek(begin)
            yield json.loads(file.readline())


@contextmanager
def _writing(folder: Path, *names: str) -> Iterator[list[Callable[[Row], object]]]:
    """Functions that write a row to each of these files, which are whole or as they were."""
    partial = [folder / f".partial-{name}" for name in names]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in partial]
            yield [
                lambda row, file=file: file.write(json.dumps(row, ensure_ascii=False) + "\n")
                for file in files
            ]
        for path, name in zip(partial, names, strict=True):
            path.replace(folder / name)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error}): make room and go on with --resume"
        ) from error


def _show(
    report: Report,
    folder: Path,
    seconds: dict[str, float],
    demonstrations: dict[str, int] | None,
    console: Console,
) -> None:
    """Write report.json and print it."""
    used = {
        "this": resource.getrusage(resource.RUSAGE_SELF),
        "workers": resource.getrusage(resource.RUSAGE_CHILDREN),
    }
    found = {
        "rows": report.rows,
        "kept": report.kept,
        "opened": report.opened,
        "sources": report.sources,
        "dropped": {
            name: {"rows": report.dropped[name], "why": why, "examples": report.examples[name]}
            for name, why in REASONS.items()
            if name in report.dropped
        },
        **({"demonstrations": demonstrations} if demonstrations is not None else {}),
        "seconds": seconds,
        "cpu_seconds": {who: round(each.ru_utime + each.ru_stime, 1) for who, each in used.items()},
        "peak_mib": {who: round(each.ru_maxrss / 1024) for who, each in used.items()},
    }
    try:
        (folder / "report.json").write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error}): make room and go on with --resume"
        ) from error
    shown = Table("", "rows", "share", "what it is, and an example", box=None)
    for name, rows, why in table(report):
        share = f"{report.dropped[name] / report.rows:.1%}"
        example = " ".join(report.examples[name][0]["question"].split()) if report.examples[name] else ""
        shown.add_row(name, rows, share, escape(f"{why}: {example:.100}"))
    shown.add_row("kept", f"{report.kept:,}", f"{report.kept / report.rows:.1%}", _of_choices(report))
    console.print(shown)
    if demonstrations is not None:
        console.print(
            "demonstrations: " + ", ".join(f"{why} {count}" for why, count in demonstrations.items())
        )
    console.print(
        f"{report.rows:,} rows in {seconds['all']:.0f} s; written: {folder}/prepared.jsonl, report.json, dropped.jsonl",
        highlight=False,
        soft_wrap=True,
    )


def _of_choices(report: Report) -> str:
    return f"of them {report.opened:,} were multiple choice" if report.opened else ""
