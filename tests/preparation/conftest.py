"""The tokenizer of the tests of data."""

from data.conftest import tokenizer

__all__ = ["tokenizer"]
