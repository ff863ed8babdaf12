"""Endpoints that a test starts, and the tokenizer of the tests of data."""

from collections.abc import Callable, Iterator

import pytest

from data.conftest import tokenizer
from support.fake_endpoint import Endpoint

__all__ = ["tokenizer"]


@pytest.fixture
def served() -> Iterator[Callable[..., Endpoint]]:
    """Starts endpoints, and stops them."""
    started: list[Endpoint] = []

    def start(reply, **options) -> Endpoint:
        started.append(Endpoint(reply, **options))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.stop()
