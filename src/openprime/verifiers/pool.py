"""A pool of worker processes in which every verifier runs: parallel, in order, and never in the trainer.

A worker is a new Python process (not a fork of the trainer), serves one job at a time, and is killed
and replaced when a job outlasts its time, when it dies, and after a number of jobs. One thread a
worker feeds it; a worker dies with its thread, so none outlives this process, however that ends.
"""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openprime.config import VerifyConfig
from openprime.types import Group, Prompt, RunError, UserError, Verdict, Verifier
from openprime.verifiers.cases import Reading
from openprime.verifiers.worker import TESTS, receive, send, verdicts_of

START_SECONDS = 120.0
"""Time for a worker to start and to load a verifier (imports, a user's model), before the job's own time."""
MATH_SECONDS = 5.0
"""Time for one mathematical answer."""
TESTS_SECONDS = 60.0
"""Time to read the tests of one program."""
WAITING = 4096
"""Jobs that may wait; `submit` blocks beyond."""
JOBS_PER_WORKER = 5000
"""A worker is replaced after so many jobs: what libraries keep in memory goes with it."""
START = "import sys; sys.path.append({root!r}); from openprime.verifiers.worker import main; main({parent}, {channel})"


class VerifierError(UserError):
    """A verifier does not load (a user's module fails, strict isolation cannot be had), or fails on everything."""


class Pool:
    """Worker processes for verifiers. Any thread may submit; `close` when done (or use `with`)."""

    def __init__(
        self,
        config: VerifyConfig | None = None,
        workers: int = 0,
        here: Mapping[str, Verifier] | None = None,
    ) -> None:
        """`workers`, else `config.workers`, else one a core. Processes start when the first jobs come.

        `here`: verifiers by name that run in this process, in the thread that submits: functions of a notebook, which
        no worker can import. They have no time limit: one that hangs blocks its caller.
        """
        self.here = here or {}
        self.config = config or VerifyConfig()
        self.workers = workers or self.config.workers or len(os.sched_getaffinity(0))
        self.sandbox = ""
        """Isolation of programs, such as `strict`; empty while no program was to be judged."""
        self.complaint = ""
        """Traceback of the last verifier that failed on a response."""
        self._jobs: queue.Queue[_Job | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._alive: set[_Worker] = set()
        self._unfinished = 0
        self._closed = False

    def prepare(self, names: Iterable[str]) -> None:
        """Load verifiers in a worker, so that what is wrong with them is said at the start.

        Raises VerifierError for a name that is no verifier, and for one that does not load.
        """
        for name in dict.fromkeys(name for name in names if name not in self.here):
            answer = self._put(_Job(name, None, (), START_SECONDS)).result()
            self.sandbox = answer or self.sandbox

    def admit(
        self, prompts: Sequence[Prompt], say: Callable[[str], object], training: bool = False
    ) -> list[Prompt]:
        """Load the prompts' verifiers; leave out what they cannot judge, and say so.

        In training, programs that pass their tests without a look at the input are left out too. Tests stand in the
        prompt, read once, in the place of its columns. Raises VerifierError as `prepare` does, UserError where
        nothing is left.
        """
        self.prepare(prompt.verifier for prompt in prompts)
        kept, faults, constant = [], [], []
        for prompt, reading in zip(prompts, self.read(prompts), strict=True):
            if reading.fault:
                faults.append(f"{prompt.id}: {reading.fault}")
            elif training and reading.constant:
                constant.append(f"{prompt.id}: {reading.constant}")
            else:
                kept.append(replace(prompt, columns={}, tests=reading.packed) if reading.packed else prompt)
        for left_out, what in (
            (faults, "tests that cannot be judged"),
            (constant, "tests that one answer passes, whatever the input"),
        ):
            if left_out:
                text = f"{len(left_out)} of {len(prompts)} prompts have {what}: left out ({left_out[0]})"
                if not kept:
                    raise UserError(text)
                say(text)
        return kept

    def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """The tests of each prompt, read in the workers; empty for those that need no reading."""
        asked = {
            i: self._put(_Job(TESTS, prompt, ("",), TESTS_SECONDS))
            for i, prompt in enumerate(prompts)
            if prompt.verifier == "code" and not prompt.tests
        }
        return [asked[i].result() if i in asked else Reading() for i in range(len(prompts))]

    def submit(self, prompt: Prompt, responses: Sequence[str]) -> list["Future[Verdict]"]:
        """One future a response, in order; no verdict ever raises. Blocks while too many jobs wait.

        A user's function judges all responses to a prompt at once, as its signature has it. So does
        mathematics, a thousandth of a second each: one answer that is out of time has them judged alone.
        """
        columns = {} if prompt.verifier == "math" else prompt.columns
        answer = None if prompt.tests else prompt.answer  # tests go once, not as text too
        prompt = replace(prompt, token_ids=(), columns=columns, answer=answer)
        if prompt.verifier in self.here:
            return self._judge_here(prompt, responses)
        limit = {"math": MATH_SECONDS, "code": self.config.code.longest}.get(
            prompt.verifier, self.config.seconds
        )
        if prompt.verifier == "code":  # a hundredth of a second and more: to any worker that is free
            jobs = [self._put(_Job("code", prompt, (text,), limit)) for text in responses]
            return [_nth(job, 0) for job in jobs]
        job = self._put(_Job(prompt.verifier, prompt, tuple(responses), limit))
        return [_nth(job, i) for i in range(len(responses))]

    def judge(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with outcome and reason in each response."""
        submitted = [self.submit(g.prompt, [r.text for r in g.responses]) for g in groups]
        judged = [with_verdicts(group, futures) for group, futures in zip(groups, submitted, strict=True)]
        self.require_verdicts(judged)
        return judged

    def require_verdicts(self, judged: Sequence[Group]) -> None:
        """Raise VerifierError where no response at all has an outcome because the verifier fails."""
        if self.complaint and all(r.outcome is None for group in judged for r in group.responses):
            raise VerifierError(
                f"the verifier failed on every response, the last time with\n{self.complaint}"
            )

    def metrics(self) -> dict[str, float]:
        """Metrics of a run beside its verdicts: 1 where programs run in strict isolation, 0 where not."""
        return {"verify/strict_sandbox": float(self.sandbox.startswith("strict"))} if self.sandbox else {}

    def close(self) -> None:
        """Kill the workers; jobs that wait are cancelled."""
        with self._lock:
            self._closed = True
            alive = list(self._alive)
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job:
                    job.future.cancel()
        for worker in alive:
            worker.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _judge_here(self, prompt: Prompt, responses: Sequence[str]) -> list["Future[Verdict]"]:
        """`submit` by a verifier of this process."""
        job = _Job(prompt.verifier, prompt, tuple(responses), 0.0)
        try:
            job.future.set_result(verdicts_of(job.name, self.here[job.name], prompt, responses))
        except RunError:  # a signal, which interrupts the run
            raise
        except Exception:  # noqa: BLE001 - whatever a user's function raises
            self._complain(traceback.format_exc())
            job.finish("crash", False)
        return [_nth(job.future, i) for i in range(len(responses))]

    def _put(self, job: "_Job") -> "Future[Any]":
        with self._lock:
            if self._closed:
                raise RunError("the verifier pool is closed")
            self._unfinished += 1
            if len(self._threads) < min(self.workers, self._unfinished):
                thread = threading.Thread(target=self._serve, daemon=True, name="verifier")
                self._threads.append(thread)
                thread.start()
        job.future.add_done_callback(self._finished)
        self._jobs.put(job)
        return job.future

    def _finished(self, _: object) -> None:
        with self._lock:
            self._unfinished -= 1

    def _serve(self) -> None:
        """Feed one worker after the other until the pool closes."""
        worker: _Worker | None = None
        try:
            while (job := self._jobs.get()) is not None:
                if not job.future.set_running_or_notify_cancel():
                    continue
                try:
                    worker = self._do(job, worker)
                except Exception as error:  # noqa: BLE001 - no process, no memory, no pickle: nobody may wait for ever
                    if worker:
                        self._end(worker)
                    worker = None
                    if job.prompt is None:
                        job.future.set_exception(error)
                    else:
                        self._complain(traceback.format_exc())
                        job.finish("no_verdict", False)
                if self._closed:
                    return
        finally:
            if worker:
                self._end(worker)

    def _do(self, job: "_Job", worker: "_Worker | None") -> "_Worker | None":
        """Have a job done and return the worker if it is still of use."""
        for last in (False, True):  # a worker that dies under a job may have been killed by somebody else
            if worker is None:
                worker = _Worker(self.config)
                with self._lock:
                    self._alive.add(worker)
                    if self._closed:
                        worker.kill()
            try:
                kind, *answer = worker.ask(job)
            except TimeoutError:
                self._end(worker)
                return self._give_up(job, "timeout", worker.begun)
            except (EOFError, OSError):
                self._end(worker)
                if last or self._closed:
                    return self._give_up(job, "crash", worker.begun)
                worker = None
                continue
            if kind in ("loaded", "read", "verdicts"):
                job.future.set_result(answer[0])
            elif kind == "raised":
                self._complain(answer[0])
                job.finish("crash", False)
            elif job.prompt is None:
                raise VerifierError(answer[0])
            else:  # it does not load here, though it may have elsewhere
                self._complain(answer[0])
                job.finish("no_verdict", False)
            if worker.jobs < JOBS_PER_WORKER:
                return worker
            self._end(worker)
            return None
        raise AssertionError

    def _give_up(self, job: "_Job", reason: str, begun: bool) -> "_Worker | None":
        """End a job that its worker did not; of several responses to mathematics only the one to blame."""
        if len(job.responses) == 1 or not job.built_in or self._closed:
            job.finish(reason, begun)
            return None
        worker, verdicts = None, []
        for text in job.responses:
            alone = _Job(job.name, job.prompt, (text,), job.seconds)
            worker = self._do(alone, worker)
            verdicts += alone.future.result()
        job.future.set_result(verdicts)
        return worker

    def _end(self, worker: "_Worker") -> None:
        worker.kill()
        with self._lock:
            self._alive.discard(worker)

    def _complain(self, text: str) -> None:
        if not self.complaint:
            warnings.warn(f"a verifier failed, the response is left out:\n{text}", stacklevel=2)
        self.complaint = text


def with_verdicts(group: Group, futures: Sequence["Future[Verdict]"]) -> Group:
    """The group with the verdicts, once they are there, in its responses."""
    verdicts = [future.result() for future in futures]
    responses = (
        replace(r, outcome=v.outcome, reason=v.reason, verify_seconds=v.seconds)
        for r, v in zip(group.responses, verdicts, strict=True)
    )
    return replace(group, responses=tuple(responses))


@dataclass(slots=True)
class _Job:
    """Responses for a verifier; without a prompt only load it. For TESTS, read the prompt's tests."""

    name: str
    prompt: Prompt | None
    responses: tuple[str, ...]
    seconds: float
    future: "Future[Any]" = field(default_factory=Future)

    @property
    def built_in(self) -> bool:
        """True for a verifier of ours: what it cannot judge is then the response's fault."""
        return ":" not in self.name

    def finish(self, reason: str, begun: bool) -> None:
        """End without a verdict of the verifier."""
        if self.prompt is None:
            self.future.set_exception(VerifierError(f"the verifier {self.name} did not load: {reason}"))
            return
        if self.name == TESTS:
            fault = f"reading the tests ended in a {reason}, after {self.seconds:.0f} s at most"
            self.future.set_result(Reading(fault=fault))
            return
        outcome = 0.0 if begun and self.built_in else None
        seconds = self.seconds if reason == "timeout" else 0.0
        self.future.set_result([Verdict(outcome, reason, seconds)] * len(self.responses))


class _Worker:
    """One process and the socket to it."""

    def __init__(self, config: VerifyConfig) -> None:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        code = START.format(root=root, parent=os.getpid(), channel=theirs.fileno())
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.callback(ours.close)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the trainer, which ends us
            )
            unless_started.pop_all()
        self.channel, self.jobs, self.begun = ours, 0, False
        self._options: dict[str, Any] | None = config.model_dump()

    def ask(self, job: _Job) -> tuple[Any, ...]:
        """Send a job and wait for its answer. Raises TimeoutError, EOFError or OSError when there is none."""
        self.begun = False
        self.jobs += 1
        deadline = time.monotonic() + START_SECONDS
        if self._options is not None:
            send(self.channel, self._options, deadline)
            self._options = None
        send(self.channel, (job.name, job.prompt, job.responses), deadline)
        while (answer := receive(self.channel, deadline))[0] in ("begun", "loading"):
            self.begun = answer[0] == "begun"
            deadline = time.monotonic() + (job.seconds if self.begun else START_SECONDS)
        return answer

    def kill(self) -> None:
        """End the process, with all of its session, and reap it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.channel.close()


def _nth(job: "Future[Any]", i: int) -> "Future[Verdict]":
    """The future of one verdict of a job."""
    verdict: Future[Verdict] = Future()

    def pass_on(done: "Future[Any]") -> None:
        if done.cancelled():
            verdict.cancel()
            verdict.set_running_or_notify_cancel()
        elif error := done.exception():
            verdict.set_exception(error)
        else:
            verdict.set_result(done.result()[i])

    job.add_done_callback(pass_on)
    return verdict
