"""Tasks whose rows are made on the spot from a seed: embedded ones, and those of reasoning-gym."""

from typing import Any

from openprime.config import DataConfig
from openprime.tasks import clock, gym, programs
from openprime.types import UserError

TASKS = {"clock": clock.rows, "programs": programs.rows}


def rows(config: DataConfig) -> list[dict[str, Any]]:
    """The rows of the task that `config.source` names: task:NAME, or gym:NAME of reasoning-gym.

    Embedded tasks have prompt, answer and response (a demonstration); those of reasoning-gym what it gives.
    """
    kind, _, name = config.source.partition(":")
    if kind == "gym":
        return gym.rows(config, name)
    if name not in TASKS:
        raise UserError(f"data.source: no embedded task {name!r}; there are: {', '.join(sorted(TASKS))}")
    return TASKS[name](config)
