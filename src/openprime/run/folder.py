"""A command's folder: its settings, what it was made with, and whether it may go on."""

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from openprime import __version__
from openprime.config import FolderConfig
from openprime.run.lock import LOCK, hold
from openprime.types import StorageError, UserError

MAY_CHANGE = {
    "resume",
    "steps",
    "epochs",
    "save_every",
    "keep",
    "sample_every",
    "wandb",
    "out",
    "sequences",
    "parallel",
    "engine",
    "endpoint",
    "timeout",
    "workers",
}
"""Settings that a resumed run may change."""
PACKAGES = ("torch", "transformers", "datasets", "math-verify")


def open_folder(config: FolderConfig, command: str, data: Iterable[bytes] = (), grows: bool = False) -> Path:
    """Make a command's folder with config.yaml, versions.json and data.json, or open it where `config.resume` is set.

    `data`: an item each, in order; with `grows` there may be more of them at the end when it goes on. No other process
    can open the folder until this one ends. Raises UserError as `check_folder` does and for other data,
    StorageError where it cannot be written.
    """
    check_folder(config, command)
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hold(folder)
        check_folder(config, command)  # another process may have been faster
        seen = same_data(folder, data, config.resume, grows)
        settings = json.loads(config.model_dump_json())
        _write(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        _write(folder / "versions.json", json.dumps(versions(command), indent=2) + "\n")
        _write(folder / "data.json", json.dumps(seen, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"out: {folder} cannot be written: {error}") from error
    return folder


def check_folder(config: FolderConfig, command: str) -> None:
    """Before any work: raises UserError when the folder is no folder or holds a run that cannot go on.

    That is one which is under way, which is not to be resumed, or which was begun by another command or with other
    settings.
    """
    folder, path = Path(config.out), Path(config.out) / "config.yaml"
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"out: {folder} is a file: name a folder")
        if (folder / LOCK).is_file():
            hold(folder)
        if not path.is_file():
            return
    except OSError as error:
        raise UserError(f"out: {folder} cannot be read: {error}") from error
    if not config.resume:
        raise UserError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    refuse_changes(folder, begun_with(folder, command), settings_of(config, command))


def same_data(folder: Path, data: Iterable[bytes], resume: bool, grows: bool) -> dict[str, Any]:
    """A fingerprint of the data; raises UserError where a folder that goes on was begun with other ones."""
    path, digest, count = folder / "data.json", hashlib.sha256(), 0
    before = read_record(path, json.loads) if resume and path.is_file() else None
    items, beginning = (
        before.get("items") if before is not None else 0,
        digest.hexdigest(),
    )  # of as many items as there were
    for count, item in enumerate(data, 1):
        digest.update(hashlib.sha256(item).digest())
        if count == items:
            beginning = digest.hexdigest()
    if before is not None and (beginning != before.get("sha256") or (count != items and not grows)):
        raise UserError(
            f"{folder} was begun with other data: {items} items then, {count} now"
            + (", others or in another order" if count == items else "")
            + ". Resume with the same data, or start a new run with another --out"
        )
    return {"items": count, "sha256": digest.hexdigest()}


def settings_of(config: FolderConfig, command: str) -> dict[str, Any]:
    """The command and all its settings, as plain values."""
    return {"command": command} | json.loads(config.model_dump_json())


def begun_with(folder: Path, command: str) -> dict[str, Any]:
    """What `settings_of` was when a folder was begun; raises UserError where its files do not say so any more."""
    made = folder / "versions.json"
    by = read_record(made, json.loads).get("stage") if made.is_file() else command
    return {"command": by} | read_record(folder / "config.yaml", yaml.safe_load)


def read_record(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The keys and values of a file of the folder; raises UserError where it is damaged."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it has no keys")
        return found
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is damaged ({why}): put it back, or choose another --out") from error


@contextmanager
def made_of(path: Path) -> Iterator[None]:
    """Around what is made of the rows of a file, some of which an interrupted command may have left.

    Raises UserError where they are not what the command writes.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{path} is damaged ({why}): delete it and go on with --resume, which makes it again"
        ) from error


def _write(path: Path, text: str) -> None:
    """A file that is whole or as it was."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def refuse_changes(folder: Path, before: dict, now: dict) -> None:
    """Raises UserError, with every changed setting, for a folder that was begun with other ones."""
    if changed := changed_settings(before, now):
        raise UserError(
            f"{folder} was begun with other settings: {'; '.join(changed)}. "
            "Resume with the same ones, or start a new run with another --out"
        )


def changed_settings(before: dict, now: dict) -> list[str]:
    """Settings in both that a run may not change, each as `key: before -> now`."""
    old = dict(flatten(before))
    return [
        f"{key}: {old[key]!r} -> {value!r}"
        for key, value in flatten(now)
        if key in old and old[key] != value and key.split(".")[0] not in MAY_CHANGE
    ]


def versions(command: str) -> dict[str, str]:
    """What the run was made with."""
    found = {"openprime": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(torch.get_num_threads()),
    }
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"stage": command, **found, **machine, **gpu, "command": " ".join(sys.argv)}


def flatten(settings: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, dict):
            pairs += flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value))
    return pairs
