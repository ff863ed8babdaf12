# ruff: noqa: E501
"""The sandbox under attack, and how ordinary programs fare in it.

Every attack would leave something to see: a secret in what came back, a changed folder, a connection, a
process. The tests look for that harm, whatever the program's status.
"""

import ast
import collections
import contextlib
import enum
import importlib.util
import json
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from openprime.verifiers import sandbox as module
from openprime.verifiers import zygote
from openprime.verifiers.sandbox import Limits, Ran, Sandbox, SandboxError
from support.memory import MARK, SCAN

if sys.platform != "linux" or platform.machine() != "x86_64":
    pytest.skip(
        "the sandbox is strict on Linux x86-64 only: NOTHING here was tested", allow_module_level=True
    )

TOKEN = "token-5f1c9e"
DEFAULT = Limits()
SHORT = Limits(seconds=0.4, total_seconds=2.0)
SMALL = Limits(seconds=8.0, memory_mb=256, output_bytes=1 << 16)


class Target:
    """What an attack could harm: a folder with a secret, listening sockets, an open descriptor."""

    def __init__(self, folder):
        self.folder = folder
        self.secret = folder / "secret"
        self.secret.write_text(TOKEN)
        self.secret.chmod(0o600)
        (folder / "link").symlink_to(self.secret)
        self.descriptor = os.open(self.secret, os.O_RDWR)
        os.set_inheritable(self.descriptor, True)
        self.sockets = {}
        for name, family, kind, address in (
            ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0openprime-{os.getpid()}"),
        ):
            sock = socket.socket(family, kind)
            sock.bind(address)
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                sock.listen()
            self.sockets[name] = sock
        self.before = self.state()

    def fill(self, program):
        """The program with this target's names, and with LIBC."""
        names = {
            "SECRET": str(self.secret),
            "FOLDER": str(self.folder),
            "TESTS": os.getpid(),
            "DESCRIPTOR": self.descriptor,
            "TCP": self.sockets["tcp"].getsockname(),
            "UDP": self.sockets["udp"].getsockname(),
            "ABSTRACT": self.sockets["abstract"].getsockname(),
        }
        return "".join(f"{k} = {v!r}\n" for k, v in names.items()) + LIBC + program

    def state(self):
        def stat(path):
            info = path.lstat()
            return info.st_mode, info.st_uid, info.st_size, info.st_mtime_ns, info.st_nlink

        return {path.name: stat(path) for path in [self.folder, *self.folder.iterdir()]}

    def check(self):
        """Nothing was written and nobody called."""
        assert self.state() == self.before
        assert self.secret.read_text() == TOKEN
        for name, sock in self.sockets.items():
            with pytest.raises(BlockingIOError):
                sock.recv(1) if name == "udp" else sock.accept()

    def close(self):
        os.close(self.descriptor)
        for sock in self.sockets.values():
            sock.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    made = Target(tmp_path_factory.mktemp("target"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def box(target):
    """A sandbox without bubblewrap, started while the target's descriptor is open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.shutil, "which", lambda name: None)
        made = Sandbox()
    with made:
        assert made.level == "strict"
        yield made


@pytest.fixture(scope="module", params=["plain", "bubblewrap"])
def boxes(request, box):
    """Without and with bubblewrap."""
    if request.param == "plain":
        yield box
        return
    with Sandbox() as made:
        if made.level != "strict+bubblewrap":
            pytest.skip("bubblewrap is missing or does not work here: the sandbox under it was NOT tested")
        yield made


def family(pid):
    """A process's descendants: {pid: state}."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                parents[int(entry.name)] = (int(parent), state)
    found, grown = {pid: ""}, True
    while grown:
        more = {p: state for p, (parent, state) in parents.items() if parent in found and p not in found}
        found |= more
        grown = bool(more)
    del found[pid]
    return found


@contextlib.contextmanager
def nothing_left():
    """No descriptor, thread or process more than before, here or in the zygote, and no zombie."""

    def counts():
        pids, descriptors = [os.getpid(), *family(os.getpid())], 0
        for pid in pids:
            with contextlib.suppress(OSError):
                descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return descriptors, threading.active_count(), len(pids)

    before = counts()
    yield
    assert all(now <= then for now, then in zip(counts(), before, strict=True)), (counts(), before)
    assert "Z" not in family(os.getpid()).values()


def one(box, program, case="", **keywords):
    (ran,) = box.run(program, [case], **keywords)
    return ran


def call(box, program, *arguments, name="f", limits=DEFAULT):
    (ran,) = box.run(program, [arguments], name, limits)
    return ran


# Attacks: programs that print the token, change the folder, or print "harm". None may.

LIBC = """
import ctypes, os, sys, signal, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def raw(*arguments):
    return libc.syscall(*[ctypes.c_long(x) if isinstance(x, int) else x for x in arguments])
def attempt(function):
    try:
        return function()
    except Exception as error:
        print(type(error).__name__)
"""

LEAKS = {
    "open": "print(open(SECRET).read())",
    "link": "print(open(FOLDER + '/link').read())",
    "proc root": "print(open('/proc/self/root' + SECRET).read())",
    "dot dot": "import os\nprint(open(os.path.dirname(os.__file__) + '/..' * 20 + SECRET).read())",
    "folder descriptor": """
top = os.open("/", os.O_PATH)
print(os.read(os.open(SECRET[1:], os.O_RDONLY, dir_fd=top), 100))
""",
    "ctypes": """
buffer = ctypes.create_string_buffer(100)
libc.read(libc.open(SECRET.encode(), 0), buffer, 99)
print(buffer.value)
""",
    "system call": """
buffer = ctypes.create_string_buffer(100)
how = (ctypes.c_uint64 * 3)()
for descriptor in (raw(2, SECRET.encode(), 0), raw(257, -100, SECRET.encode(), 0), raw(437, -100, SECRET.encode(), how, 24)):
    raw(0, descriptor, buffer, 99)
print(buffer.value)
""",
    "mmap": "import mmap, os\nprint(mmap.mmap(os.open(SECRET, os.O_RDONLY), 0, prot=mmap.PROT_READ)[:])",
    "import": "import importlib.util as u\nimport importlib.machinery as m\nprint(m.SourceFileLoader('x', SECRET).get_data(SECRET))",
    "shutil": "import shutil, sys\nshutil.copyfileobj(open(SECRET), sys.stdout)",
}
"""Print the token where nothing stops them."""

READS = {
    "inherited descriptors": """
for number in [DESCRIPTOR, *range(1024)]:
    try:
        print(os.pread(number, 1000, 0))
    except OSError:
        pass
""",
    "own descriptors by name": """
for number in range(64):
    try:
        print(number, os.readlink(f"/proc/self/fd/{number}"))
        print(open(f"/proc/self/fd/{number}").read())
    except OSError:
        pass
""",
    "processes": """
for pid in ("self", os.getpid(), os.getppid(), TESTS, 1, 2):
    for name in ("environ", "cmdline", "maps", "mem", "status", f"fd/{DESCRIPTOR}", f"root/{SECRET}"):
        try:
            print("harm", open(f"/proc/{pid}/{name}", "rb").read(100))
        except OSError:
            pass
""",
    "memory of others": """
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(64)
mine, other = Part(ctypes.addressof(buffer), 64), Part(id(libc), 64)
for pid in (os.getppid(), TESTS):
    if raw(310, pid, ctypes.byref(mine), 1, ctypes.byref(other), 1, 0) > 0:
        print("harm: process_vm_readv")
    if raw(101, 16, pid, 0, 0) == 0 or raw(101, 0x4206, pid, 0, 0) == 0:
        print("harm: ptrace")
    if raw(434, pid, 0) >= 0:
        print("harm: pidfd")
if raw(101, 0, 0, 0, 0) == 0:
    print("harm: traceme")
""",
    "listing": """
for folder in (FOLDER, "/", "/proc", "/tmp", "/home", "/etc"):
    try: print("harm", os.listdir(folder))
    except OSError: pass
""",
    "frames and objects": """
import gc
seen, frame = [], sys._getframe()
while frame:
    seen += [frame.f_locals, frame.f_globals]
    frame = frame.f_back
gc.unfreeze()
text = repr([repr(x) for x in seen]) + repr([repr(x)[:500] for x in gc.get_objects()[:20000]])
needle = "-".join(["token", "5f"])
print(len(text), text[text.index(needle):][:30] if needle in text else "nothing")
""",
    "environment": """
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(dict(os.environ), getenv(b"OPENPRIME_SECRET"))
""",
    "interrupt 0x80": """
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b"\\x53\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\x5b\\xc3")  # getpid of the 32-bit table
print("harm", ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
""",
    "x32": "if raw(0x40000000 + 39) > 0: print('harm')",
}

WRITES = {
    "files": """
import pathlib, shutil, tempfile
here = pathlib.Path(FOLDER)
for act in (
    lambda: open(SECRET, "w"),
    lambda: open(SECRET, "a").write("x"),
    lambda: open(SECRET, "r+"),
    lambda: (here / "new").write_text("harm"),
    lambda: os.open(here / "new", os.O_CREAT | os.O_WRONLY),
    lambda: os.open(FOLDER, os.O_TMPFILE | os.O_RDWR),
    lambda: os.mkdir(here / "new"),
    lambda: os.rename(SECRET, here / "new"),
    lambda: os.replace(here / "link", here / "secret"),
    lambda: os.unlink(SECRET),
    lambda: shutil.rmtree(FOLDER),
    lambda: os.chmod(SECRET, 0o777),
    lambda: os.chmod(FOLDER, 0o777),
    lambda: os.chown(SECRET, 1, 1),
    lambda: os.utime(SECRET, (1, 1)),
    lambda: os.truncate(SECRET, 0),
    lambda: os.link(SECRET, here / "new"),
    lambda: os.symlink(SECRET, here / "new"),
    lambda: os.mkfifo(here / "new"),
    lambda: os.mknod(here / "new"),
    lambda: os.setxattr(SECRET, "user.harm", b"1"),
    lambda: open(DESCRIPTOR, "w"),
    lambda: os.pwrite(DESCRIPTOR, b"harm", 0),
    lambda: os.ftruncate(DESCRIPTOR, 0),
    lambda: libc.unlink(SECRET.encode()),
    lambda: libc.rename(SECRET.encode(), (FOLDER + "/new").encode()),
    lambda: libc.chmod(SECRET.encode(), 0o777),
    lambda: libc.truncate(SECRET.encode(), 0),
    lambda: libc.mkdir((FOLDER + "/new").encode(), 0o777),
    lambda: libc.creat((FOLDER + "/new").encode(), 0o777),
    lambda: raw(452, -100, SECRET.encode(), 0o777, 0),
    lambda: raw(258, -100, (FOLDER + "/new").encode(), 0o777),
    lambda: raw(316, -100, SECRET.encode(), -100, (FOLDER + "/new").encode(), 0),
):
    attempt(act)
for folder in ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", os.getcwd(), os.path.dirname(os.__file__), "/proc/self"):
    attempt(lambda: open(folder + "/harm-5f1c9e", "w"))
    if os.path.exists(folder + "/harm-5f1c9e"):
        print("harm in " + folder)
attempt(lambda: print("harm", tempfile.TemporaryFile()))
attempt(lambda: print("harm", open("/proc/self/oom_score_adj", "w")))
""",
    "sockets": """
import socket
for family, kind, address in (
    (socket.AF_INET, socket.SOCK_STREAM, tuple(TCP)),
    (socket.AF_INET, socket.SOCK_DGRAM, tuple(UDP)),
    (socket.AF_UNIX, socket.SOCK_STREAM, FOLDER + "/socket"),
    (socket.AF_UNIX, socket.SOCK_STREAM, ABSTRACT),
):
    attempt(lambda: socket.socket(family, kind).connect(address))
    attempt(lambda: socket.socket(family, kind).sendto(b"harm", address))
    attempt(lambda: print("harm", socket.socket(family, kind)))
    if libc.socket(int(family), int(kind), 0) >= 0:
        print("harm: libc")
attempt(lambda: print("harm", socket.socketpair()))
attempt(lambda: print("harm", socket.create_server(("127.0.0.1", 0))))
attempt(lambda: print("harm", socket.getaddrinfo("example.org", 80)))
""",
}

PROCESSES = {
    "fork bomb": """
made = 0
for _ in range(50):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    except OSError:
        pass
print("harm" * made)
""",
    "daemon": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(64):
            try: os.close(number)
            except OSError: pass
        time.sleep(60)
    os._exit(0)
print("harm")
""",
    "other programs": """
import subprocess, multiprocessing
echo = ["/bin/echo", "harm"]
attempt(lambda: print(subprocess.run(echo, capture_output=True).stdout))
attempt(lambda: print(subprocess.check_output("echo harm", shell=True)))
attempt(lambda: os.system("echo harm"))
attempt(lambda: os.popen("echo harm").read() and print("harm"))
attempt(lambda: os.posix_spawn(echo[0], echo, {}) and print("harm"))
attempt(lambda: os.spawnv(os.P_WAIT, echo[0], echo))
attempt(lambda: multiprocessing.get_context("fork").Process(target=print, args=("harm",)).start())
attempt(lambda: multiprocessing.get_context("spawn").Process(target=print, args=("harm",)).start())
attempt(lambda: os.forkpty() and print("harm"))
libc.system(b"echo harm")
attempt(lambda: os.execv(echo[0], echo))
attempt(lambda: os.execve(sys.executable, [sys.executable, "-c", "print('harm')"], {}))
""",
    "memory file": """
script = b"#!/bin/sh\\necho harm\\n"
made = raw(319, b"x", 0)
print(made)
for number in (made, 1):
    attempt(lambda: (os.pwrite(number, script, 0), os.fchmod(number, 0o777)))
    attempt(lambda: os.execve(number, ["x"], {}))
    raw(322, number, b"", None, None, 0x1000)
os.ftruncate(1, 0)
""",
    "signals": """
for pid in (os.getppid(), TESTS):
    for number in (0, 9, 15, 19):
        attempt(lambda: os.kill(pid, number) or print("harm: kill"))
        attempt(lambda: os.killpg(os.getpgid(pid), number) or print("harm: killpg"))
        if raw(234, pid, pid, number) == 0 or raw(200, pid, number) == 0 or raw(129, pid, number, None) == 0:
            print("harm: system call")
    attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 9) or print("harm: pidfd"))
    attempt(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19) or print("harm: priority"))
    attempt(lambda: os.sched_setaffinity(pid, {0}) or print("harm: affinity"))
""",
    "privileges": """
for name, arguments in {
    "unshare user": (272, 0x10000000), "unshare mount": (272, 0x20000), "unshare net": (272, 0x40000000),
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, None), "umount": (166, b"/proc", 2), "chroot": (161, b"/"),
    "pivot_root": (155, b"/", b"/"), "setns": (308, 0, 0), "setuid": (105, 0), "setgid": (106, 0),
    "capset": (126, (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()),
    "no death signal": (157, 1, 0, 0, 0, 0), "dumpable": (157, 4, 1, 0, 0, 0), "seccomp off": (157, 22, 0, 0, 0, 0),
    "any tracer": (157, 0x59616D61, -1, 0, 0, 0), "setsid": (112,), "personality": (135, 0x0040000),
    "io_uring": (425, 8, (ctypes.c_uint8 * 120)()), "bpf": (321, 0, (ctypes.c_uint8 * 128)(), 128),
    "keys": (248, b"user", b"harm", b"x", 1, -3), "keyctl": (250, 0, -3, 1), "userfaultfd": (323, 1),
    "perf": (298, (ctypes.c_uint8 * 128)(112), 0, -1, -1, 0), "shmget": (29, 0, 4096, 0o1600),
    "msgget": (68, 0, 0o1600), "memfd": (319, b"x", 0), "memfd_secret": (447, 0), "inotify": (294, 0),
    "fanotify": (300, 0, 0), "eventfd": (290, 0, 0), "pipe": (293, (ctypes.c_int * 2)(), 0),
    "sethostname": (170, b"harm", 0), "syslog": (103, 10, None, 0), "ioprio": (251, 1, 0, 0x4007),
    "sched": (144, 0, 0, (ctypes.c_int * 1)(0)), "mlockall": (151, 1), "timerfd": (283, 0, 0),
    "fsopen": (430, b"tmpfs", 0), "open_tree": (428, -100, b"/", 0), "landlock": (444, 0, 0, 1),
    "clone": (56, 17, 0, 0, 0, 0) , "clone thread in a namespace": (56, 0x7E0D0F00, 0, 0, 0, 0),
    "handle": (304, -100, (ctypes.c_uint8 * 128)(8), 0), "name_to_handle": (303, -100, b"/", (ctypes.c_uint8 * 136)(0x80), (ctypes.c_int * 1)(), 0),
}.items():
    result = raw(*arguments)
    if name == "clone" and result == 0:
        os._exit(0)
    if result >= 0:
        os.write(1, f"harm: {name}\\n".encode())
""",
}

TOO_MUCH = {
    "bytearray": "print('harm', len(bytearray(1 << 30)))",
    "mapped memory": "import mmap\nm = mmap.mmap(-1, 1 << 30)\nm[::4096] = bytes(1 << 18)\nprint('harm')",
    "many small": "x = []\nwhile len(x) < 1000: x.append(bytearray(1 << 20))\nprint('harm')",
    "own limits": """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):
    attempt(lambda: resource.setrlimit(kind, (1 << 40, 1 << 40)))
    attempt(lambda: resource.prlimit(os.getpid(), kind, (1 << 40, 1 << 40)))
    raw(302, 0, kind, (ctypes.c_uint64 * 2)(1 << 40, 1 << 40), None)
    raw(160, kind, (ctypes.c_uint64 * 2)(1 << 40, 1 << 40))
    if max(resource.getrlimit(kind)) >= 1 << 40:
        print("harm: limit")
print("harm", len(bytearray(1 << 30)))
""",
    "endless print": "while True: print('x' * 1000)",
    "crash": "ctypes.string_at(0)\nprint('harm')",
}
THREADS = """
threading.stack_size(32768)
while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""

ENDLESS = {
    "loop without signals": """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "sleep": "time.sleep(1e6)\nprint('harm')",
    "waiting thread": "threading.Thread(target=threading.Event().wait).start()",
    "regular expression": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')\nprint('harm')",
    "no descriptors, no end": "os.closerange(0, 1 << 20)\nwhile True: time.sleep(1)",
}

LONG = {
    "power tower": "print(len(str(9 ** 9 ** 9)), 'harm')",
    "endless write": "while True:\n    try: os.write(1, b'x' * 100000)\n    except OSError: pass",
    "endless exception": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    "200 threads": """
t = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(200)]
for x in t: x.start()
for x in t: x.join()
""",
    "recursion": "sys.setrecursionlimit(10**9)\ndef f(x): return f(x + 1)\nprint(f(0), 'harm')",
    "other descriptors": "for a in range(3, 64):\n    try: os.dup2(1, a)\n    except OSError: pass",
}

LARGE = {
    "big file": """
size = 64 << 20
attempt(lambda: os.ftruncate(1, size))
attempt(lambda: os.posix_fallocate(1, 0, size))
attempt(lambda: os.pwrite(1, b"x", size))
attempt(lambda: open(FOLDER + "/new", "wb").write(bytes(size)))
for number in range(64):
    attempt(lambda: os.ftruncate(number, size))
    try:
        if os.fstat(number).st_size >= size: print("harm: ", number)
    except OSError:
        pass
""",
    "recursion in C": """
import functools
sys.setrecursionlimit(10**9)
@functools.cache
def f(x): return f(x + 1)
print(f(0), 'harm')
""",
    "nested source": "x = " + "(" * 100_000,
    "long source": "x = " + "-" * 3_000_000 + "1\nprint('harm')",
    "no descriptors": "os.closerange(0, 1 << 20)",
}


def cases(limits, statuses, *groups):
    """Programs with their limits, and the statuses that must come of them as a text and as a call."""
    items = [item for group in groups for item in group.items()]
    return [pytest.param(program, limits, statuses, id=name) for name, program in items]


@pytest.mark.parametrize(
    ("program", "limits", "statuses"),
    [
        *cases(SMALL, [], LEAKS, READS, WRITES, PROCESSES, LARGE),
        *cases(SHORT, [], LONG),
        *cases(SHORT, ["timeout"], ENDLESS),
        *cases(SMALL, ["error", "error"], TOO_MUCH),
        *cases(Limits(), ["error", "error"], {"threads without end": THREADS}),
    ],
)
def test_run__an_attack_does_no_harm(boxes, target, program, limits, statuses):
    """For a text and for a call: no harm is seen, nothing is left, and the next program is served."""
    assert one(boxes, "print(input())", "here").output == "here\n"
    text = target.fill(program)
    body = "def f(x):\n    exec(compile(" + repr(text) + ", 'f', 'exec'), {})\n"
    with nothing_left():
        ran = [*boxes.run(text, [TOKEN[:5]], limits=limits), *boxes.run(body, [[1]], "f", limits)]
        target.check()
        assert one(boxes, "print(input())", "still here").output == "still here\n"
    for result in ran:
        assert TOKEN not in repr(result)
        assert "harm" not in repr(result)
        assert len(result.output) <= limits.output_bytes
    assert [result.status for result in ran][: len(statuses)] == statuses


@pytest.mark.parametrize("name", LEAKS)
def test_leaks__are_real_outside_the_sandbox(target, name):
    ran = subprocess.run([sys.executable, "-c", target.fill(LEAKS[name])], capture_output=True, text=True)
    assert TOKEN in ran.stdout


@pytest.mark.parametrize("relative", [False, True])
def test_sandbox__the_bubblewrap_that_was_found_is_the_one_that_is_started(tmp_path, monkeypatch, relative):
    """Whatever PATH is later, and from whatever folder it is found."""
    wrapper, started = tmp_path / "bin" / "bwrap", tmp_path / "started"
    wrapper.parent.mkdir()
    wrapper.write_text(
        "#!/bin/sh\n"
        f'echo "$0" "$@" >> {started}\n'
        f'while [ "$1" != {sys.executable} ]; do shift; done\n'
        'exec "$@"\n'
    )
    wrapper.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin" if relative else str(wrapper.parent))
    with Sandbox() as sandbox:
        assert sandbox.level == "strict+bubblewrap"
        monkeypatch.setenv("PATH", "")
        monkeypatch.chdir("/")
        sandbox._stop()
        assert sandbox.run("print(int(input()) + 1)", ["1"])[0].output == "2\n"  # started again
    lines = started.read_text().splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{wrapper} --unshare-all ") for line in lines)


def test_run__the_initial_environment_stays_secret():
    """It could be read in /proc of the process that started the sandbox."""
    program = """
import ctypes, os
print("started", dict(os.environ))
for pid in ("self", os.getpid(), os.getppid(), *range(1, 300)):
    try: print(open(f"/proc/{pid}/environ", "rb").read())
    except OSError: pass
"""
    host = (
        "import sys\nfrom openprime.verifiers.sandbox import Sandbox\n"
        "with Sandbox() as box: print(box.run(sys.argv[1], [''])[0].output)"
    )
    environment = {**os.environ, "SECRET_KEY": TOKEN}
    for name, expected in ((host, False), (program, True)):
        ran = subprocess.run(
            [sys.executable, "-c", name, program], env=environment, capture_output=True, text=True
        )
        assert "started" in ran.stdout
        assert (TOKEN in ran.stdout) is expected


def test_run__a_lying_value_comes_back_as_its_base_type(box):
    lies = """
class Lie:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __int__(self): return 99
    __index__ = __int__
    def __float__(self): return 99.0
    def __repr__(self): return "99"
    __str__ = __repr__
    def __iter__(self): return iter([99])
    def __len__(self): return 1
    def __getitem__(self, key): return 99
    def items(self): return [(99, 99)]
    @property
    def __class__(self): return int
def f(kind, value):
    kind = {"int": int, "float": float, "str": str, "list": list, "tuple": tuple, "dict": dict, "set": set,
            "frozenset": frozenset, "bytes": bytes, "complex": complex}[kind]
    return type("Lie", (Lie, kind), {})(value)
"""
    for value in (5, 2.5, "five", [1, 2], (1, 2), {1: 2}, {1, 2}, frozenset({1}), b"five", 1j):
        ran = call(box, lies, type(value).__name__, value)
        assert (type(ran.value), ran.value) == (type(value), value)
    ran = call(box, lies + "\ndef g(): return Lie()", name="g")
    assert (ran.status, ran.value, ran.error) == ("error", None, "value of type Lie does not compare")


def test_run__exits_are_no_results_of_calls(box):
    for way in ("os._exit(0)", "sys.exit(0)", "sys.exit()", "raise SystemExit", "quit(0)", "exit()"):
        ran = call(box, f"import os, sys\ndef f(): {way}")
        assert (ran.status, ran.value) == ("error", None)
        assert ran.error
    hook = "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\nraise ValueError('no')"
    assert one(box, hook).error == "ValueError: no"
    assert call(box, hook).status == "error"


def test_run__exits_of_a_text_program(box):
    for text, status, error in (
        ("print(1)\nimport sys; sys.exit(0)", "ok", ""),
        ("print(1)\nimport sys; sys.exit()", "ok", ""),
        ("print(1, flush=True)\nimport os; os._exit(0)", "ok", ""),
        ("import sys; sys.exit(3)", "error", "SystemExit: 3"),
        ("import sys; sys.exit('bad')", "error", "SystemExit: bad"),
        ("import os; os._exit(3)", "error", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "error", f"signal {int(signal.SIGSEGV)}"),
    ):
        ran = one(box, text)
        assert (ran.status, ran.error, ran.output) == (status, error, "1\n" if status == "ok" else "")


FORGERIES = {
    "plain": b"k" * 1000, "garbage": bytes(range(256)) * 100, "nested": b"[" * 500_000,
    "nested tags": b'{"t":[' * 1000 + b"]}" * 1000, "deep": b"[" * 500 + b"]" * 500, "digits": b"9" * 100_000,
    "tags": b'{"i": "zz"}', "tags of a wrong type": b'{"d": [[[1], 2]]}',
    "unknown tags": b'{"__class__": [1]}',
    "collisions": json.dumps({"s": [i * (2**61 - 1) for i in range(40_000)]}).encode(),
    "many keys": json.dumps({"s": list(range(100_000))}).encode(),
    "overflow": b'{"c": [1' + b"0" * 400 + b", 1]}", "half": b'{"s": [1, 2', "size": b"\xff" * 8,
    "value": b'{"t": [1, 2]}',
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_run__a_program_forges_its_own_results_alone(box, name):
    forge = f"""
import os, time
data = {FORGERIES[name]!r}
for number in [*range(5, 64), *range(3)]:
    try: os.pwrite(number, data, 0)
    except OSError: pass
for number in range(3, 64):
    try: os.set_blocking(number, False), os.write(number, b"kkkk" if number == 6 else data)
    except OSError: pass
"""
    for ending in ("time.sleep(60)", "os._exit(0)"):
        for ran in (
            box.run(forge + ending, ["a", "b"], limits=SHORT),
            box.run(f"{forge}\ndef f(x):\n    {ending}", [[1], [2]], "f", limits=SHORT),
        ):
            assert [isinstance(result, Ran) and result.value in (None, (1, 2)) for result in ran] == [
                True
            ] * 2
        honest = box.run("def f(x): return x + 1", [[1], [2]], "f")
        assert [r.value for r in honest] == [2, 3]


def test_run__many_forged_answers_do_not_block_the_zygote(box):
    forge = "import os, time\nfor _ in range(2000): os.write(6, b'k')\ntime.sleep(60)"
    assert len(box.run(forge, ["x"] * 1500, limits=SHORT)) == 1500
    assert one(box, "print(1)").output == "1\n"


def test_run__a_program_never_sees_the_cases_to_come(box):
    look = """
import gc, sys
seen, frame = [], sys._getframe()
while frame:
    seen += [repr(frame.f_locals), repr(frame.f_globals)]
    frame = frame.f_back
gc.unfreeze()
import os
for number in range(3, 64):
    try: seen.append(repr(os.pread(number, 10000, 0)))
    except OSError: pass
text = repr(seen) + repr([repr(x)[:500] for x in gc.get_objects()[:20000]])
print(input() in text, "-".join(["later", "77"]) in text)
"""
    first, second = box.run(look, ["now-1", "later-77"])
    assert first.output.endswith("False\n")
    assert second.output == "True True\n"  # what it looks for can be seen


def test_run__a_program_finds_no_mark_of_the_one_before(box, target):
    mark = """
import builtins, os, sys, math, json, random, threading, collections, fcntl, time, numpy
builtins.mark = sys.mark = math.mark = collections.Counter.mark = numpy.mark = "harm"
builtins.print = lambda *a: os.write(1, b"harm")
json.dumps = lambda *a: "harm"
sys.modules["mark"] = sys
os.environ["mark"] = "harm"
os.write = lambda *a: None
sys.setrecursionlimit(77)
for number in range(64):
    try: fcntl.fcntl(number, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)
    except OSError: pass
    try: os.pwrite(number, b"harm", 0)
    except OSError: pass
    try: os.setxattr(number, "user.mark", b"harm")
    except OSError: pass
try: os.umask(0o123), os.chdir("/tmp")
except OSError: pass
threading.Thread(target=lambda: [time.sleep(1), sys.stdout.write("harm")], daemon=True).start()
"""
    find = """
import builtins, os, sys, math, json, random, threading, collections, fcntl, numpy
found = [hasattr(x, "mark") for x in (builtins, sys, math, collections.Counter, numpy)]
found += ["mark" in sys.modules, "mark" in os.environ, sys.getrecursionlimit() == 77, os.getcwd() == "/tmp"]
found += [threading.active_count() > 1, json.dumps(1) != "1"]
for number in range(64):
    try: found.append(bool(fcntl.fcntl(number, fcntl.F_GETFL) & (os.O_APPEND | os.O_NONBLOCK)))
    except OSError: pass
    try: found.append(b"harm" in os.pread(number, 100, 0))
    except OSError: pass
print(any(found), len(found) > 15)
"""
    for text in (mark, "\n" * 3 + mark + "os._exit(0)"):
        one(box, text)
        assert one(box, find).output == "False True\n"


ENDS = ("", "raise ValueError(mark)", "import os; os._exit(3)", "import ctypes; ctypes.string_at(0)", "1 / 0")


def test_run__nothing_of_earlier_programs_is_in_the_memory_of_a_later_one(boxes):
    """Neither of their text nor of their inputs, outputs and errors: the process that forks has held none."""
    first, rest = MARK[:4], MARK[4:]
    for i in range(20):
        program = f"# {MARK}{i:02}p {'.' * 700 * (i % 7)}\nmark = '{first}' + '{rest}{i:02}' + 'o'\n"
        text = f"{MARK}{i:02}i\n" * (1 + 50 * i)
        end = ENDS[i % len(ENDS)]
        boxes.run(f"{program}input(); print(mark); {end}", [text, text], limits=SHORT)
        boxes.run(f"{program}def f(x): print(x); {end}; return mark", [[text, 1]], "f", SHORT)
    patient = Limits(seconds=30.0, total_seconds=30.0)
    found = ast.literal_eval(one(boxes, SCAN, limits=patient).output)
    assert found == {"memory": ["99x"], "held": ["99x"], "objects": ["99x"]}


# Limits of a program


THREADS_AT_ONCE = """
import ctypes, os, sys
call = ctypes.CDLL(None, use_errno=True).syscall
call.restype = ctypes.c_long
import mmap
page = mmap.mmap(-1, 8192, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
place = ctypes.addressof(ctypes.c_char.from_buffer(page))
page[:9] = b"\\xb8\\x22\\x00\\x00\\x00\\x0f\\x05\\xeb\\xf7"  # pause, again and again, on one stack for all
page[8184:8192] = place.to_bytes(8, "little")
os.closerange(0, 64)
made = 0
while made < 20_000 and call(56, ctypes.c_long(0x50F00), ctypes.c_long(place + 8184), 0, 0, 0) > 0:
    made += 1
import time
time.sleep(60)
"""


def test_run__threads_are_limited_whatever_a_program_closes(boxes):
    most = [0]

    def watch():
        while not over.wait(0.01):
            for pid in family(os.getpid()):
                with contextlib.suppress(OSError):
                    most[0] = max(most[0], Path(f"/proc/{pid}/task").stat().st_nlink - 2)

    over = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    ran = one(boxes, THREADS_AT_ONCE, limits=Limits(seconds=2.0))
    over.set()
    watcher.join()
    assert ran.status == "timeout"
    assert most[0] == zygote.THREADS


def test_run__a_thread_too_many_is_an_error_in_the_program(boxes):
    program = f"""
import threading
threading.stack_size(1 << 16)
done = threading.Event()
made = []
try:
    for _ in range({2 * zygote.THREADS}):
        made.append(threading.Thread(target=done.wait))
        made[-1].start()
except RuntimeError as error:
    print(len(made), error)
done.set()
for thread in made[:-1]: thread.join()
threading.Thread(target=print, args=("and again",)).start()
"""
    said = f"{zygote.THREADS} can't start new thread\nand again\n"
    assert [r.output for r in boxes.run(program, ["", ""])] == [said, said]


MAPS = {
    "private": "raw(9, 0, 16 << 20, 3, 0x22, -1, 0)",
    "shared": "raw(9, 0, 16 << 20, 3, 0x21, -1, 0)",
    "without reserve": "raw(9, 0, 16 << 20, 3, 0x4022, -1, 0)",
    "of a file": "raw(9, 0, 16 << 20, 3, 2, file, 0)",
    "heap": "16 << 20 if raw(12, 0) + (16 << 20) == raw(12, raw(12, 0) + (16 << 20)) else -1",
}


@pytest.mark.parametrize("way", MAPS)
def test_run__what_a_program_maps_counts(boxes, way):
    """Whatever it is mapped from, and no more than the limit: 256 MiB."""
    program = f"""
import ctypes, os
call = ctypes.CDLL(None).syscall
call.restype = ctypes.c_long
def raw(*arguments):
    return call(*[ctypes.c_long(x) for x in arguments])
file, had = os.open(os.__file__, os.O_RDONLY), 0
while had < 1000 and {MAPS[way]} > 0:
    had += 16
print(had)
"""
    assert 200 <= int(one(boxes, program, limits=SMALL).output) <= 256


CHANNELS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def raw(*arguments):
    return libc.syscall(*[ctypes.c_long(x) if isinstance(x, int) else x for x in arguments])
word = ctypes.cast(libc.abs, ctypes.c_void_p).value & ~3  # in a page that all processes share
moment = (ctypes.c_long * 2)(0, 1000)
got = {
    "wait": raw(202, word, 0, ctypes.c_int32.from_address(word).value, moment, 0, 0),
    "wait, a bit set": raw(202, word, 9, ctypes.c_int32.from_address(word).value, moment, 0, 1),
    "wake": raw(202, word, 1, 1, 0, 0, 0),
    "requeue": raw(202, word, 3, 1, 1, word, 0),
    "wait of 6.7": raw(455, word, 0, 1, 2, 0, 0),
    "wake of 6.7": raw(454, word, 1, 1, 2),
    "vector": raw(449, 0, 0, 0, 0, 0),
}
print({name: ctypes.get_errno() for name, result in got.items() if result >= 0})
print(raw(99, (ctypes.c_long * 20)()), raw(202, word, 129, 1, 0, 0, 0))
"""


def test_run__futexes_of_other_processes_and_figures_of_the_machine_are_no_channel(boxes):
    assert one(boxes, CHANNELS).output == "{}\n-1 0\n"


# When the machinery fails


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_run__a_killed_zygote_is_replaced_and_a_case_under_way_repeated(box, seconds):
    def kill():
        for pid in (box._process.pid, *family(box._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    assert one(box, "print(1)").output == "1\n"
    killer = threading.Timer(seconds / 2, kill)
    killer.start()
    if not seconds:
        killer.join()  # dead before it is asked
    ran = box.run(f"import time\ntime.sleep({seconds})\nprint(input())", ["a", "b"])
    killer.join()
    assert [r.output for r in ran] == ["a\n", "b\n"]


def test_run__an_interrupt_leaves_no_stale_answer(box):
    def interrupt(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TimeoutError):
            one(box, "import time\ntime.sleep(1)\nprint('stale')")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert one(box, "print('fresh')").output == "fresh\n"


def test_close__leaves_nothing(tmp_path):
    with nothing_left():
        box = Sandbox()
        one(box, "print(1)")
        box.close()
        box.close()
    assert one(box, "print(1)").output == "1\n"  # it starts again when asked
    box.close()
    with Sandbox(packages=()) as box:
        assert one(box, "import json, numpy").error == "ModuleNotFoundError: No module named 'numpy'"


def test_sandbox__the_zygote_dies_with_its_parent():
    host = (
        "import os, time\nfrom openprime.verifiers.sandbox import Sandbox\nbox = Sandbox()\n"
        "print(os.getpid(), flush=True)\nbox.run('import time; time.sleep(60)', ['', ''])"
    )
    process = subprocess.Popen([sys.executable, "-c", host], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    time.sleep(0.5)
    started = family(pid)
    assert len(started) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{p}").exists() for p in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [p for p in started if Path(f"/proc/{p}").exists()]


def test_sandbox__a_missing_package_is_named():
    with pytest.raises(SandboxError, match="'no_such_package' is not installed"):
        Sandbox(packages=("no_such_package",))


WITHOUT = """
import ctypes, struct
from openprime.verifiers import sandbox
from openprime.verifiers.sandbox import Limits, Sandbox, SandboxError
step = lambda *x: struct.pack("HBBI", *x)
refuse = lambda code: step(6, 0, 0, 0x50000 | code)
landlock = lambda code: b"".join(step(0x15, 0, 1, n) + refuse(code) for n in (444, 445, 446))
seccomp = step(0x15, 0, 3, 157) + step(0x20, 0, 0, 16) + step(0x15, 0, 1, 22) + refuse(1)
steps = step(0x20, 0, 0, 0) + WHAT + step(6, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(steps, len(steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps) // 8, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, program, 0, 0) == 0
sandbox.shutil.which = lambda name: None
try:
    Sandbox()
except SandboxError as error:
    print(error)
with Sandbox(allow_weak=True) as box:
    print(box.level)
    print(box.run("print(input())", ["served"])[0].output.strip())
    print(box.run("import time; time.sleep(60)", [""], limits=Limits(seconds=0.3))[0].status)
    fork = "import os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    if os.fork() == 0: time.sleep(60)"
    print(box.run(fork, [""])[0].status)
    pid = box._process.pid
    print("left", len(open(f"/proc/{pid}/task/{pid}/children").read().split()))
"""


@pytest.mark.parametrize(
    ("what", "level", "forked"),
    [
        ("landlock(38)", "no landlock", "error"),
        ("landlock(1)", "no landlock", "error"),
        ("seccomp", "no seccomp", "ok"),
        ("landlock(95) + seccomp", "no landlock, no seccomp", "ok"),
    ],
)
def test_sandbox__without_a_mechanism_it_refuses_unless_weak_is_allowed(what, level, forked):
    """In a process that may not use it, as in some containers."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT.replace("WHAT", what)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    refusal, *lines = ran.stdout.splitlines()
    assert refusal.startswith(f"no strict isolation, weak: {level}: ")
    assert refusal.endswith("allow_weak=True.")
    assert lines == [f"weak: {level}", "served", "timeout", forked, "left 0"]


# Ordinary programs


def test_run__text_programs(box):
    ran = box.run("a, b = map(int, input().split())\nprint(a + b)", ["1 2\n", "3 4", "x", ""])
    assert [(r.status, r.output) for r in ran[:2]] == [("ok", "3\n"), ("ok", "7\n")]
    assert ran[2].error.startswith("ValueError: invalid literal")
    assert ran[3].error == "EOFError: EOF when reading a line"
    assert all(r.seconds > 0 for r in ran)
    assert box.run("print(1)", []) == []


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nfor line in sys.stdin: print(line.strip())",
        "import sys\nprint(sys.stdin.read().strip())",
        "import sys\nsys.stdout.write(sys.stdin.readline())",
        "import sys\ninput = sys.stdin.buffer.readline\nsys.stdout.buffer.write(input())",
        "import os\nos.write(1, os.read(0, os.fstat(0).st_size))",
        "print(open(0).read().strip())",
        "print(open('/dev/stdin').read().strip())",
        "import sys\nprint(open(sys.stdin.fileno(), 'rb').read().decode().strip())",
        "import io, os, sys\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\nprint(input().decode().strip())",
        "import sys, io, atexit\nb = io.StringIO()\nsys.stdout = b\natexit.register(lambda: sys.__stdout__.write(b.getvalue()))\nprint(input())",
        "import fileinput\nfor line in fileinput.input(): print(line.strip())",
        "import mmap\nprint(mmap.mmap(0, 0, prot=mmap.PROT_READ)[:].decode().strip())",
        "f = open(1, 'w')\nf.write(input() + '\\n')",
        "import threading\nthreading.Thread(target=lambda: print(input())).start()",
        "import os\nx = input()\nos.close(0); os.close(2)\nprint(x)\nimport sys; sys.stdout.close()",
        "if __name__ == '__main__':\n    print(input())",
        "print(input())\nexit()",
        "print(input())\nquit(0)",
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (-1, -1))\nsys.setrecursionlimit(10**6)\nprint(input())",
        "import sys, threading\ndef main():\n    def f(n): return 0 if n == 0 else 1 + f(n - 1)\n    f(50000); print(input())\n"
        "sys.setrecursionlimit(10**6); threading.stack_size(1 << 27)\nt = threading.Thread(target=main); t.start(); t.join()",
        "import sys, functools\nsys.setrecursionlimit(10**6)\nf = functools.cache(lambda n: n and 1 + f(n - 1))\nf(50000); print(input())",
        """
import os, sys
from io import BytesIO, IOBase
class FastIO(IOBase):
    newlines = 0
    def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = self.buffer.write if self.writable else None
    def readline(self):
        while self.newlines == 0:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, 8192))
            self.newlines = b.count(b"\\n") + (not b)
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines -= 1
        return self.buffer.readline()
    def flush(self):
        if self.writable:
            os.write(self._fd, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)
class IOWrapper(IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.writable = self.buffer.writable
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
        self.readline = lambda: self.buffer.readline().decode("ascii")
sys.stdin, sys.stdout = IOWrapper(sys.stdin), IOWrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip()
print(input())
""",
    ],
)
def test_run__ways_to_read_and_write(box, program):
    ran = box.run(program, ["first\n", "second\n"])
    assert [(r.status, r.error, r.output) for r in ran] == [("ok", "", "first\n"), ("ok", "", "second\n")]


def test_run__odd_programs_and_inputs(box):
    for program, status in (
        ("", "ok"), ("# nothing", "ok"), ("print(", "error"), ("x = '\0'", "error"),
        ("x = '\ud800'", "error"), ("print('\\ud800')", "error"), ("raise KeyboardInterrupt", "error"),
        ("raise BaseException", "error"),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "error"),
        ("import sys\nsys.stdin = sys.stdout = sys.stderr = None", "ok"),
        ("import sys\nsys.stdout.close()", "ok"),
        ("import warnings\nwarnings.warn('x')\nimport sys\nprint(1, file=sys.stderr)", "ok"),
        ("import sys; del sys.modules['__main__']; sys.modules.clear()", "ok"), ("del __builtins__", "ok"),
    ):  # fmt: skip
        assert (program, one(box, program).status) == (program, status)
    assert one(box, "print(input())", "ж 漢 😀\n").output == "ж 漢 😀\n"
    assert one(box, "import os; os.write(1, b'\\xff')").output == "\ufffd"
    assert one(box, "print(repr(input()))", "a\0b").output == "'a\\x00b'\n"
    big = "x" * 5_000_000
    assert one(box, "print(len(input()))", big).output == "5000000\n"
    assert len(one(box, "print('x' * 1000000)").output) == 1_000_001
    assert one(box, "print('x' * (1 << 20))").error == f"output over {1 << 20} bytes"


def test_run__functions(box):
    solution = "class Solution:\n    def twoSum(self, nums: List[int], k: int) -> Optional[int]:\n        return bisect_left(nums, k)"
    assert call(box, solution, [1, 3, 5], 5, name="twoSum").value == 2
    assert call(box, "def f(x): return gcd(x, 12), Counter('aab'), heapq.nsmallest(1, [3, 2]), pow(2, 3)", 8).value == (
        4, {"a": 2, "b": 1}, [2], 8,
    )  # fmt: skip
    assert call(box, "import math\ngcd = lambda a, b: 7", 4, 6, name="gcd").value == 7
    for program, name in (
        ("def g(): pass", "f"), (solution, "threeSum"), ("def g(): pass", "gcd"), ("import math", "math.gcd"),
        ("def g(): pass", "__import__"), ("", ""),
    ):  # fmt: skip
        assert call(box, program, name=name).error == f"no function {name}"
    assert call(box, "def f(x): return x / 0", 1).error == "ZeroDivisionError: division by zero"
    assert call(box, "def f(): return input()").error == "EOFError: EOF when reading a line"
    assert call(box, "def f(): print('x' * 3000000)").status == "error"
    assert call(box, "def f(n): return f(n - 1) if n else 'deep'", 20_000).value == "deep"
    ran = box.run(
        "seen = []\ndef f(x):\n    x.append(1); seen.append(x)\n    return len(seen)", [[[1]]] * 10, "f"
    )
    assert [r.value for r in ran] == [1] * 10


def test_run__values_travel_as_plain_values(box):
    class Shade(enum.IntEnum):
        RED = 3

    Pair = collections.namedtuple("Pair", "a b")
    for value in (
        None, True, 0, -5, 2**53, 2**64 + 1, -(10**5000), 1.5, -0.0, math.inf, -math.inf, 1 + 2j, "", "ж\ud800", b"\0\xff",
        [], [[1, (2, {3})]], (), (1,), set(), {1, (2, 3)}, frozenset({1}), {}, {(1, 2): {"a": [None]}, None: 1, 1.5: 2},
    ):  # fmt: skip
        ran = call(box, "def f(x): return x", value)
        assert (ran.status, type(ran.value), ran.value) == ("ok", type(value), value)
        assert zygote.decode(json.loads(json.dumps(zygote.encode(value, [10**6])))) == value
    assert math.isnan(call(box, "def f(): return float('nan')").value)
    assert math.copysign(1, call(box, "def f(): return -0.0").value) == -1
    assert type(call(box, "def f(x): return x", Shade.RED).value) is int
    assert type(call(box, "def f(x): return x", Pair(1, 2)).value) is tuple
    for text, value in (
        ("defaultdict(int, a=1)", {"a": 1}), ("OrderedDict(a=1)", {"a": 1}),
        ("namedtuple('P', 'a b')(1, 2)", (1, 2)), ("__import__('numpy').arange(3)", [0, 1, 2]),
        ("__import__('numpy').float32(0.5)", 0.5),
        ("[__import__('numpy').int64(3), __import__('numpy').bool_(True)]", [3, True]),
        ("__import__('numpy').eye(2)", [[1.0, 0.0], [0.0, 1.0]]),
    ):  # fmt: skip
        assert call(box, f"def f(): return {text}").value == value
    for text, error in (
        ("object()", "value of type object does not compare"),
        ("iter([])", "value of type list_iterator does not compare"),
        ("lambda: 1", "value of type function does not compare"),
        ("type", "value of type type does not compare"),
        ("__import__('datetime').date(2000, 1, 1)", "value of type date does not compare"),
        ("__import__('numpy').longdouble(1)", "value of type longdouble does not compare"),
        ("(x := [], x.append(x), x)[2]", "value nested deeper than 100"),
        ("[x := [0], [x := [x, x] for _ in range(90)]]", "value too large"),
        ("[0] * 10**5", "value too large"),
        ("'x' * 10**5", "value too large"),
        ("1 << 10**6", "value too large"),
        ("set(range(5000)), set(range(20000))", "no value: more than 20000 members of sets and dictionaries"),
    ):
        limits = Limits(output_bytes=1 << 20 if "set" in text else 1 << 16)
        assert (text, call(box, f"def f(): return {text}", limits=limits).error) == (text, error)
    with pytest.raises(ValueError, match="object does not compare"):
        box.run("def f(x): return x", [[object()]], "f")
    with pytest.raises(ValueError, match="a text, not list"):
        box.run("", [["1"]])


def test_run__is_deterministic(box):
    program = """
import random, numpy
print({str(i) for i in range(100)}, hash("x"), random.random(), numpy.random.rand(), random.sample(range(100), 5))
"""
    first, second, third = *box.run(program, ["", ""]), one(box, program)
    assert first.status == "ok"
    assert first.output == second.output == third.output


def test_run__cases_share_a_child_but_no_names(box):
    program = "import os\nprint(os.getpid(), 'x' in globals())\nx = 1"
    assert len({r.output for r in box.run(program, [""] * 10)}) == 1
    assert "False" in one(box, program).output


def test_run__a_dead_child_is_replaced_and_a_timeout_ends_the_run(box):
    program = """
import os, time, ctypes
word = input()
if word == "exit": os._exit(3)
if word == "crash": ctypes.string_at(0)
if word == "sleep": time.sleep(60)
print(word)
"""
    ran = box.run(program, ["a", "exit", "b", "crash", "c", "sleep", "d", "e"], limits=SHORT)
    assert [r.status for r in ran] == ["ok", "error", "ok", "error", "ok", "timeout", "not_run", "not_run"]
    assert [r.output for r in ran if r.status == "ok"] == ["a\n", "b\n", "c\n"]
    ran = box.run("import time\ntime.sleep(0.6)", [""] * 4, limits=Limits(seconds=1.0, total_seconds=1.6))
    assert [r.status for r in ran] == ["ok", "ok", "timeout", "not_run"]


def test_run__the_standard_library_can_be_imported(box):
    names = sorted(
        name for name in sys.stdlib_module_names
        if not name.startswith("_") and name not in ("antigravity", "this", "idlelib", "turtledemo", "lib2to3", "tkinter")
    )  # fmt: skip
    program = """
import importlib, sys
for name in input().split():
    try: importlib.import_module(name)
    except Exception as error: print(name, type(error).__name__, error)
"""
    ran = one(box, program, " ".join(names), limits=Limits(seconds=30, total_seconds=30))
    absent = {name for name in names if importlib.util.find_spec(name) is None}
    failed = {line.split()[0] for line in ran.output.splitlines()}
    assert failed - absent <= {"ssl", "sqlite3", "readline", "curses", "crypt", "turtle", "nis"}
    for name in ("torch", "pytest", "openprime", "site_packages"):
        assert f"No module named '{name}'" in one(box, f"import {name}").error
    ran = one(box, "import numpy.linalg, numpy.fft, numpy.polynomial\nprint(numpy.linalg.det(numpy.eye(3)))")
    assert ran.output == "1.0\n"
