"""A run's folder, its metrics, its console, and leaving on a signal."""

import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard.writer import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from openprime import __version__
from openprime.config import FolderConfig, PromptFormat, RunConfig
from openprime.models.hub import save_model
from openprime.models.ranks import first, gather, on_first, world
from openprime.training.checkpoint import Background, checkpoints, load_checkpoint, save_checkpoint

MAY_CHANGE = {
    "resume",
    "steps",
    "epochs",
    "save_every",
    "keep",
    "sample_every",
    "wandb",
    "out",
    "sequences",
    "parallel",
    "engine",
}
"""Settings that a resumed run may change."""
CHUNK = 128
"""Items of a file that are made at a time: what a kill can cost."""
PACKAGES = ("torch", "transformers", "datasets", "math-verify")


class Interrupted(RuntimeError):
    """SIGINT or SIGTERM arrived; the run has been saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: saved; go on with --resume")
        self.number, self.exit_code = number, 128 + number

    def __reduce__(self) -> tuple:
        """Travels between ranks."""
        return Interrupted, (self.number,)


class Signals:
    """Notes the first SIGINT or SIGTERM, so that a run can save; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "Signals":
        self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if error is not None and world() > 1:
            # torchrun ends what is left of a broken run: let this rank say what it knows.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.received:
            raise Interrupted(self.received)

    def agree(self) -> int:
        """The signal that any rank has received, or 0: the same on every rank."""
        self.received = max(gather(self.received))
        return self.received

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        print("\nstopping: saving first (once more to stop at once)", file=sys.stderr, flush=True)
        signal.signal(number, self._old[signal.Signals(number)])


class Run:
    """One run's folder: config.yaml, versions.json, metrics.jsonl, samples.jsonl, tensorboard, checkpoints, model.

    Of several ranks the first one speaks and writes.
    """

    def __init__(self, config: RunConfig, stage: str) -> None:
        """Make the folder, or open it where `config.resume` is set.

        Raises ValueError when there is already a run in it and it is not to be resumed, or when it was
        begun with other settings.
        """
        self.config, self.folder = config, Path(config.out)
        self.console = Console(stderr=False, quiet=not first())
        self.clock = Clock()
        if config.wandb and importlib.util.find_spec("wandb") is None:
            raise ValueError("wandb is asked for but not installed: pip install 'openprime[wandb]'")
        on_first(lambda: open_folder(config, stage))
        self.step = 0
        self._background: Background | None = None
        self._writer: SummaryWriter | None = None
        self._wandb: Any = None

    def load(self) -> dict | None:
        """The last checkpoint's state if the run is to be resumed and has one; later records are cut off."""
        found = on_first(lambda: checkpoints(self.folder / "checkpoints")) if self.config.resume else []
        state = load_checkpoint(found[-1]) if found else None
        self.step = state["step"] if state else 0
        for name in ("metrics.jsonl", "samples.jsonl") if first() else ():
            keep_until(self.folder / name, self.step if state else -1)
        if state:
            self.console.print(f"resumed at step {self.step} from {found[-1]}")
        return state

    def save(self, step: int, state: dict, wait: bool = True) -> None:
        """Write a checkpoint, unless this step has one; without `wait`, while training goes on if it may."""
        folder = self.folder / "checkpoints"
        if self._background is None and self.config.parallel.save_in_background and world() > 1:
            self._background = Background()
        if self._background:
            self._background.settle()
        if not on_first((folder / f"step-{step:06d}").is_dir):
            save_checkpoint(folder, step, state, self.config.keep, None if wait else self._background)

    def way_back(self) -> str:
        """Where the last good weights are, in words."""
        found = checkpoints(self.folder / "checkpoints")
        return f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint yet."

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append to metrics.jsonl, TensorBoard and, if asked for, Weights & Biases; what is not finite is left out."""
        if not first():
            return
        metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        line = {"step": step, **metrics}
        append_jsonl(self.folder / "metrics.jsonl", line)
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if self.config.wandb:
            if self._wandb is None:
                self._wandb = start_wandb(self.config.wandb, self.folder)
            self._wandb.log(metrics, step=step)

    def sample(self, rows: list[dict]) -> None:
        """Append to samples.jsonl."""
        for row in rows if first() else ():
            append_jsonl(self.folder / "samples.jsonl", row)

    def export(self, name: str, write: "Any") -> Path:
        """Write a folder of the run as a whole or not at all; `write(folder)`, called on every rank, fills it."""
        target, partial = self.folder / name, self.folder / f".partial-{name}"

        def put_in_place() -> None:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)

        shutil.rmtree(partial, ignore_errors=True) if first() else None
        on_first(partial.mkdir)
        write(partial)
        on_first(put_in_place)
        return target

    def export_model(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, form: PromptFormat
    ) -> Path:
        """Write a Hugging Face model into the run's folder, and beside it how it was asked."""
        return self.export(name, lambda folder: save_model(model, tokenizer, folder, form))

    def close(self) -> None:
        """Flush what is still in memory."""
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


def open_folder(config: FolderConfig, stage: str) -> Path:
    """Make a command's folder with config.yaml and versions.json, or open it where `config.resume` is set.

    Raises ValueError as `check_folder` does.
    """
    check_folder(config, stage)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(config.model_dump_json())
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(versions(stage), indent=2) + "\n", encoding="utf-8")
    return folder


def check_folder(config: FolderConfig, stage: str) -> None:
    """Before any work: raises ValueError when there is already a run in the folder that cannot go on.

    That is one which is not to be resumed, or which was begun by another command or with other settings.
    """
    folder, path = Path(config.out), Path(config.out) / "config.yaml"
    if not path.is_file():
        return
    if not config.resume:
        raise ValueError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    made = folder / "versions.json"
    command = json.loads(made.read_text(encoding="utf-8"))["stage"] if made.is_file() else stage
    now = json.loads(config.model_dump_json())
    refuse_changes(folder, {"command": command} | before, {"command": stage} | now)


def refuse_changes(folder: Path, before: dict, now: dict) -> None:
    """Raises ValueError, with every changed setting, for a folder that was begun with other ones."""
    old, new = dict(flatten(before)), dict(flatten(now))
    changed = [
        f"{key}: {old[key]!r} -> {value!r}"
        for key, value in new.items()
        if key in old and old[key] != value and key.split(".")[0] not in MAY_CHANGE
    ]
    if changed:
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(changed)}. "
            "Resume with the same ones, or start a new run with another --out"
        )


class Clock:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block towards `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The phases as metrics `time/...`, and start anew."""
        taken = {f"time/{name}": value for name, value in self.seconds.items()}
        self.seconds = {}
        return taken


class Bar:
    """A live progress bar on a terminal; a line a report elsewhere."""

    def __init__(self, console: Console, title: str, total: int, done: int) -> None:
        self.console, self.title, self.total = console, title, total
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self.task = self.progress.add_task(title, total=total, completed=done, note="")
        self.begun, self.first = time.perf_counter(), done

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def report(self, step: int, numbers: dict[str, str]) -> None:
        """Show the numbers that matter at a step."""
        note = "  ".join(f"{name} {value}" for name, value in numbers.items())
        self.progress.update(self.task, completed=step, note=note)
        if not (self.console.is_terminal or self.console.quiet):
            pace = (time.perf_counter() - self.begun) / max(1, step - self.first)
            left = time.strftime("%H:%M:%S", time.gmtime(pace * (self.total - step)))
            print(f"{self.title} {step}/{self.total}  {note}  left {left}", flush=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False)


def versions(stage: str) -> dict[str, str]:
    """What the run was made with."""
    found = {"openprime": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(torch.get_num_threads()),
    }
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"stage": stage, **found, **machine, **gpu, "command": " ".join(sys.argv)}


def start_wandb(project: str, folder: Path) -> Any:
    """A Weights & Biases run beside the folder's own records."""
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb.init(project=project, name=folder.name, dir=str(folder), resume="allow", id=folder.name)


def append_jsonl(path: Path, row: dict) -> None:
    """Add a line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a last line that a kill left half-written."""
    _cut(path, [end for row, end in _whole_lines(path) if row["step"] <= step])


def resume_jsonl(path: Path) -> list[dict]:
    """The rows of a file that goes on; a last line that a kill left half-written is cut off."""
    lines = _whole_lines(path)
    _cut(path, [end for _, end in lines])
    return [row for row, _ in lines]


def fill_jsonl(
    path: Path,
    total: int,
    title: str,
    console: Console,
    make: Callable[[range, Callable[[], None]], list[dict]],
) -> list[dict]:
    """The rows of items 0..total-1 in a file, a line an item, made in chunks by `make(items, check)`.

    Lines that are there already are kept, so that an interrupted command goes on without repeating or
    losing an item. A chunk is always the same items, whatever was there: it may be sampled with a seed of
    its own. `make` calls `check` now and then, which raises Interrupted after a signal.
    """
    rows = resume_jsonl(path)
    if len(rows) > total:
        raise ValueError(
            f"{path}: {len(rows)} lines for {total} items: the data have changed; choose another --out"
        )
    with Signals() as signals, Bar(console, title, total, len(rows)) as bar:
        begun, before = time.perf_counter(), len(rows)
        while len(rows) < total:
            signals.check()
            start = len(rows) // CHUNK * CHUNK
            chunk = range(start, min(start + CHUNK, total))
            made = make(chunk, signals.check)
            assert len(made) == len(chunk)
            for row in made[len(rows) - start :]:
                append_jsonl(path, row)
                rows.append(row)
            pace = (len(rows) - before) / (time.perf_counter() - begun)
            bar.report(len(rows), {"items/s": f"{pace:.2f}"})
    return rows


def _whole_lines(path: Path) -> list[tuple[dict, int]]:
    """Rows of a JSONL file and where each ends, in bytes, up to the first line that is not whole."""
    whole, end = [], 0
    with path.open("rb") if path.is_file() else io.BytesIO() as file:
        for line in file:  # in bytes: only a line feed ends a line
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError:
                break
            end += len(line)
            whole.append((row, end))
    return whole


def _cut(path: Path, ends: list[int]) -> None:
    """Shorten a file to the last of these ends, in one step: a kill meanwhile loses nothing."""
    if path.is_file():
        os.truncate(path, max(ends, default=0))


def flatten(settings: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, dict):
            pairs += flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value))
    return pairs
