"""Checkpoints that are whole or absent."""

import contextlib
import copy
import io
import os
import random
import re
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from openprime.ranks import first, on_first, rank, together, world
from openprime.run.folder import changed_settings
from openprime.types import RunError, StorageError, UserError

NAME = re.compile(r"step-(\d{6,})")
STATE = "state.pt"
METADATA = ".metadata"
"""The file in which torch keeps what its shards are."""
SHARDS = "shards"
"""The key of a part's tensors that several ranks hold, and the folder of a checkpoint that they are in."""


class DamagedError(RunError):
    """A checkpoint that is not as it was written, or not one of this run."""


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
        sums = {"shards": zlib.crc32((partial / SHARDS / METADATA).read_bytes())} if shards else {}
        _write(partial, target, state | sums)
        ours = [path for path in checkpoints(folder) if _step(path) <= step and (path / STATE).is_file()]
        for old in ours[:-keep]:
            remove(old)

    if not shards:
        on_first(lambda: finish(state))
        return target
    on_first(lambda: remove(partial))
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
        remove(partial)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(state, partial / STATE)
        except RuntimeError as error:  # torch reports a failed write as RuntimeError
            raise OSError(str(error).splitlines()[0]) from error
        with (partial / STATE).open("rb") as file:
            os.fsync(file.fileno())
        remove(target)
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
    """Folders with a checkpoint's name, oldest first; what else lies there is none of ours."""
    return sorted((p for p in folder.glob("step-*") if NAME.fullmatch(p.name) and p.is_dir()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def remove(path: Path) -> None:
    """Delete a folder, a file or a link, if it is there and may be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def resume(
    folder: Path, settings: dict[str, Any], restore: Callable[[dict], None], say: Callable[[str], None]
) -> Path | None:
    """Restore the last checkpoint of a run with these settings that is as it was written; None where there is none.

    One that is damaged is named, and set aside as `NAME.damaged` when an earlier one has been restored. Raises
    UserError where there are checkpoints and none of them will do.
    """
    faults: list[tuple[Path, DamagedError]] = []
    for path in reversed(on_first(lambda: checkpoints(folder))):
        try:
            state = together(lambda path=path: load_checkpoint(path, settings))
            together(lambda path=path, state=state: _restored(path, state, restore))
        except DamagedError as fault:
            faults.append((path, fault))
            continue
        for damaged, fault in faults:
            say(f"{fault}: set aside as {damaged.name}.damaged; going on from {path.name}")
            on_first(lambda damaged=damaged: _set_aside(damaged))
        return path
    if faults:
        (_, last), *more = faults
        raise UserError(
            f"{last}"
            + (f"; nor can any of the {len(more)} before it be used" if more else "")
            + ": put back a copy of a checkpoint, or begin anew with another --out"
        )
    return None


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    remove(aside)
    with contextlib.suppress(OSError):  # it is in the way of nothing
        path.rename(aside)


def load_checkpoint(path: Path, settings: dict[str, Any] | None = None) -> dict:
    """Read a checkpoint and put the random states back; what is in shards is left to `load_shards`.

    Raises DamagedError where a byte is not as it was written, something is missing, or, with `settings`, where it is
    of a run with other ones. Of several ranks each reads its part of the shards to see that they are whole.
    """
    return _named(path, lambda: _load(path, settings))


def _load(path: Path, settings: dict[str, Any] | None) -> dict:
    file = path / STATE
    _refuse_unless(file.is_file(), f"there is no {STATE}")
    if first():  # torch itself does not look at the checksums
        with zipfile.ZipFile(file) as archive:
            _refuse_unless(archive.testzip() is None, f"bytes of {file.name} have changed")
    # Loaded tensors are our own; Python's and numpy's random states need no arbitrary code either.
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=world() > 1)
    _refuse_unless(isinstance(state, dict) and state["step"] == _step(path), "it is of another step")
    if changed := changed_settings(state.pop("settings", {}), settings or {}):
        raise DamagedError(f"it is of a run with other settings: {'; '.join(changed)}")
    parts = {part: own for part, own in state.items() if isinstance(own, dict) and SHARDS in own}
    if parts:
        _check_shards(path / SHARDS, state.pop("shards", None))
    for part, own in parts.items():
        own[SHARDS] = (path / SHARDS, part)
    restore_random_state(state.pop("random"))
    return state


def _check_shards(folder: Path, checksum: int | None) -> None:
    """Refuse shards whose bytes have changed; each rank looks at its share of them."""
    same = checksum is None or zlib.crc32((folder / METADATA).read_bytes()) == checksum
    _refuse_unless(same, f"bytes of {SHARDS}/{METADATA} have changed")
    stored = FileSystemReader(folder).read_metadata().storage_data or {}
    for where in sorted(stored.values(), key=lambda where: (where.relative_path, where.offset))[
        rank() :: world()
    ]:
        with (folder / where.relative_path).open("rb") as file:
            file.seek(where.offset)
            with zipfile.ZipFile(io.BytesIO(file.read(where.length))) as archive:
                _refuse_unless(
                    archive.testzip() is None, f"bytes of {SHARDS}/{where.relative_path} have changed"
                )


def _restored(path: Path, state: dict, restore: Callable[[dict], None]) -> None:
    """Hand a checkpoint's state over."""
    _named(path, lambda: restore(state))


def _named(path: Path, work: Callable[[], Any]) -> Any:
    """Do it; whatever goes wrong with a checkpoint's content is a DamagedError that names it."""
    try:
        return work()
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, CheckpointException) as error:  # the content may be anything
        if isinstance(error, RunError) and not isinstance(error, DamagedError):
            raise  # a signal, a lost rank
        if isinstance(error, CheckpointException):
            error = next(iter(error.failures.values()))[0]
        why = str(error).strip().split("\n")[0][:300]
        why = why if isinstance(error, DamagedError) else f"{type(error).__name__}: {why}"
        raise DamagedError(f"checkpoint {path} is damaged ({why})") from error


def _refuse_unless(right: bool, why: str) -> None:
    if not right:
        raise DamagedError(why)


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
        # Of the device in use alone: another machine may have fewer.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict) -> None:
    """Put `random_state()` back."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
