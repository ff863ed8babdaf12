"""The process in which model-written programs run; `sandbox.py` starts it and has it fork.

It is a script: started by exec with an empty environment, importing nothing of openprime. It loads the
interpreter and the allowed packages once, then forks a child for every program. The zygote never holds a
text of any program, input or output, for what it has held can be found in the memory of each later child:
it passes descriptors on, unread, and the child alone reads them. An expected output is in neither. What a
program forges, patches or breaks in its child is its own result: text, rebuilt as plain values in the
trusted process, which alone compares.

A child may read the standard library and the allowed packages, read and write its three memory files and
/dev/null, use memory and threads. No other file, process, signal, socket, program or privilege.
"""

import atexit
import builtins
import contextlib
import ctypes
import errno
import fcntl
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
"""A child's descriptors beside 0, 1 and 2: three memory files, the line to the trusted process, /dev/null."""
STACK = 256 << 20
"""Stack of the main thread in bytes, for deep recursion through C."""
THREADS = 512
"""Threads of a child; for the next one it gets EAGAIN. RLIMIT_NPROC is nothing to root, and counts a whole user."""
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
    "0-15 17-21 23-26 28 32-39 60 63 74 75 77-79 89 96-98 100 102 104 107 108 110 111 115 121 124 127 128 130 131"
    " 186 201 204 217-219 221 228-231 257 262 267 269-271 273 292 318 332 334 436 439"
)
"""System calls by number: files and memory (Landlock decides on files), clocks, threads, own signal handlers.

No fork, exec, kill, socket, pipe, prctl, namespace, mount, chmod, tracing, keys, io_uring, bpf, sysinfo.
"""
ALLOW, NOTIFY, REFUSE, KILL = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x80000000
THREAD, NEW = 0x00010000, 0x7E020000 | 0x80 | 0x2000  # clone flags: a thread; namespaces and tracing
PRIVATE = 128  # a futex of one process
EQUAL, AT_LEAST, BITS = 0x15, 0x35, 0x45
low = [16 + 8 * i for i in range(6)]
"""Where a system call's arguments are, their lower halves; its number is at 0, the architecture at 4."""


def load(offset: int) -> bytes:
    """A step of a filter in classic BPF: what the next ones test."""
    return struct.pack("HBBI", 0x20, 0, 0, offset)


def give(value: int) -> bytes:
    """The end of a filter, with its answer."""
    return struct.pack("HBBI", 0x06, 0, 0, value)


def unless(value: int, body: bytes, test: int = EQUAL) -> bytes:
    """Skip the body unless it is the value."""
    return struct.pack("HBBI", test, 0, len(body) // 8, value) + body


def thread_filter() -> bytes:
    """Asks the zygote before each new thread. Everything else is allowed here."""
    return load(0) + unless(56, load(low[0]) + unless(THREAD, give(NOTIFY), BITS)) + give(ALLOW)


def filter_program() -> bytes:
    """A child's filter; everything not named gets EPERM."""
    refuse = give(REFUSE | errno.EPERM)
    thread = load(low[0]) + struct.pack("HBBI", 0x54, 0, 0, THREAD | NEW)
    thread += unless(THREAD, give(ALLOW)) + refuse
    # Programs raise their stack limit before they recurse: they are told yes, and nothing changes.
    limits = load(low[2]) + unless(0, load(low[2] + 4) + unless(0, give(ALLOW))) + give(REFUSE)
    flags = load(low[1]) + b"".join(unless(n, give(ALLOW)) for n in (0, 1, 2, 3, 4, 1030)) + refuse
    # On pages that processes share, such as the C library's, one could wait for another's signal. The C library
    # itself only waits so for a thread that ends, and looks again.
    futex = load(low[1]) + unless(PRIVATE, give(ALLOW), BITS) + give(REFUSE | errno.EAGAIN)
    code = load(4) + struct.pack("HBBI", 0x15, 1, 0, ARCH) + give(KILL)
    code += load(0) + unless(X32, refuse, AT_LEAST)
    code += unless(56, thread) + unless(435, give(REFUSE | errno.ENOSYS))  # clone, clone3
    code += unless(302, limits) + unless(160, give(REFUSE))  # prlimit64, setrlimit
    code += unless(72, flags) + unless(16, give(REFUSE | errno.ENOTTY))  # fcntl, ioctl
    code += unless(202, futex)
    for part in ALLOWED.split():
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            code += unless(number, give(ALLOW))
    return code + refuse


class Jail:
    """Landlock's ruleset and the filters: built once, entered by every child."""

    def __init__(self, roots: list[str]) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.ruleset = -1
        with contextlib.suppress(OSError):  # `enter` says that it is missing
            self.ruleset = self._ruleset(roots)
        self._kept: list[Any] = []
        self.filter = self._filter(filter_program())
        self.listener = -1
        """Where the children's new threads are asked for."""

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
        with contextlib.suppress(OSError):  # `enter` says that it is missing
            self.listener = self.call(317, 1, 8, self._filter(thread_filter()))  # seccomp: NEW_LISTENER

    def answer(self, pid: int) -> None:
        """Allow a child one more thread, or not. Threads that ask at the same time may double their limit."""
        notice = bytearray(80)
        with contextlib.suppress(OSError):  # it no longer waits for an answer
            fcntl.ioctl(self.listener, 0xC0502100, notice)
            try:
                allowed = os.stat(f"/proc/{pid}/task").st_nlink - 2 < THREADS  # noqa: PTH116
            except OSError:
                allowed = False
            error, flags = (0, 1) if allowed else (-errno.EAGAIN, 0)
            fcntl.ioctl(self.listener, 0xC0182101, struct.pack("8sqiI", bytes(notice[:8]), 0, error, flags))

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
        if self.listener < 0:
            missing.append("seccomp: nobody counts threads")
        return missing

    def _filter(self, code: bytes) -> bytes:
        self._kept.append(ctypes.create_string_buffer(code, len(code)))
        return struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(self._kept[-1]))

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


def live(jail: Jail, weak: bool, zygote: int, given: list[int]) -> None:
    """A child's life: read the program, shut the door, then one case for every byte on the line.

    `given`: the job as JSON, the three memory files, the line.
    """
    jail.control(1, signal.SIGKILL)  # die with the zygote
    if os.getppid() != zygote:
        os._exit(70)
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    job = json.loads(os.pread(given[0], os.fstat(given[0]).st_size, 0))
    for source, target in zip([*given[1:], os.open("/dev/null", os.O_RDWR)], range(INPUT, FREE), strict=True):
        os.dup2(source, target)
    limits = job["limits"]
    cap = limits["output_bytes"]
    memory = size() + (limits["memory_mb"] << 20)
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
    if jail.enter() and not weak:
        os._exit(70)
    os.write(CONTROL, b"r")
    gc.enable()
    name, function = "__main__" if job["function"] is None else "solution", job["function"]
    try:
        code = compile(job["program"], f"{name}.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        code = error
    present = builtins.__dict__
    names = dict(present)
    while os.read(CONTROL, 1):
        present.update(names)  # as they were before any case
        for added in present.keys() - names.keys():
            del present[added]
        error, text = attempt(code, name, function, cap)
        error = error[:200]
        data = (error or text).encode("utf-8", "replace")
        os.pwrite(RESULT, data if len(data) <= cap else b"", 0)
        os.write(CONTROL, b"e" if error else b"k" if len(data) <= cap else b"o")
    os._exit(0)


def size() -> int:
    """The address space of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


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
        sys.set_int_max_str_digits(0)  # older judges know no limit, LiveCodeBench's raises it
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
    for name in ("stdin", "stdout", "stderr"):  # one that a program opened closes its descriptor as it goes
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)
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


def stop(pid: int) -> None:
    """Kill a child and all that came of it, where anything can have, and reap them."""
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with contextlib.suppress(ChildProcessError):  # under the filter there are no others
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for orphan in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    os.kill(int(orphan), signal.SIGKILL)
                time.sleep(0.001)


def ended(pid: int) -> int | None:
    """The exit status of a child that ended and is still to be reaped, or minus its signal; else None."""
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return info and (info.si_status if info.si_code == os.CLD_EXITED else -info.si_status)


def serve(asked: socket.socket, jail: Jail, weak: bool) -> None:
    """Fork a child for every set of descriptors, say how it ended, and kill it when told to.

    At most one child lives. Messages are `start` with its descriptors and `stop`; answers are its exit status,
    if it ends by itself, and `stopped`.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    for file in (asked.fileno(), reader, *([jail.listener] if jail.listener >= 0 else [])):
        poll.register(file, select.POLLIN)
    zygote, child, told = os.getpid(), 0, True
    while True:
        ready = {file for file, _ in poll.poll()}
        if reader in ready:
            os.read(reader, 1000)
        if jail.listener in ready:
            jail.answer(child)
        if child and not told and (status := ended(child)) is not None:
            asked.send(b"%d" % status)
            told = True
        if asked.fileno() not in ready:
            continue
        message, given, _, _ = socket.recv_fds(asked, 100, 8)
        if not message:
            return
        if child:
            stop(child)
            child = 0
        if message == b"stop":
            asked.send(b"stopped")
            continue
        child, told = os.fork(), False
        if child == 0:
            try:
                live(jail, weak, zygote, given)
            finally:
                os._exit(70)
        for file in given:
            os.close(file)


class Finder:
    """Finds the allowed packages, each in its own folder; everything else is the standard library's."""

    def __init__(self, packages: dict[str, str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A top-level package's spec; their submodules are found as usual."""
        if path is None and name in self.packages:
            return importlib.machinery.PathFinder.find_spec(name, [self.packages[name]], target)
        return None


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
    asked = socket.socket(fileno=os.dup(0))
    for number in range(3):
        os.dup2(null, number)
    if parent:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            return
    setting = json.loads(asked.recv(1 << 20) or b"{}")
    try:
        jail = prepare(setting)
    except (ImportError, OSError) as error:
        asked.send(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        return
    missing = try_out(jail)
    gc.collect()
    gc.disable()
    gc.freeze()
    asked.send(json.dumps({"missing": missing}).encode())
    serve(asked, jail, setting["weak"])


if __name__ == "__main__":
    main()
