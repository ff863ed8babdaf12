"""What the tests of the invariants share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "stages"))

import tiny_runs


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small SFT model."""
    return tiny_runs.sft_model(tmp_path_factory.getbasetemp())
