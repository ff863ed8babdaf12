"""Run model-written Python programs, from the trusted side.

The program under test is hostile: the policy is trained against what comes back from here. Programs run in
children of a zygote (`zygote.py`, which says what they may do): a process exec'd once with an empty
environment, so it has none of this process's memory, secrets, descriptors or expected outputs. Only text and
plain values come back.

Promised on Linux x86-64 at the strict levels: a program reads no file but the standard library and the
allowed packages, writes none, reaches no network, starts and signals no process, stays within its limits,
leaves nothing behind, finds nothing of another program and changes no other's result. It can see names, sizes
and times of files, and it can forge its own results, which helps nobody who does not know the expected ones.
Not promised: anything against faults of the kernel, or side channels such as time.
"""

import contextlib
import importlib.util
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from openprime.verifiers import zygote

GRACE = 20.0
"""Seconds after which a silent zygote is taken for dead."""
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # the same program has the same outcome
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "MALLOC_ARENA_MAX": "1",  # threads would reserve address space
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
OVERRIDE = "Programs would run less isolated with allow_weak=True."
PROBE = """
import os, socket
kind, target = input().split(" ", 1)
if kind == "read":
    print(open(target).read())
elif kind == "write":
    open(target, "a").write("written")
elif kind == "change":
    os.chmod(target, 0o777)
elif kind == "connect":
    socket.socket().connect_ex(("127.0.0.1", 9))
    print("a socket")
elif kind == "fork":
    if os.fork() == 0:
        os._exit(0)
    print("a process")
elif kind == "signal":
    os.kill(os.getppid(), 0)
    print("a signal")
elif kind == "memory":
    print(len(bytearray(1 << 30)))
elif kind == "output":
    os.write(1, bytes(1 << 20))
    os.write(1, bytes(1 << 20))
    print("unlimited")
"""
PROBES = {  # what stops it
    "read": "landlock",
    "write": "landlock",
    "change": "seccomp",
    "connect": "seccomp",
    "fork": "seccomp",
    "signal": "seccomp",
    "memory": "rlimits",
    "output": "rlimits",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Resources that one program may use."""

    seconds: float = 4.0
    """Wall clock of one case."""
    total_seconds: float = 20.0
    """Wall clock of all cases of one program."""
    memory_mb: int = 1024
    """Address space on top of the interpreter's own, in MiB."""
    output_bytes: int = 1 << 20
    """Output of one case."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Result of one case."""

    status: Literal["ok", "error", "timeout", "not_run"]
    """ok: the program ended, for a text case also by exit status 0. error: an exception, signal, exit status,
    too much memory or output, a value that cannot travel. not_run: an earlier case timed out."""
    output: str = ""
    """Standard output of a text case."""
    value: Any = None
    """Return value of a call case, as plain values."""
    error: str = ""
    """A short reason where the status is not ok."""
    seconds: float = 0.0


class SandboxError(RuntimeError):
    """Strict isolation cannot be had, or the zygote failed."""


class _Gone(Exception):
    """The zygote ended or fell silent."""


class _Child:
    """A program's process as it is seen from here: its memory files and the line on which it is awaited.

    `job`: program, name of the function and limits, as JSON. Raises _Gone, as all methods do.
    """

    def __init__(self, zygote: socket.socket, job: str) -> None:
        self.zygote = zygote
        self.over = False
        """It ended, or has to be ended: another one goes on."""
        self.alive = False
        """It has said so, behind its limits and filters: time runs from here."""
        with contextlib.ExitStack() as stack:
            self.line, theirs = (stack.enter_context(end) for end in socket.socketpair())
            self.files = [os.memfd_create(name) for name in ("job", "input", "output", "result")]
            for file in self.files:
                stack.callback(os.close, file)
            self._write(0, job)
            try:
                socket.send_fds(zygote, [b"start"], [*self.files, theirs.fileno()])
            except OSError as error:
                raise _Gone(f"it takes no program: {error}") from error
            theirs.close()
            self.close = stack.pop_all().close

    def run(self, case: str, call: bool, seconds: float, most: int) -> Ran:
        """The result of one case, with at most so many bytes of output or value."""
        for file in self.files[2:]:
            os.ftruncate(file, 0)
        self._write(1, case)
        with contextlib.suppress(OSError):  # it is gone, or does not listen
            self.line.send(b"g", socket.MSG_DONTWAIT)
        if not self.alive and self._hear(time.monotonic() + GRACE) != b"r":
            raise _Gone("its child does not come to life")
        self.alive = True
        start = time.monotonic()
        mark = self._hear(start + seconds)
        took = time.monotonic() - start
        self.over = not isinstance(mark, bytes)
        if mark is None:
            return Ran("timeout", error=f"killed after {seconds:.1f} s", seconds=took)
        if mark == b"o" or os.fstat(self.files[2]).st_size > most:
            return Ran("error", error=f"output over {most} bytes", seconds=took)
        if isinstance(mark, int) and (call or mark != 0):
            how = f"signal {-mark}" if mark < 0 else f"exit status {mark}"
            return Ran("error", error=how, seconds=took)
        good = mark != b"e"
        data = os.pread(self.files[2 if good and not call else 3], most, 0)
        if good and not call:
            return Ran("ok", output=data.decode("utf-8", "replace"), seconds=took)
        if good:
            try:
                return Ran("ok", value=zygote.decode(json.loads(data)), seconds=took)
            except (ValueError, RecursionError) as fault:
                return Ran("error", error=f"no value: {fault}", seconds=took)
        text = data.decode("utf-8", "replace")[:200] or "failed"
        return Ran("error", error="".join(c if c.isprintable() else " " for c in text), seconds=took)

    def stop(self) -> None:
        """End it and all that came of it."""
        self.close()
        try:
            self.zygote.send(b"stop")
            while _answer(self.zygote) != b"stopped":
                pass
        except OSError as error:
            raise _Gone(f"it does not end a program: {error}") from error

    def _hear(self, deadline: float) -> bytes | int | None:
        """What the child says, a byte; its exit status where it ended; None at the deadline."""
        poll = select.poll()
        for end in (self.line, self.zygote):
            poll.register(end, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = [file for file, _ in poll.poll(1000 * left)]
            if self.line.fileno() in ready:
                with contextlib.suppress(ConnectionError):
                    if said := self.line.recv(1):
                        return said
                poll.unregister(self.line)  # it closed its end: what counts is how it ends
            elif ready:
                return int(_answer(self.zygote))
        return None

    def _write(self, file: int, text: str) -> None:
        """Make a text the only content of a file."""
        os.ftruncate(self.files[file], 0)
        data, done = text.encode("utf-8", "surrogateescape"), 0
        while done < len(data):
            done += os.pwrite(self.files[file], memoryview(data)[done:], done)


class Sandbox:
    """A zygote and the socket to it, for one thread of one process.

    It ends with the thread that started it, and is started again when asked. `packages` may be imported
    beside the standard library; their dependencies must be named too. Raises SandboxError if a probe gets
    through, unless `allow_weak`; `level` says what is missing then.
    """

    def __init__(self, packages: Sequence[str] = ("numpy",), allow_weak: bool = False) -> None:
        if sys.platform != "linux":
            raise SandboxError(f"programs can be run on Linux only, not on {sys.platform}: use a container")
        sites = {name: _site(name) for name in packages}
        self.packages = tuple(packages)
        self._setting = {"packages": sites, "roots": _roots(sites), "weak": allow_weak}
        self._process: subprocess.Popen[bytes] | None = None
        self._zygote = socket.socket()
        found = shutil.which("bwrap")
        # PATH may have relative folders, and it is started in /.
        self._wrapper = found and str(Path(found).absolute())
        self._missing: list[str] = []
        try:
            self._start()
        except SandboxError:
            if not self._wrapper:
                raise
            self._wrapper = None  # user namespaces may be forbidden
            self._start()
        gaps = sorted({reason.partition(":")[0] for reason in self._missing})
        if allow_weak or not gaps:
            gaps = self._probe()
        self.level = "strict+bubblewrap" if self._wrapper else "strict"
        if gaps:
            self.level = "weak: " + ", ".join(f"no {name}" for name in gaps)
            if not allow_weak:
                self.close()
                reasons = "; ".join(self._missing) or "a probe got through"
                raise SandboxError(f"no strict isolation, {self.level}: {reasons}. {OVERRIDE}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        program: str,
        cases: Sequence[str] | Sequence[Sequence[Any]],
        fn_name: str | None = None,
        limits: Limits = Limits(),
    ) -> list[Ran]:
        """The program's result for every case: a text on stdin, or the arguments of its function `fn_name`.

        Cases run one after another in one child, each in a fresh namespace; a child that dies is replaced. After
        a timeout the others are not run. Raises ValueError for arguments that are not plain values, SandboxError
        if the zygote fails twice.
        """
        texts = [_case(case, fn_name) for case in cases]
        settings = {name: getattr(limits, name) for name in Limits.__slots__}
        job = json.dumps({"program": program, "function": fn_name, "limits": settings})
        deadline = time.monotonic() + limits.total_seconds
        done: list[Ran] = []
        for last in (False, True):
            try:
                self._run(job, texts, fn_name is not None, limits, deadline, done)
                break
            except _Gone as error:
                self._stop()
                if last:
                    raise SandboxError(f"the zygote failed twice: {error}") from error
            except BaseException:
                self._stop()  # an answer may be under way
                raise
        return done

    def close(self) -> None:
        """End the zygote and what it started."""
        self._stop()

    def _run(
        self, job: str, texts: list[str], call: bool, limits: Limits, deadline: float, done: list[Ran]
    ) -> None:
        """Add the results of the cases that have none yet. Raises _Gone."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        child: _Child | None = None
        try:
            for text in texts[len(done) :]:
                seconds = min(limits.seconds, deadline - time.monotonic())
                if seconds <= 0 or (done and done[-1].status in ("timeout", "not_run")):
                    done.append(Ran("not_run"))
                    continue
                child = child or _Child(self._zygote, job)
                done.append(child.run(text, call, seconds, limits.output_bytes))
                if child.over:
                    child = child.stop()
            if child:
                child.stop()
        finally:
            if child:
                child.close()

    def _start(self) -> None:
        self._stop()
        script = str(Path(zygote.__file__).resolve())
        environment = dict(ENVIRONMENT)
        if "LD_LIBRARY_PATH" in os.environ:  # without it some interpreters do not start
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        parent = 0 if self._wrapper else os.getpid()
        command = [sys.executable, "-s", "-S", "-P", script, str(parent)]
        if self._wrapper:
            options = "--unshare-all --die-with-parent --new-session --ro-bind / / --dev /dev --proc /proc"
            command = [self._wrapper, *options.split(), *command]
        self._zygote, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        try:
            self._zygote.settimeout(60)
            self._zygote.send(json.dumps(self._setting).encode())
            answer = json.loads(_answer(self._zygote))
            self._zygote.settimeout(GRACE)
        except (_Gone, OSError) as error:
            self._stop()
            raise SandboxError(f"the sandbox's process does not start: {error}") from error
        if "failed" in answer:
            self._stop()
            raise SandboxError(f"the sandbox's process does not start: {answer['failed']}")
        self._missing = answer["missing"]

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._zygote.close()

    def _probe(self) -> list[str]:
        """The mechanisms that a program got past, by name."""
        with tempfile.TemporaryDirectory() as folder:
            secret = Path(folder, "secret")
            secret.write_text("a secret")
            secret.chmod(0o600)
            made = Path(folder, "made")
            cases = [f"{kind} {made if kind == 'write' else secret}\n" for kind in PROBES]
            limits = Limits(memory_mb=256, output_bytes=1 << 20)
            ran = dict(zip(PROBES, self.run(PROBE, cases, limits=limits), strict=True))
            harmless = self.run("print(input())", ["yes"])[0]
            passed = {kind for kind, result in ran.items() if result.status != "error"}
            if made.exists():
                passed.add("write")
            if secret.stat().st_mode & 0o777 == 0o600:
                passed.discard("change")
        if harmless.output != "yes\n":
            self.close()
            raise SandboxError(f"a harmless program does not run in the sandbox: {harmless.error}")
        return sorted({PROBES[kind] for kind in passed})


def _answer(zygote: socket.socket) -> bytes:
    """The next message of the zygote. Raises _Gone."""
    try:
        message = zygote.recv(10_000)
    except TimeoutError:
        raise _Gone("it fell silent") from None
    except ConnectionError as error:
        raise _Gone("it ended") from error
    if not message:
        raise _Gone("it ended")
    return message


def _case(case: Any, fn_name: str | None) -> str:
    if fn_name is None:
        if not isinstance(case, str):
            raise ValueError(f"a case of a program that reads stdin is a text, not {type(case).__name__}")
        return case
    return json.dumps(zygote.encode(list(case), [1 << 30]))


def _site(name: str) -> str:
    """The folder in which a package lies. Raises SandboxError."""
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or found.origin is None:
        raise SandboxError(f"packages: {name!r} is not installed here; name top-level packages")
    path = Path(found.origin)
    return str(path.parent.parent if found.submodule_search_locations else path.parent)


def _roots(sites: dict[str, str]) -> list[str]:
    """The files and folders that programs may read: the standard library and the packages."""
    roots: set[Path] = set()
    for folder in {Path(sysconfig.get_path(name, vars=_BASE)) for name in ("stdlib", "platstdlib")}:
        if folder.is_dir():
            roots |= {
                entry for entry in folder.iterdir() if entry.name not in ("site-packages", "dist-packages")
            }
    for name, site in sites.items():
        for pattern in (name, f"{name}.py", f"{name}.*.so", f"{name}.libs", f"{name}-*.dist-info"):
            roots |= set(Path(site).glob(pattern))
    return sorted(str(path) for path in roots if path.exists())


_BASE = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
