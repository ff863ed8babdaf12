"""Real benchmark files; they lie beside the repository, or their tests are skipped."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "data"
needs_files = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs benchmark files in ../shared/data of the repository"
)


def rows_of(name: str) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
