"""Tasks whose rows are generated from a seed: the embedded ones, and those of reasoning-gym."""

from typing import Any

from openprime.config import DataConfig
from openprime.tasks import clock, gym, programs, words
from openprime.types import UserError

TASKS = {"clock": clock.rows, "programs": programs.rows, "words": words.rows}


def rows(config: DataConfig) -> list[dict[str, Any]]:
    """Rows of the task that `config.source` names: task:NAME (embedded), or gym:NAME (reasoning-gym).

    Embedded tasks have the fields prompt, response (a demonstration) and what their verifier needs; for those of
    reasoning-gym see `gym.rows`. Raises UserError for a name that is not there.
    """
    kind, _, name = config.source.partition(":")
    if kind == "gym":
        return gym.rows(config, name)
    if name not in TASKS:
        raise UserError(f"data.source: no embedded task {name!r}; there are: {', '.join(sorted(TASKS))}")
    return TASKS[name](config)
