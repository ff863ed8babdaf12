"""Checkpoints that are whole or absent."""

import copy
import os
import random
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from openprime.ranks import first, on_first, world
from openprime.types import StorageError

NAME = re.compile(r"step-(\d{6,})")
SHARDS = "shards"
"""The key of a part's tensors that several ranks hold, and the folder of a checkpoint that they are in."""


class Background:
    """Writes checkpoints of several ranks while they train on, one at a time."""

    def __init__(self) -> None:
        self.group: Any = dist.new_group(backend="gloo")  # connections of its own, beside those of training
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Do it meanwhile."""
        self._writing = self._thread.submit(write)

    def wait(self) -> None:
        """Wait for the checkpoint on its way; raises OSError, on every rank, where it could not be written."""
        if self._writing:
            writing, self._writing = self._writing, None
            wait([writing])
            on_first(writing.result)
            writing.result()


def save_checkpoint(
    folder: Path, step: int, state: dict, keep: int, background: Background | None = None
) -> Path:
    """Write `state` and the random states as folder/step-NNNNNN, atomically; then delete all but the last `keep`.

    Every rank calls it: a part of the state that is `{SHARDS: tensors by name, ...}` is written by all of them. With
    `background`, whose last one has to be waited for before, it returns when the tensors have been copied.
    Raises OSError when the disk is full; what was there before stays valid.
    """
    target = folder / f"step-{step:06d}"
    partial = folder / f".partial-{target.name}"
    shards = {
        f"{part}.{name}": tensor
        for part, own in state.items()
        if isinstance(own, dict)
        for name, tensor in own.get(SHARDS, {}).items()
    }
    state = {
        part: own | {SHARDS: True} if isinstance(own, dict) and SHARDS in own else own
        for part, own in state.items()
    }
    state = {"step": step, "random": random_state(), **state}

    def write_shards(write: Callable[[], object]) -> None:
        try:
            write()
        except CheckpointException as error:  # on every rank
            if first():
                shutil.rmtree(partial, ignore_errors=True)
            raise _not_written(target, next(iter(error.failures.values()))[0]) from error

    def finish(state: dict) -> None:
        _write(partial, target, state)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    if not shards:
        on_first(lambda: finish(state))
        return target
    on_first(lambda: shutil.rmtree(partial, ignore_errors=True))
    if background is None:
        write_shards(lambda: save(shards, checkpoint_id=partial / SHARDS))
        on_first(lambda: finish(state))
        return target
    written = async_save(shards, checkpoint_id=partial / SHARDS, process_group=background.group)
    kept = copy.deepcopy(state)
    assert isinstance(written, Future)

    def meanwhile() -> None:
        write_shards(written.result)
        if first():
            finish(kept)

    background.begin(meanwhile)
    return target


def _write(partial: Path, target: Path, state: dict) -> None:
    """Write one process's part, and rename the folder into place."""
    if not (partial / SHARDS).is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(state, partial / "state.pt")
        except RuntimeError as error:  # torch reports a failed write as RuntimeError
            raise OSError(str(error).splitlines()[0]) from error
        with (partial / "state.pt").open("rb") as file:
            os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _not_written(target, error) from error


def _not_written(target: Path, error: BaseException) -> StorageError:
    return StorageError(
        f"checkpoint {target} could not be written ({error}); the previous checkpoint stays valid: "
        "make room and go on with --resume"
    )


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint and put the random states back; what is in shards is left to `load_shards`."""
    # Loaded tensors are our own; Python's and numpy's random states need no arbitrary code either.
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True, mmap=world() > 1)
    restore_random_state(state.pop("random"))
    for part, own in state.items():
        if isinstance(own, dict) and SHARDS in own:
            own[SHARDS] = (path / SHARDS, part)
    return state


def load_shards(where: tuple[Path, str], tensors: dict[str, Tensor]) -> None:
    """Fill tensors, whole or in shares of any number of ranks, with what one part of a checkpoint has in shards."""
    folder, part = where
    named = {f"{part}.{name}": tensor for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # we know
        load(named, checkpoint_id=folder, no_dist=world() == 1)


def random_state() -> dict:
    """States of Python's, numpy's and torch's global generators, as plain values."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict) -> None:
    """Put `random_state()` back."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
