"""A run: its folder, and the one owner of its cadence."""

import importlib.util
import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch.utils.tensorboard.writer import SummaryWriter

from openprime.config import RunConfig
from openprime.ranks import LostRankError, first, on_first, world
from openprime.run.alarms import Alarm, Watch
from openprime.run.checkpoint import Background, checkpoints, resume, save_checkpoint
from openprime.run.console import Bar, Clock, Interrupted, Signals, plain_console, with_step_time
from openprime.run.folder import open_folder, settings_of
from openprime.run.jsonl import append_jsonl, keep_until, read_jsonl
from openprime.run.lock import release
from openprime.types import Metrics, NonFiniteError, RunError, UserError


class Part(Protocol):
    """A part of a run whose state its checkpoints keep."""

    def state(self) -> dict[str, Any]:
        """All that it takes to go on."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        ...


class Run:
    """A run's folder and its steps.

    The folder holds config.yaml, versions.json, data.json, metrics.jsonl, alarms.jsonl, samples.jsonl, tensorboard,
    checkpoints, and what is exported. A step is timed, logged, shown and saved when it is due; where it fails, the
    error is named, with the way back, and what is whole is saved; a signal ends the run after the step. Of several
    ranks the first one speaks and writes.

        with Run(config, "sft") as run:
            run.begin({"learner": learner})
            for step in run.steps(total, headline):
                with run.step(step), run.training():
                    run.log(learn(step))
    """

    def __init__(
        self, config: RunConfig, command: str, clock: Clock | None = None, data: Iterable[bytes] = ()
    ) -> None:
        """Make the folder, or open it where `config.resume` is set; `data` are the items that are trained on.

        Raises UserError when there is already a run in it and it is not to be resumed, or when it was
        begun with other settings or data.
        """
        self.config, self.command, self.folder = config, command, Path(config.out)
        self.console = plain_console(quiet=not first())
        self.clock, self.signals = clock or Clock(), Signals()
        if config.wandb and importlib.util.find_spec("wandb") is None:
            raise UserError("wandb is asked for but not installed: pip install 'openprime[wandb]'")
        on_first(lambda: open_folder(config, command, data))
        self._settings = settings_of(config, command)
        self.done, self.total = 0, 0
        """Steps done, those of an earlier start included; steps in all."""
        self._saved = -1
        """The step of the last checkpoint."""
        self.unfinished: Metrics = {}
        """Of the last step done, where it was broken off when it was measured: what had been logged. It is measured
        with `step(done)`."""
        self._trained: dict[str, Part] = {}
        self._cursor: Part | None = None
        self.step_number = 0
        """The step under way."""
        self._whole: int | None = None
        """The step after which the weights are as they are; None while they change, or before the first step."""
        self._metrics: Metrics = {}
        self._measuring = False
        self._bar: Bar | None = None
        self._headline: Callable[[Metrics], dict[str, str]] = lambda metrics: {}
        self._every = 1
        self._open = ExitStack()
        self._background: Background | None = None
        self._watch: Watch | None = None
        self._writer: SummaryWriter | None = None
        self._wandb: Any = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()
        release()

    def begin(
        self, trained: dict[str, Part], cursor: Part | None = None, alarms: Sequence[Alarm] = ()
    ) -> bool:
        """From now on signals are noted, and checkpoints keep these parts; goes on from the last one, if resumed.

        `cursor` is the place in the data; `alarms` look at the metrics of every step. Returns True where the run
        begins anew.
        """
        self._open.enter_context(self.signals)
        self._open.enter_context(self.signals.interruptible())  # up to the first step
        self._trained, self._cursor = trained, cursor
        found = None
        if self.config.resume:
            found = resume(self.folder / "checkpoints", self._settings, self._restore, self.note)
        if first():
            recorded = self.done - bool(self.unfinished) if found else -1
            for name in ("metrics.jsonl", "alarms.jsonl"):
                keep_until(self.folder / name, recorded)
            keep_until(self.folder / "samples.jsonl", self.done if found else -1)
            if alarms:
                self._watch = Watch(alarms, read_jsonl(self.folder / "metrics.jsonl"))
        if found:
            self.note(f"resumed at step {self.done} from {found}", "")
        return found is None

    def _restore(self, state: dict[str, Any]) -> None:
        """Hand a checkpoint's state to the parts."""
        for name, part in self._trained.items():
            part.restore(state[name])
        if self._cursor is not None:
            self._cursor.restore(state["cursor"])
        self.done = self._saved = state["step"]
        self.unfinished = state.get("unfinished", {})

    def steps(
        self, total: int, headline: Callable[[Metrics], dict[str, str]], lines: int = 0
    ) -> Iterator[int]:
        """The numbers of the steps that are left, from 1 to `total`.

        `headline` takes the numbers that matter from a step's metrics. Where the console is no terminal it gets a
        line a step, or about `lines` in all.
        """
        self.total, self._headline = total, headline
        self._every = max(1, total // lines) if lines else 1
        self._bar = self._open.enter_context(Bar(self.console, self.command, total, self.done))
        self.clock.told = self._bar.phase
        yield from range(self.done + 1, total + 1)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """One step; step 0, or the last one done, is what is measured before the first one.

        What is logged within is written at its end. Where an error ends it, whatever is whole is saved: the run as it
        was before the step, or after it where training is over.
        """
        self.signals.at_once = False
        new = step > self.done
        self.step_number, self._metrics, self.unfinished = step, self.unfinished, {}
        self._whole, self._measuring = step - 1 if new else None, False
        cursor = self._cursor.state() if self._cursor is not None else {}
        try:
            with self.signals.interruptible():
                yield
        except NonFiniteError as error:  # weights that are not worth keeping
            raise RunError(
                f"step {step}: {error}. {self.way_back()} Lower the learning rate, or look at what it was trained on"
            ) from error
        except LostRankError:  # weights that cannot be gathered
            raise
        except BaseException as error:
            # Of several ranks: not what is this rank's alone, for the others are elsewhere.
            if self._whole is not None and (
                world() == 1 or isinstance(error, OSError | RuntimeError | ValueError)
            ):
                metrics = self._metrics | self.clock.take()
                if self._whole == step and self._measuring:
                    self.unfinished = {name: float(value) for name, value in metrics.items()}
                elif self._whole == step:
                    self._write(with_step_time(metrics))
                self._save(self._whole, None if self._whole == step else cursor)
                self.note(f"saved after step {self._whole}; go on with --resume", "")
            raise
        self._metrics |= self.clock.take()
        if step:
            self._metrics = with_step_time(self._metrics)
        self._write(self._metrics)
        if new:
            self._finish(step)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Weights change: where this breaks off they are neither old nor new, and are not saved.

        From here to the end of the step a signal waits, but where something is measured.
        """
        self.signals.at_once = False
        self._whole = None
        yield
        self._whole = self.step_number

    @contextmanager
    def measuring(self, phase: str) -> Iterator[None]:
        """What takes time and changes nothing: a signal breaks it off, and `unfinished` tells the resumed run."""
        self._measuring = True
        # Before the first step there is no bar that could show it.
        alone = nullcontext() if self._bar else self.console.status(f"{self.command}: {phase}")
        with self.signals.interruptible(), self.clock.phase(phase), alone:
            yield
        self._measuring = False

    def due(self, every: int) -> bool:
        """True in every so many steps and in the last one; 0 is the last one only."""
        return self.step_number == self.total or bool(every and self.step_number % every == 0)

    def log(self, metrics: Metrics) -> None:
        """Add to the metrics of the step."""
        self._metrics |= metrics

    def sample(self, rows: list[dict]) -> None:
        """Append to samples.jsonl; Weights & Biases gets a table, if asked for."""
        if not first():
            return
        for row in rows:
            append_jsonl(self.folder / "samples.jsonl", row)
        if self.config.wandb and rows:
            self._to_wandb().log({"samples": wandb_table(rows)}, step=self.step_number)

    def note(self, text: str, before: str = "note: ") -> None:
        """A line on the console, above the bar."""
        self.console.print(before + text, highlight=False, markup=False, soft_wrap=True)

    def export(self, name: str, write: Callable[[Path], object]) -> Path:
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

    def way_back(self) -> str:
        """Where the last good weights are, in words."""
        found = checkpoints(self.folder / "checkpoints")
        return f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint yet."

    def _finish(self, step: int) -> None:
        """Show a step, save it when that is due, and end the run where a signal has arrived."""
        assert self._bar is not None
        last = step == self.total
        if self.console.is_terminal or last or step % self._every == 0:
            self._bar.report(step, self._headline(self._metrics))
        stopped, asked = self.signals.agree()
        if stopped or last or asked or (self.config.save_every and step % self.config.save_every == 0):
            self._save(step, wait=bool(last or stopped))
        if asked:
            self.note(f"saved after step {step}, as SIGUSR1 asked", "")
        self.done = step
        if stopped and not last:
            raise Interrupted(stopped)

    def _save(self, step: int, cursor: dict[str, Any] | None = None, wait: bool = True) -> None:
        """Write a checkpoint, unless this step has one; without `wait`, while training goes on if it may.

        `cursor` None: the present place in the data.
        """
        folder = self.folder / "checkpoints"
        if self._background is None and self.config.parallel.save_in_background and world() > 1:
            self._background = Background()
        if self._background:
            self._background.wait()
        if step == self._saved:
            return
        state: dict[str, Any] = {name: part.state() for name, part in self._trained.items()}
        state |= {"settings": self._settings, "unfinished": self.unfinished}
        if self._cursor is not None:
            state["cursor"] = self._cursor.state() if cursor is None else cursor
        save_checkpoint(folder, step, state, self.config.keep, None if wait else self._background)
        self._saved = step

    def _write(self, metrics: Metrics) -> None:
        """Append to metrics.jsonl, TensorBoard and, if asked for, Weights & Biases; what is not finite is left out.

        What alarms see in it is said, and appended to alarms.jsonl.
        """
        measured = {name.removeprefix("eval/"): v for name, v in metrics.items() if name.startswith("eval/")}
        if measured:
            said = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
            self.note(f"step {self.step_number}: held-out accuracy, {said}", "")
        if not first():
            return
        step, metrics = self.step_number, {name: float(v) for name, v in metrics.items() if math.isfinite(v)}
        if self._watch is not None and step:
            rings, events = self._watch.look(step, metrics)
            metrics |= rings
            for event in events:
                append_jsonl(self.folder / "alarms.jsonl", event)
                said = f"step {step}: {event['alarm']}: {event['says']}. What to do: {event['do']}"
                self.note(said, "alarm: ")
        append_jsonl(self.folder / "metrics.jsonl", {"step": step, **metrics})
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.done + 1)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if self.config.wandb:
            self._to_wandb().log(metrics, step=step)

    def _to_wandb(self) -> Any:
        """The run at Weights & Biases, which is begun or gone on with when it first gets something."""
        if self._wandb is None:
            self._wandb = start_wandb(self.config, self.folder)
        return self._wandb


def start_wandb(config: RunConfig, folder: Path) -> Any:
    """A Weights & Biases run beside the folder's own records; the file `wandb-id` leads a resumed run back to it."""
    import wandb

    known = folder / "wandb-id"
    if not known.is_file():
        known.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return wandb.init(
        project=config.wandb,
        name=folder.name,
        dir=str(folder),
        config=config.model_dump(mode="json"),
        resume="allow",
        id=known.read_text(encoding="utf-8"),
    )


def wandb_table(rows: Sequence[dict]) -> Any:
    """Rows of samples.jsonl for people: texts as they are read, the numbers of all tokens as their sum."""
    import wandb

    columns = list(dict.fromkeys(key for row in rows for key in row))
    return wandb.Table(columns=columns, data=[[shown(row.get(key)) for key in columns] for row in rows])


def shown(value: Any) -> Any:
    """A value of a sample in a table's cell."""
    match value:
        case [{"content": _}, *_]:  # messages
            return "\n".join(f"{message['role']}: {message['content']}" for message in value)
        case [str(), *_]:
            return "".join(value)
        case [int() | float(), *_]:
            return sum(value)
        case _:
            return value
