"""openprime: PRIME (Process Reinforcement through Implicit Rewards, arXiv 2502.01456)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openprime.prime.prm import ImplicitPRM

__version__ = "0.1.0"
__all__ = ["ImplicitPRM"]


def __getattr__(name: str) -> Any:
    """`openprime.ImplicitPRM`, imported when it is asked for: the command line loads no torch."""
    if name == "ImplicitPRM":
        from openprime.prime.prm import ImplicitPRM

        return ImplicitPRM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
