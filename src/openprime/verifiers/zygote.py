"""The process in which model-written programs run; `sandbox.py` starts it and talks to it over two pipes.

It is a script: started by exec with an empty environment, importing nothing of openprime. It loads the
interpreter and the allowed packages once, then forks a child for every program. The zygote itself runs no
program and is never told an expected output; a child knows the program and the inputs up to now. What a
program forges, patches or breaks in its child is its own result: that is text, checked for form here and
rebuilt as plain values in the trusted process, which alone compares.

A child may read the standard library and the allowed packages, read and write its three memory files and
/dev/null, use memory and threads. No other file, process, signal, socket, program or privilege.
"""

import atexit
import builtins
import contextlib
import ctypes
import errno
import gc
import importlib
import importlib.machinery
import json
import os
import platform
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

INPUT, OUTPUT, RESULT, CONTROL, NULL, FREE = 3, 4, 5, 6, 7, 8
"""A child's descriptors beside 0, 1 and 2: three memory files, the line to the zygote, /dev/null."""
STACK = 256 << 20
"""Stack of the main thread in bytes, for deep recursion through C."""
THREADS = 512
"""A child with more threads is killed. They count for the machine, and RLIMIT_NPROC is nothing to root."""
DEEPEST = 100
"""Nesting of a value that may travel."""
HASHED = 20_000
"""Members of sets and dictionaries in a value that may travel: keys made to collide stay affordable."""

STARS = "re copy random operator typing string math statistics collections heapq bisect itertools functools"
MODULES = f"{STARS} json sys os io time datetime decimal fractions cmath array queue enum dataclasses abc"
PRELOAD = f"{MODULES} threading numbers types textwrap contextlib pprint hashlib zlib bz2 lzma calendar"
"""Loaded once. Those that need system libraries must be here: a child cannot read these."""


# Values


TAGS: dict[Any, str] = {list: "", tuple: "t", set: "s", frozenset: "f"}


class Unfit(ValueError):
    """A value that cannot travel."""


def encode(value: Any, room: list[int], depth: int = 0) -> Any:
    """The value as JSON with tagged types, made with the base types' own methods.

    Subclasses become their base type, so a lying `__eq__`, `__int__` or `__iter__` stays behind.
    `room` holds how many members and characters may follow. Raises Unfit.
    """
    room[0] -= 1
    if depth > DEEPEST:
        raise Unfit(f"value nested deeper than {DEEPEST}")
    kind = type(value)
    plain: Any = value
    if value is None or kind is bool:
        pass
    elif issubclass(kind, int):
        plain = int.__int__(value)
        room[0] -= plain.bit_length() // 4
        if plain.bit_length() > 53:
            plain = {"i": hex(plain) if room[0] >= 0 else ""}
    elif issubclass(kind, float):
        plain = float.__float__(value)
    elif issubclass(kind, complex):
        plain = complex.__complex__(value)
        plain = {"c": [plain.real, plain.imag]}
    elif issubclass(kind, str):
        plain = str.__str__(value)
        room[0] -= len(plain)
    elif issubclass(kind, bytes):
        room[0] -= bytes.__len__(value)
        plain = {"b": bytes.hex(value)}
    elif issubclass(kind, dict):
        plain = {"d": [[encode(x, room, depth + 1) for x in pair] for pair in dict.items(value)]}
    elif base := next((base for base in TAGS if issubclass(kind, base)), None):
        plain = [encode(x, room, depth + 1) for x in base.__iter__(value)]
        plain = {TAGS[base]: plain} if TAGS[base] else plain
    elif (numpy := sys.modules.get("numpy")) and issubclass(kind, numpy.ndarray):
        plain = encode(numpy.ndarray.tolist(value), room, depth + 1)
    elif numpy and issubclass(kind, numpy.generic) and type(numpy.generic.item(value)) is not kind:
        plain = encode(numpy.generic.item(value), room, depth + 1)
    else:
        raise Unfit(f"value of type {kind.__name__} does not compare")
    if room[0] < 0:
        raise Unfit("value too large")
    return plain


def decode(tree: Any, room: list[int] | None = None, depth: int = 0) -> Any:
    """The plain value of what `encode` made, or of a forgery. `room`: members of sets and dictionaries.

    Raises Unfit.
    """
    room = [HASHED] if room is None else room
    if depth > DEEPEST + 1:
        raise Unfit("nested too deeply")
    if isinstance(tree, list):
        return [decode(x, room, depth + 1) for x in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) != 1:
        raise Unfit("not a value")
    ((tag, body),) = tree.items()
    try:
        if tag == "i":
            return int(body, 16)
        if tag == "b":
            return bytes.fromhex(body)
        if tag == "c":
            return complex(*body)
        if tag in ("s", "f", "d"):
            room[0] -= len(body)
        if room[0] < 0:
            raise Unfit(f"more than {HASHED} members of sets and dictionaries")
        if tag == "d":
            return dict([decode(x, room, depth + 1) for x in pair] for pair in body)
        return {"t": tuple, "s": set, "f": frozenset}[tag]([decode(x, room, depth + 1) for x in body])
    except Unfit:
        raise
    except (TypeError, KeyError, ValueError, OverflowError):
        raise Unfit("not a value") from None


# A child's rights

X32, ARCH = 0x40000000, 0xC000003E  # x86-64
ALLOWED = (
    "0-15 17-21 23-26 28 32-39 60 63 74 75 77-79 89 96-100 102 104 107 108 110 111 115 121 124 127 128 130 131"
    " 186 201 202 204 217-219 221 228-231 257 262 267 269-271 273 292 318 332 334 436 439"
)
"""System calls by number: files and memory (Landlock decides on files), clocks, threads, own signal handlers.

No fork, exec, kill, socket, pipe, prctl, namespace, mount, chmod, tracing, keys, io_uring, bpf.
"""
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
THREAD, NEW = 0x00010000, 0x7E020000 | 0x80 | 0x2000  # clone flags: a thread; namespaces and tracing


def filter_program() -> bytes:
    """The system call filter as classic BPF; everything not named gets EPERM."""

    def load(offset: int) -> bytes:
        return struct.pack("HBBI", 0x20, 0, 0, offset)

    def give(value: int) -> bytes:
        return struct.pack("HBBI", 0x06, 0, 0, value)

    def unless(value: int, body: bytes, test: int = 0x15) -> bytes:  # skip the body unless it is the value
        return struct.pack("HBBI", test, 0, len(body) // 8, value) + body

    low = [16 + 8 * i for i in range(6)]  # the arguments' lower halves
    refuse = give(REFUSE | errno.EPERM)
    flags = load(low[0]) + struct.pack("HBBI", 0x54, 0, 0, THREAD | NEW)
    thread = flags + unless(THREAD, give(ALLOW)) + refuse
    # Programs raise their stack limit before they recurse: they are told yes, and nothing changes.
    limits = load(low[2]) + unless(0, load(low[2] + 4) + unless(0, give(ALLOW))) + give(REFUSE)
    fcntl = load(low[1]) + b"".join(unless(n, give(ALLOW)) for n in (0, 1, 2, 3, 4, 1030)) + refuse
    code = load(4) + struct.pack("HBBI", 0x15, 1, 0, ARCH) + give(KILL)
    code += load(0) + unless(X32, refuse, test=0x35)
    code += unless(56, thread) + unless(435, give(REFUSE | errno.ENOSYS))  # clone, clone3
    code += unless(302, limits) + unless(160, give(REFUSE))  # prlimit64, setrlimit
    code += unless(72, fcntl) + unless(16, give(REFUSE | errno.ENOTTY))  # fcntl, ioctl
    for part in ALLOWED.split():
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            code += unless(number, give(ALLOW))
    return code + refuse


class Jail:
    """Landlock's ruleset and the filter: built once, entered by every child."""

    def __init__(self, roots: list[str]) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.ruleset = -1
        with contextlib.suppress(OSError):  # `enter` says that it is missing
            self.ruleset = self._ruleset(roots)
        code = filter_program()
        self._code = ctypes.create_string_buffer(code, len(code))
        self.filter = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(self._code))

    def call(self, number: int, *arguments: Any) -> int:
        """One system call. Raises OSError."""
        longs = [ctypes.c_long(x) if isinstance(x, int) else x for x in arguments]
        result = self.libc.syscall(ctypes.c_long(number), *longs)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def control(self, option: int, *arguments: Any) -> None:
        """prctl. Raises OSError."""
        longs = [ctypes.c_ulong(x) if isinstance(x, int) else x for x in (*arguments, 0, 0, 0, 0)[:4]]
        if self.libc.prctl(option, *longs) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def renounce(self) -> None:
        """For the zygote: no new privileges, no tracing by others, no capabilities, adopts orphans."""
        for option, argument in ((38, 1), (4, 0), (36, 1)):  # NO_NEW_PRIVS, DUMPABLE, CHILD_SUBREAPER
            self.control(option, argument)
        self.call(126, struct.pack("II", 0x20080522, 0), bytes(24))  # capset: none, version 3

    def enter(self) -> list[str]:
        """Landlock, then the filter, for the calling child. What could not be had."""
        missing = []
        try:
            self.call(446, self.ruleset, 0)
        except OSError as error:
            missing.append(f"landlock: {error.strerror}")
        os.closerange(FREE, 1 << 20)
        try:
            if platform.machine() != "x86_64":
                raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
            self.control(22, 2, self.filter)  # SECCOMP, MODE_FILTER
        except OSError as error:
            missing.append(f"seccomp: {error.strerror}")
        return missing

    def _ruleset(self, roots: list[str]) -> int:
        version = self.call(444, 0, 0, 1)
        rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
        network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
        size = 8 if version < 4 else 16 if version < 6 else 24
        attributes = struct.pack("QQQ", rights, network, scopes)[:size]
        ruleset = self.call(444, attributes, size, 0)
        read, write, listing = 1 << 2, 1 << 1, 1 << 3
        rules = [(path, read | (listing if Path(path).is_dir() else 0)) for path in roots]
        for path, access in [*rules, ("/dev/null", read | write), ("/dev/urandom", read)]:
            place = os.open(path, os.O_PATH)
            self.call(445, ruleset, 1, struct.pack("=Qi", access, place), 0)
            os.close(place)
        return ruleset


# In the child


def live(job: dict[str, Any], jail: Jail, setting: dict[str, Any], zygote: int, given: list[int]) -> None:
    """A child's life: shut the door, then one case for every byte from the zygote."""
    jail.control(1, signal.SIGKILL)  # die with the zygote
    if os.getppid() != zygote:
        os._exit(70)
    os.setsid()
    for source, target in zip([*given, os.open("/dev/null", os.O_RDWR)], range(INPUT, FREE), strict=True):
        os.dup2(source, target)
    limits = job["limits"]
    cap = limits["output_bytes"]
    memory = setting["base"] + (limits["memory_mb"] << 20)
    seconds = int(limits["total_seconds"]) + 2
    for name, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, cap + 1),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
    ):
        hard = resource.getrlimit(name)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (limit, limit))
    if jail.enter() and not setting["weak"]:
        os._exit(70)
    os.write(CONTROL, b"r")
    gc.enable()
    name, function = "__main__" if job["function"] is None else "solution", job["function"]
    try:
        code = compile(job["program"], f"{name}.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        code = error
    while os.read(CONTROL, 1):
        error, text = attempt(code, name, function, cap)
        error = error[:200]
        data = (error or text).encode("utf-8", "replace")
        os.pwrite(RESULT, data if len(data) <= cap else b"", 0)
        os.write(CONTROL, b"e" if error else b"k" if len(data) <= cap else b"o")
    os._exit(0)


def attempt(code: Any, name: str, function: str | None, cap: int) -> tuple[str, str]:
    """(error, "") or ("", the value's JSON) of one case, in a fresh namespace with fresh streams."""
    module = types.ModuleType(name)
    space = vars(module)
    try:
        arguments = open_streams(function is not None)
        for generator in (random, sys.modules.get("numpy.random")):
            if generator is not None:
                generator.seed(0)
        sys.modules[name] = module
        sys.setrecursionlimit(1000 if function is None else 50_000)
        if isinstance(code, Exception):
            return describe(code), ""
        space["__builtins__"] = builtins if function is None else PRELUDE
        try:
            exec(code, space)
        except SystemExit as stop:
            if function is not None or stop.code not in (None, 0):
                raise
        if function is None:
            finish()
            space.clear()  # files that the program left open are written
            return "", ""
        return "", json.dumps(encode(find(space, function)(*arguments), [cap]))
    except BaseException as error:  # noqa: BLE001  whatever the program raises is its result
        return describe(error), ""


def open_streams(call: bool) -> Any:
    """New descriptors 0, 1, 2 and sys.stdin, stdout, stderr. A call case's arguments."""
    os.lseek(INPUT, 0, os.SEEK_SET)
    os.lseek(OUTPUT, 0, os.SEEK_SET)
    arguments = None
    if call:
        arguments = decode(json.loads(os.pread(INPUT, os.fstat(INPUT).st_size, 0)), [1 << 30])
    for number, target in enumerate((NULL if call else INPUT, OUTPUT, NULL)):
        os.dup2(target, number)
        mode, name = ("r", "stdin") if number == 0 else ("w", "stdout" if number == 1 else "stderr")
        stream = open(number, mode, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["main.py"]
    return arguments


def find(space: dict[str, Any], function: str) -> Any:
    """The program's function, or the method of its class Solution. Raises Unfit."""
    if function.isidentifier():
        if function in space:
            return space[function]
        if "Solution" in space and function in dir(space["Solution"]):
            return getattr(space["Solution"](), function)
    raise Unfit(f"no function {function}")


def finish() -> None:
    """End a program as an interpreter does: wait for threads, call exit functions, flush."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def describe(error: BaseException) -> str:
    """The exception on one short line."""
    if type(error) is Unfit:
        return str(error)
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001  it is the program's own __str__
        return "exception"


PRELUDE: dict[str, Any] = {}
"""Names that call cases find without importing them, behind their own."""


def fill_prelude() -> None:
    """exit and quit, which `site` would give, and the names of common modules, as sites that ask for a function do."""
    builtins.exit = builtins.quit = sys.exit  # pyright: ignore[reportAttributeAccessIssue]
    for name in STARS.split():
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [x for x in vars(module) if not x.startswith("_")]
        PRELUDE.update((x, getattr(module, x)) for x in public)
    PRELUDE.update((name, sys.modules[name]) for name in MODULES.split())
    PRELUDE.update(vars(builtins))


# In the zygote


class Child:
    """A forked child, its memory files and the line to it."""

    def __init__(self, job: dict[str, Any], jail: Jail, setting: dict[str, Any]) -> None:
        self.cap = job["limits"]["output_bytes"]
        self.text = job["function"] is None
        self.ready = False
        self.line, theirs = socket.socketpair()
        self.files = [os.memfd_create(name) for name in ("input", "output", "result")]
        zygote = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                live(job, jail, setting, zygote, [*self.files, theirs.fileno()])
            finally:
                os._exit(70)
        theirs.close()

    def run(self, case: str, seconds: float) -> tuple[str, str, bytes]:
        """Status, error and output (or the value's JSON) of one case."""
        for file in self.files:
            os.ftruncate(file, 0)
        os.pwrite(self.files[0], case.encode("utf-8", "surrogateescape"), 0)
        listens = self._wake()
        deadline = time.monotonic() + seconds
        mark, code = self._answer(deadline) if listens else b"", 0
        if mark == b"":  # it ended, or closed its descriptors
            while not self.ended() and time.monotonic() < deadline:
                time.sleep(0.001)
            mark = b"t"
            if self.ended():
                code = self._code()
                mark = b"k" if code == 0 and self.text else b"x"
        if mark == b"t":
            return "timeout", f"killed after {seconds:.1f} s", b""
        if mark == b"m":
            return "stopped", f"more than {THREADS} threads", b""
        if mark == b"o" or os.fstat(self.files[1]).st_size > self.cap:
            return "error", f"output over {self.cap} bytes", b""
        if mark == b"x":
            return "error", f"signal {-code}" if code < 0 else f"exit status {code}", b""
        if mark == b"k" and self.text:
            return "ok", "", self._read(1)
        text = self._read(2)
        if mark == b"k":
            try:
                return "ok", "", json.dumps(json.loads(text)).encode()  # so its nesting is bounded
            except (ValueError, RecursionError):
                text = b"not a value"
        return "error", text.decode("utf-8", "replace")[:200] or "failed", b""

    def ended(self) -> bool:
        """It is dead, and still to be reaped."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def stop(self) -> None:
        """Kill the child and all that came of it, where anything can have."""
        self.line.close()
        for file in self.files:
            os.close(file)
        for kill, target in ((os.kill, self.pid), (os.killpg, self.pid)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(target, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        with contextlib.suppress(ChildProcessError):  # under the filter there are no others
            while True:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    for orphan in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                        os.kill(int(orphan), signal.SIGKILL)
                    time.sleep(0.001)

    def _wake(self) -> bool:
        """Start the case; the clock runs from here. A child that does not come to life is the zygote's end."""
        try:
            self.line.send(b"g", socket.MSG_DONTWAIT)
        except (ConnectionError, BlockingIOError):  # it is gone, or does not listen
            return False
        if not self.ready:
            spoke, _, _ = select.select([self.line], [], [], 10)
            self.ready = bool(spoke) and self.line.recv(1) == b"r"
            assert self.ready
        return True

    def _answer(self, deadline: float) -> bytes:
        """The child's byte; t for timeout, m for too many threads, nothing if the line is down."""
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.line], [], [], min(left, 0.05))[0]:
                try:
                    return self.line.recv(1)
                except ConnectionError:
                    return b""
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{self.pid}/task").st_nlink - 2 > THREADS:  # noqa: PTH116
                    return b"m"
        return b"t"

    def _code(self) -> int:
        """The exit status of a child that ended, or minus its signal."""
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert info is not None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def _read(self, file: int) -> bytes:
        return os.pread(self.files[file], self.cap, 0)


class Finder:
    """Finds the allowed packages, each in its own folder; everything else is the standard library's."""

    def __init__(self, packages: dict[str, str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A top-level package's spec; their submodules are found as usual."""
        if path is None and name in self.packages:
            return importlib.machinery.PathFinder.find_spec(name, [self.packages[name]], target)
        return None


def receive(pipe: int) -> bytes | None:
    """One message (length, then bytes), or None at the end."""
    data, want = bytearray(), 8
    while len(data) < want:
        part = os.read(pipe, min(want - len(data), 1 << 20))
        if not part:
            return None
        data += part
        if want == 8 and len(data) == 8:
            want += struct.unpack("Q", data)[0]
    return bytes(data[8:])


def send(pipe: int, data: bytes) -> None:
    """One message."""
    view = memoryview(struct.pack("Q", len(data)) + data)
    while view:
        view = view[os.write(pipe, view) :]


def prepare(setting: dict[str, Any]) -> Jail:
    """Load everything, then give up what is not needed. Raises ImportError and OSError."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # rather a program than the training
    for name in PRELOAD.split():
        with contextlib.suppress(ImportError):  # an interpreter may be built without bz2 and the like
            importlib.import_module(name)
    sys.meta_path.append(Finder(setting["packages"]))
    for name in setting["packages"]:
        importlib.import_module(name)
    if "numpy" in setting["packages"]:
        importlib.import_module("numpy.random")
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")  # the C library wants it when a thread ends early
    fill_prelude()
    threading.stack_size(8 << 20)
    atexit._clear()
    setting["base"] = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    jail = Jail(setting["roots"])
    jail.renounce()
    return jail


def try_out(jail: Jail) -> list[str]:
    """Start a child and list what is missing of its jail."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, CONTROL)
        os.write(CONTROL, "; ".join(jail.enter()).encode() or b" ")
        os._exit(0)
    os.close(writer)
    missing = os.read(reader, 1000).decode()
    os.close(reader)
    os.waitpid(pid, 0)
    return [part for part in missing.split("; ") if part.strip()]


def main() -> None:
    """Serve one trusted process until its pipe closes."""
    parent = int(sys.argv[1])  # 0: bubblewrap sees to it
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    want = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    if soft != resource.RLIM_INFINITY and soft < want:  # the room for it is laid out at exec
        resource.setrlimit(resource.RLIMIT_STACK, (want, hard))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    os.environ.clear()
    os.closerange(3, 1 << 20)
    null = os.open(os.devnull, os.O_RDWR)
    while os.dup(null) < 15:
        pass  # the numbers below are for a child's own descriptors
    requests, replies = os.dup(0), os.dup(1)
    for number in range(3):
        os.dup2(null, number)
    if parent:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            return
    setting = json.loads(receive(requests) or b"{}")
    try:
        jail = prepare(setting)
    except (ImportError, OSError) as error:
        send(replies, json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        return
    send(replies, json.dumps({"missing": try_out(jail)}).encode())
    gc.collect()
    gc.disable()
    gc.freeze()
    child: Child | None = None
    job: dict[str, Any] = {}
    while (message := receive(requests)) is not None:
        request = json.loads(message)
        if "program" in request:
            job = request
        elif "case" in request:
            child = child or Child(job, jail, setting)
            start = time.monotonic()
            status, error, data = child.run(request["case"], request["seconds"])
            seconds = time.monotonic() - start
            if status in ("timeout", "stopped") or child.ended():
                child.stop()
                child = None
            status = "error" if status == "stopped" else status
            send(replies, json.dumps({"status": status, "error": error, "seconds": seconds}).encode())
            send(replies, data)
        else:
            if child is not None:
                child.stop()
                child = None
            send(replies, b"{}")


if __name__ == "__main__":
    main()
