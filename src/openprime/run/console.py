"""What a command says while it works, the seconds that it spends, and leaving on a signal."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from openprime.models.shape import DONE
from openprime.ranks import gather, world
from openprime.types import Metrics, RunError


class Interrupted(RunError):
    """SIGINT or SIGTERM arrived; the run has been saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: saved; go on with --resume")
        self.number, self.exit_code = number, 128 + number

    def __reduce__(self) -> tuple:
        """Travels between ranks."""
        return Interrupted, (self.number,)


class Signals:
    """Raises Interrupted for the first SIGINT or SIGTERM, so that a run can save; a second one ends the process.

    SIGUSR1 asks for a checkpoint after the step, and the run goes on.

    Where nothing is lost by it (`interruptible`) it is raised at once, elsewhere with the next `check`; of several
    ranks each waits for that, for what they do together must not break off on one of them. Outside the main thread,
    which alone gets signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.received = 0
        self.at_once = False
        self.asked, self.answered = 0, 0
        """SIGUSR1s, and how many of them `agree` has told of."""

    def __enter__(self) -> "Signals":
        heard = {signal.SIGINT: self._note, signal.SIGTERM: self._note, signal.SIGUSR1: self._ask}
        if threading.current_thread() is not threading.main_thread():
            heard = {}
        self._old = {number: signal.signal(number, handler) for number, handler in heard.items()}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._old and error is not None and world() > 1:
            # torchrun ends what is left of a broken run: let this rank say what it knows.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, a signal is raised at once, whatever is under way, unless `at_once` is taken back."""
        before = self.at_once
        if world() == 1:  # several ranks agree on it
            self.check()
        self.at_once = True
        try:
            yield
        finally:
            self.at_once = before

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.received:
            raise Interrupted(self.received)

    def agree(self) -> tuple[int, bool]:
        """The signal to stop that any rank has received, or 0; whether a checkpoint was asked for: as on every rank."""
        asked = self.asked
        found = gather((self.received, asked > self.answered))
        self.received, self.answered = max(number for number, _ in found), asked
        return self.received, any(new for _, new in found)

    def _ask(self, number: int, frame: object) -> None:
        self.asked += 1

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        print("\nstopping: saving first (once more to stop at once)", file=sys.stderr, flush=True)
        signal.signal(number, self._old[signal.Signals(number)])
        if self.at_once and world() == 1:
            self.check()


def plain_console(quiet: bool = False) -> Console:
    """The console of a command. In a notebook it writes plain lines, where rich would make HTML of each."""
    notebook = Console().is_jupyter  # whose output takes itself for a terminal
    return Console(quiet=quiet, force_jupyter=False, force_terminal=False if notebook else None)


class Clock:
    """Seconds spent in each phase of a step, what its models worked, and the GPU memory that it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.flops: dict[str, float] = {}
        self.memory: Metrics = {}
        self.peak = 0.0
        """The device's, in 10^12 operations a second; 0: not known, and FLOP use is not said."""
        self.told: Callable[[str], None] = lambda name: None
        """Hears the name of each phase that begins."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block towards `name`; on a GPU until all that it began is done."""
        begun, start = DONE.flops, time.perf_counter()
        try:
            with self.device(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            if threading.current_thread() is threading.main_thread():  # it alone has models that train
                self.flops[name] = self.flops.get(name, 0.0) + DONE.flops - begun

    @contextmanager
    def device(self, name: str) -> Iterator[None]:
        """Note the GPU memory of a block, in GiB: at most, and at its end what tensors have and what PyTorch keeps."""
        if threading.current_thread() is threading.main_thread():
            self.told(name)
        if not torch.cuda.is_initialized():
            yield
            return
        torch.cuda.reset_peak_memory_stats()
        yield
        torch.cuda.synchronize()
        peak = max(torch.cuda.max_memory_allocated() / 2**30, self.memory.get(f"memory/{name}_peak", 0.0))
        self.memory |= {
            f"memory/{name}_peak": peak,
            f"memory/{name}_allocated": torch.cuda.memory_allocated() / 2**30,
            f"memory/{name}_reserved": torch.cuda.memory_reserved() / 2**30,
        }

    def take(self) -> Metrics:
        """The phases as metrics `time/`, `memory/` and `speed/...`, those of this rank's device, and start anew."""
        taken = {f"time/{name}": value for name, value in self.seconds.items()} | self.memory
        for name, flops in self.flops.items():
            if flops:
                tflops = flops / self.seconds[name] / 1e12
                taken[f"speed/{name}_tflops"] = tflops
                taken |= {f"speed/{name}_mfu": tflops / self.peak} if self.peak else {}
        self.seconds, self.flops, self.memory = {}, {}, {}
        return taken


def with_step_time(metrics: Metrics) -> Metrics:
    """Add the whole step's seconds, where they have not been measured: those of its phases, one after the other."""
    beside = {"time/evaluate"} | ({"time/rollout", "time/verify"} if "time/wait" in metrics else set())
    phases = [value for name, value in metrics.items() if name.startswith("time/") and name not in beside]
    return {"time/step": sum(phases)} | metrics


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
            TextColumn("[dim]{task.fields[phase]}"),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self.task = self.progress.add_task(title, total=total, completed=done, note="", phase="")
        self.begun, self.first = time.perf_counter(), done

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def phase(self, name: str) -> None:
        """Show what the step is at."""
        self.progress.update(self.task, phase=name)

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
