"""A run's folder: its settings, records, checkpoints and exports."""

import importlib.metadata
import importlib.util
import json
import math
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch.utils.tensorboard.writer import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from openprime import __version__
from openprime.config import FolderConfig, PromptFormat, RunConfig
from openprime.models.hub import save_model
from openprime.ranks import first, on_first, world
from openprime.run.checkpoint import Background, checkpoints, load_checkpoint, save_checkpoint
from openprime.run.console import Clock
from openprime.run.jsonl import append_jsonl, keep_until
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


class Run:
    """One run's folder: config.yaml, versions.json, metrics.jsonl, samples.jsonl, tensorboard, checkpoints, model.

    Of several ranks the first one speaks and writes.
    """

    def __init__(self, config: RunConfig, stage: str) -> None:
        """Make the folder, or open it where `config.resume` is set.

        Raises ValueError when there is already a run in it and it is not to be resumed, or when it was
        begun with other settings.
        """
        self.config, self.folder = config, Path(config.out)
        self.console = Console(stderr=False, quiet=not first())
        self.clock = Clock()
        if config.wandb and importlib.util.find_spec("wandb") is None:
            raise UserError("wandb is asked for but not installed: pip install 'openprime[wandb]'")
        on_first(lambda: open_folder(config, stage))
        self.step = 0
        self._background: Background | None = None
        self._writer: SummaryWriter | None = None
        self._wandb: Any = None

    def load(self) -> dict | None:
        """The last checkpoint's state if the run is to be resumed and has one; later records are cut off."""
        found = on_first(lambda: checkpoints(self.folder / "checkpoints")) if self.config.resume else []
        state = load_checkpoint(found[-1]) if found else None
        self.step = state["step"] if state else 0
        for name in ("metrics.jsonl", "samples.jsonl") if first() else ():
            keep_until(self.folder / name, self.step if state else -1)
        if state:
            self.console.print(f"resumed at step {self.step} from {found[-1]}")
        return state

    def save(self, step: int, state: dict, wait: bool = True) -> None:
        """Write a checkpoint, unless this step has one; without `wait`, while training goes on if it may."""
        folder = self.folder / "checkpoints"
        if self._background is None and self.config.parallel.save_in_background and world() > 1:
            self._background = Background()
        if self._background:
            self._background.settle()
        if not on_first((folder / f"step-{step:06d}").is_dir):
            save_checkpoint(folder, step, state, self.config.keep, None if wait else self._background)

    def way_back(self) -> str:
        """Where the last good weights are, in words."""
        found = checkpoints(self.folder / "checkpoints")
        return f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint yet."

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append to metrics.jsonl, TensorBoard and, if asked for, Weights & Biases; what is not finite is left out."""
        if not first():
            return
        metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        line = {"step": step, **metrics}
        append_jsonl(self.folder / "metrics.jsonl", line)
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if self.config.wandb:
            if self._wandb is None:
                self._wandb = start_wandb(self.config.wandb, self.folder)
            self._wandb.log(metrics, step=step)

    def sample(self, rows: list[dict]) -> None:
        """Append to samples.jsonl."""
        for row in rows if first() else ():
            append_jsonl(self.folder / "samples.jsonl", row)

    def export(self, name: str, write: "Any") -> Path:
        """Write a folder of the run as a whole or not at all; `write(folder)`, called on every rank, fills it."""
        target, partial = self.folder / name, self.folder / f".partial-{name}"

        def put_in_place() -> None:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)

        shutil.rmtree(partial, ignore_errors=True) if first() else None
        on_first(partial.mkdir)
        write(partial)
        on_first(put_in_place)
        return target

    def export_model(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, form: PromptFormat
    ) -> Path:
        """Write a Hugging Face model into the run's folder, and beside it how it was asked."""
        return self.export(name, lambda folder: save_model(model, tokenizer, folder, form))

    def close(self) -> None:
        """Flush what is still in memory."""
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


def open_folder(config: FolderConfig, stage: str) -> Path:
    """Make a command's folder with config.yaml and versions.json, or open it where `config.resume` is set.

    Raises ValueError as `check_folder` does.
    """
    check_folder(config, stage)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(config.model_dump_json())
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(versions(stage), indent=2) + "\n", encoding="utf-8")
    return folder


def check_folder(config: FolderConfig, stage: str) -> None:
    """Before any work: raises ValueError when there is already a run in the folder that cannot go on.

    That is one which is not to be resumed, or which was begun by another command or with other settings.
    """
    folder, path = Path(config.out), Path(config.out) / "config.yaml"
    if not path.is_file():
        return
    if not config.resume:
        raise UserError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    made = folder / "versions.json"
    command = json.loads(made.read_text(encoding="utf-8"))["stage"] if made.is_file() else stage
    now = json.loads(config.model_dump_json())
    refuse_changes(folder, {"command": command} | before, {"command": stage} | now)


def refuse_changes(folder: Path, before: dict, now: dict) -> None:
    """Raises ValueError, with every changed setting, for a folder that was begun with other ones."""
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


def versions(stage: str) -> dict[str, str]:
    """What the run was made with."""
    found = {"openprime": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(torch.get_num_threads()),
    }
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"stage": stage, **found, **machine, **gpu, "command": " ".join(sys.argv)}


def start_wandb(project: str, folder: Path) -> Any:
    """A Weights & Biases run beside the folder's own records."""
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb.init(project=project, name=folder.name, dir=str(folder), resume="allow", id=folder.name)


def flatten(settings: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, dict):
            pairs += flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value))
    return pairs
