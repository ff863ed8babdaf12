"""A worker process of the pool: loads verifiers by name, judges responses until its channel closes."""

import contextlib
import ctypes
import functools
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from openprime.types import Prompt, UserError, Verdict, Verifier
from openprime.verifiers import math

if TYPE_CHECKING:
    from openprime.verifiers.cases import Reading, Tests

MATH_BYTES = 2 << 30
"""Memory that one mathematical answer may add."""
TESTS_BYTES = 1 << 30
"""Memory that the tests of one program may take to be unpacked and read."""
TESTS_DIGITS = 100_000
"""Of an integer in tests, which Python reads in quadratic time."""
TESTS = "tests"
"""In the place of a verifier's name: read the tests of the prompt."""
PR_SET_PDEATHSIG = 1
ROOT = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 - as in tracebacks
HEADER = struct.Struct("!Q")


def main(parent: int, channel: int) -> None:
    """Serve the pool of the process `parent` at the socket with descriptor `channel`."""
    die_with(parent)
    pipe = socket.socket(fileno=channel)
    math.importing = functools.partial(clock_stopped, pipe)
    with contextlib.suppress(EOFError, OSError):
        options = receive(pipe)
        load = functools.cache(lambda name: make_verifier(name, options))
        while True:
            serve(pipe, load, options)


def serve(pipe: socket.socket, load: Callable[[str], tuple[Verifier, str]], options: dict[str, Any]) -> None:
    """Do one job."""
    name, prompt, responses = receive(pipe)
    if name == TESTS:
        send(pipe, ("begun",))
        return send(pipe, ("read", reading(prompt, options["code"]["packages"])))
    try:
        verifier, note = load(name)
    except Exception as error:  # noqa: BLE001 - whatever a user's module raises
        ours = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(ROOT)
        text = str(error) if ours else f"the verifier {name} does not load:\n{traceback.format_exc()}"
        return send(pipe, ("does not load", text))
    if prompt is None:
        return send(pipe, ("loaded", note))
    send(pipe, ("begun",))
    try:
        return send(pipe, ("verdicts", verdicts_of(name, verifier, prompt, responses)))
    except Exception:  # noqa: BLE001 - whatever a user's function raises
        return send(pipe, ("raised", traceback.format_exc()))


def verdicts_of(name: str, verifier: Verifier, prompt: Prompt, responses: Sequence[str]) -> list[Verdict]:
    """One verdict a response, with the seconds that it took. Raises what the verifier raises."""
    begun = time.perf_counter()
    verdicts = verifier(prompt, responses)
    if len(verdicts) != len(responses):
        raise UserError(f"{name}: {len(verdicts)} verdicts for {len(responses)} responses")
    seconds = (time.perf_counter() - begun) / max(1, len(responses))
    return [replace(v, seconds=v.seconds or seconds) for v in verdicts]


def make_verifier(name: str, options: dict[str, Any]) -> tuple[Verifier, str]:
    """The verifier of a name, and a note on its isolation where it runs programs.

    Raises ValueError for an unknown name, and for a module or function that is not there.
    """
    if name == "math":
        settings = {"answers": options["answers"], "rounded": options["rounded_decimals"]}
        return limited(functools.partial(math.verify_math, **settings), MATH_BYTES), ""
    if name == "code":
        from openprime.verifiers.code import CodeOptions, verify_code
        from openprime.verifiers.sandbox import Limits, Sandbox

        code = options["code"]
        limits = Limits(code["seconds"], code["total_seconds"], code["memory_mb"])
        sandbox = Sandbox(importable(code["packages"]), code["allow_weak_sandbox"])
        settings = CodeOptions(score=code["score"], max_cases=code["max_cases"], limits=limits)
        judge = functools.partial(verify_code, sandbox=sandbox, options=settings, read=bounded_tests)
        return judge, sandbox.level
    if name == "reasoning_gym":
        from openprime.verifiers.gym import verify_gym

        return verify_gym, ""
    if ":" in name:
        from openprime.verifiers.user import load_user_verifier

        return load_user_verifier(name), ""
    raise UserError(
        f"data.verifier: no verifier {name!r}; valid are math, code, reasoning_gym, and module:function "
        "(my_reward:score is the function score in my_reward.py of the current directory)"
    )


def bounded_tests(row: Mapping[str, Any], answer: Any) -> "Tests":
    """The tests of a row, as `read_tests` has them, in bounded memory. Raises ValueError."""
    from openprime.verifiers.cases import read_tests

    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(TESTS_DIGITS)
    try:
        with memory(TESTS_BYTES):
            return read_tests(row, answer)
    except MemoryError:
        raise ValueError(f"tests that take more than {TESTS_BYTES >> 20} MiB of memory to read") from None
    finally:
        sys.set_int_max_str_digits(digits)


def reading(prompt: Prompt, packages: Sequence[str]) -> "Reading":
    """A prompt's tests, read where programs may import these packages."""
    from openprime.verifiers.cases import Reading, lacking, pack_tests
    from openprime.verifiers.code import constant_answer

    try:
        tests = bounded_tests(prompt.columns, prompt.answer)
        return Reading(pack_tests(tests), lacking(tests, importable(packages)), constant_answer(tests))
    except ValueError as error:
        return Reading(fault=str(error))


def importable(packages: Sequence[str]) -> list[str]:
    """The packages without those that are allowed where they are installed, and are not."""
    from openprime.config import CodeConfig

    return [name for name in packages if name not in CodeConfig().packages or find_spec(name)]


@contextlib.contextmanager
def clock_stopped(pipe: socket.socket) -> Iterator[None]:
    """Tell the pool that something is being loaded, and when a job's time runs again."""
    send(pipe, ("loading",))
    yield
    send(pipe, ("begun",))


def limited(verifier: Verifier, extra: int) -> Verifier:
    """The verifier with a limit on the memory that it may add, in bytes; beyond, the response is rejected."""

    def verify(prompt: Prompt, responses: Sequence[str]) -> list[Verdict]:
        try:
            with memory(extra):
                return verifier(prompt, responses)
        except MemoryError:
            return [Verdict(0.0, "rejected")] * len(responses)

    return verify


@contextlib.contextmanager
def memory(extra: int) -> Iterator[None]:
    """Limit this process's address space to what it has now and `extra` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - once a job
            limit = int(file.read().split()[0]) * resource.getpagesize() + extra
    except FileNotFoundError:  # not Linux
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def send(channel: socket.socket, value: object, deadline: float | None = None) -> None:
    """Write one value. Raises TimeoutError after the deadline (time.monotonic), OSError without a reader."""
    data = pickle.dumps(value)
    channel.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
    channel.sendall(HEADER.pack(len(data)) + data)


def receive(channel: socket.socket, deadline: float | None = None) -> Any:
    """Read one value. Raises TimeoutError after the deadline, EOFError without a writer."""

    def read(size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            channel.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            part = channel.recv(min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return data

    return pickle.loads(read(HEADER.unpack(read(HEADER.size))[0]))


def die_with(parent: int) -> None:
    """Have the kernel end this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()
