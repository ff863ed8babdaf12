"""Tiny models are fastest on one thread; several test processes would fight over the cores."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import tiny_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

os.environ.setdefault("OMP_NUM_THREADS", "1")
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell starts what is behind `&` with Ctrl-C ignored


@pytest.fixture(autouse=True)
def _forget_user_modules():
    """Users' modules that a test wrote are not another test's."""
    for name, module in list(sys.modules.items()):
        if "pytest-of-" in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if "pytest-of-" not in path]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small SFT model of the tests that run commands."""
    return tiny_runs.sft_model(tmp_path_factory.getbasetemp())


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    if not CHROMIUM:
        pytest.skip("no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()
