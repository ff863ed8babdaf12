"""A command's folder: its settings, what it was made with, and whether it may go on."""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from openprime import __version__
from openprime.config import FolderConfig
from openprime.types import UserError

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
}
"""Settings that a resumed run may change."""
PACKAGES = ("torch", "transformers", "datasets", "math-verify")


def open_folder(config: FolderConfig, command: str) -> Path:
    """Make a command's folder with config.yaml and versions.json, or open it where `config.resume` is set.

    Raises UserError as `check_folder` does.
    """
    check_folder(config, command)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(config.model_dump_json())
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(versions(command), indent=2) + "\n", encoding="utf-8")
    return folder


def check_folder(config: FolderConfig, command: str) -> None:
    """Before any work: raises UserError when there is already a run in the folder that cannot go on.

    That is one which is not to be resumed, or which was begun by another command or with other settings.
    """
    folder, path = Path(config.out), Path(config.out) / "config.yaml"
    if not path.is_file():
        return
    if not config.resume:
        raise UserError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    made = folder / "versions.json"
    before_by = json.loads(made.read_text(encoding="utf-8"))["stage"] if made.is_file() else command
    now = json.loads(config.model_dump_json())
    refuse_changes(folder, {"command": before_by} | before, {"command": command} | now)


def refuse_changes(folder: Path, before: dict, now: dict) -> None:
    """Raises UserError, with every changed setting, for a folder that was begun with other ones."""
    old, new = dict(flatten(before)), dict(flatten(now))
    changed = [
        f"{key}: {old[key]!r} -> {value!r}"
        for key, value in new.items()
        if key in old and old[key] != value and key.split(".")[0] not in MAY_CHANGE
    ]
    if changed:
        raise UserError(
            f"{folder} was begun with other settings: {'; '.join(changed)}. "
            "Resume with the same ones, or start a new run with another --out"
        )


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
