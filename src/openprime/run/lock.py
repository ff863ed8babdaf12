"""A lock on a folder, so that no two processes fill it at a time. Imports no torch."""

import errno
import fcntl
import os
import platform
from pathlib import Path
from typing import TextIO

from openprime.types import UserError

LOCK = ".lock"
_held: dict[Path, TextIO] = {}


def hold(folder: Path) -> None:
    """Keep other processes out of a folder until `release`; the kernel lets go when this process ends, however.

    Raises UserError where another process has it. A file system without locks is left without one.
    """
    if folder.resolve() in _held:
        return
    file = (folder / LOCK).open("a+", encoding="utf-8", errors="replace")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        who = file.read(200).strip()
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f"{folder} is being filled by another process ({who or 'just begun'}): wait until it has ended, or "
                "choose another --out"
            ) from error
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _held[folder.resolve()] = file


def release() -> None:
    """Let go of all folders."""
    while _held:
        _held.popitem()[1].close()


os.register_at_fork(after_in_child=release)
