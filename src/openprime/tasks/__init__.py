"""Embedded tasks: rows made on the spot from a seed."""

from openprime.config import DataConfig
from openprime.tasks import clock

TASKS = {"clock": clock.rows}


def rows(config: DataConfig) -> list[dict[str, str]]:
    """The rows (prompt, answer, response) of the embedded task that `config.source` names as task:NAME."""
    name = config.source.removeprefix("task:")
    if name not in TASKS:
        raise ValueError(f"data.source: no embedded task {name!r}; there are: {', '.join(sorted(TASKS))}")
    return TASKS[name](config)
