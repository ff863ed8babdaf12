"""The ranks of a run: processes that share its work. In a run of one process all of this is the identity."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from openprime.types import RunError

T = TypeVar("T")
_apart = ContextVar("apart", default=False)


FAULTS = (OSError, ValueError, RuntimeError, MemoryError)
"""Errors of one rank that end the work of all."""


class LostRankError(RunError):
    """Another rank does not answer any more."""


def rank() -> int:
    """This process's number, from 0; 0 within `apart`."""
    return dist.get_rank() if dist.is_initialized() and not _apart.get() else 0


def world() -> int:
    """Number of ranks that work together: 1 within `apart`."""
    return dist.get_world_size() if dist.is_initialized() and not _apart.get() else 1


def first() -> bool:
    """Whether this is the rank that speaks and writes for all."""
    return rank() == 0


@contextmanager
def apart() -> Iterator[None]:
    """Within, and in this thread, the rank works on its own as a single process does, and talks to no other."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


@contextmanager
def talking() -> Iterator[None]:
    """Raise LostRankError where the other side of a connection is gone."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise LostRankError(f"rank {rank()} lost another rank ({str(error).splitlines()[0]})") from error


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error comes from communication. gloo, unlike NCCL, has no class of its own for its errors."""
    named = any(word in str(error) for word in ("gloo", "by peer"))  # our own may say so of a server
    return isinstance(error, dist.DistError) or (named and not isinstance(error, RunError))


def all_sum(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor of any shape, which is changed in place."""
    if world() > 1:
        with talking():
            dist.all_reduce(values)
    return values


def gather(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    with talking():
        dist.all_gather_object(found, value)
    return found


def share(count: int) -> range:
    """This rank's part of `count` items in order; the parts differ by one item at most."""
    return range(count * rank() // world(), count * (rank() + 1) // world())


def on_first(work: Callable[[], T]) -> T:
    """Do something on the first rank alone; all get what it returns, or raise the error that it raised."""
    if world() == 1:
        return work()
    result: Any = None
    error = None
    if first():
        try:
            result = work()
        except FAULTS as raised:
            error = raised
    found = [(result, _portable(error, "openprime", "builtins"))]
    with talking():
        dist.broadcast_object_list(found)
    result, told = found[0]
    if told is not None:
        raise error or told
    return result


def together(work: Callable[[], T]) -> T:
    """Do something on every rank; where it raises on one, all raise: their own error, else that of the first."""
    if world() == 1:
        return work()
    result: Any = None
    error = None
    try:
        result = work()
    except FAULTS as raised:
        error = raised
    found = gather(_portable(error, "openprime"))
    error = error or next((other for other in found if other is not None), None)
    if error is not None:
        raise error
    return result


def _portable(error: Exception | None, *packages: str) -> Exception | None:
    """An error as it goes to other ranks: what is not of these packages may not survive the journey."""
    if error is None or type(error).__module__.split(".")[0] in packages:
        return error
    return RuntimeError(f"rank {rank()}: {error}")
