"""Tasks of reasoning-gym (PyPI: reasoning-gym), as `gym:NAME`: rows from its generators."""

import difflib
import zlib
from typing import Any

from openprime.config import DataConfig
from openprime.types import UserError

ROWS = 1000
"""Rows where `limit` is not set."""


def rows(config: DataConfig, name: str) -> list[dict[str, Any]]:
    """Rows with question, answer, metadata and response (a demonstration: the answer in its tags).

    Rows depend on seed, split, limit and settings alone.

    Raises UserError for a task or a setting that reasoning-gym does not have, or without reasoning-gym.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise UserError(
            f"data.source: {config.source} needs reasoning-gym: pip install 'openprime[gym]'"
        ) from error
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"there are {len(DATASETS)}, such as chain_sum"
        )
        raise UserError(f"data.source: reasoning-gym has no task {name!r}; {hint}")
    seed = zlib.crc32(f"{config.split}-{config.task_seed}".encode())  # splits share no seed
    try:
        data = create_dataset(name, size=config.limit or ROWS, seed=seed, **config.gym)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"data.gym: reasoning-gym's {name} refuses {config.gym}: {error}") from error
    return [
        {
            "question": row["question"],
            "answer": row["answer"],
            "response": f"<answer>{row['answer']}</answer>",
            "metadata": row["metadata"],
        }
        for row in data
    ]
