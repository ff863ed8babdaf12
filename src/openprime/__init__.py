"""openprime: PRIME (Process Reinforcement through Implicit Rewards, arXiv 2502.01456)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openprime.evaluation.comparison import compare
    from openprime.notebook import generate, prm, rl, sft
    from openprime.prime.prm import ImplicitPRM
    from openprime.types import UserError

__version__ = "0.1.0"
__all__ = ["ImplicitPRM", "UserError", "compare", "generate", "prm", "rl", "sft"]


PLACES = {"ImplicitPRM": "prime.prm", "UserError": "types", "compare": "evaluation.comparison"}
"""Modules of the names of `__all__` that are not notebook.py's."""


def __getattr__(name: str) -> Any:
    """The names of `__all__`, imported when they are asked for: the command line loads no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES.get(name, 'notebook')}"), name)


def __dir__() -> list[str]:
    """What a notebook completes."""
    return sorted([*globals(), *__all__])
