"""What the tests of the stages share."""

from pathlib import Path

import pytest
import tiny_runs


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small SFT model."""
    return tiny_runs.sft_model(tmp_path_factory.getbasetemp())
