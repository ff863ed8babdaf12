"""The ranks of a run: processes that share its work. In a run of one process all of this is the identity."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from openprime.types import RunError

T = TypeVar("T")


class LostRankError(RunError):
    """Another rank does not answer any more."""


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this is the rank that speaks and writes for all."""
    return rank() == 0


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
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "by peer"))


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
        except (OSError, ValueError, RuntimeError) as raised:
            error = raised
    result, error = gather((result, error))[0]
    if error is not None:
        raise error
    return result


def together(work: Callable[[], T]) -> T:
    """Do something on every rank; where it raises on one, all raise: their own error, else that of the first."""
    if world() == 1:
        return work()
    result: Any = None
    error = None
    try:
        result = work()
    except (OSError, ValueError, RuntimeError) as raised:
        error = raised
    # Errors of libraries may not survive the journey.
    ours = error is None or type(error).__module__.startswith("openprime")
    found = gather(error if ours else RuntimeError(f"rank {rank()}: {error}"))
    error = error or next((other for other in found if other is not None), None)
    if error is not None:
        raise error
    return result
