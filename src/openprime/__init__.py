"""openprime: PRIME (Process Reinforcement through Implicit Rewards, arXiv 2502.01456)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openprime.evaluation.comparison import compare
    from openprime.notebook import generate, prm, rl, sft
    from openprime.prime.prm import ImplicitPRM
    from openprime.types import UserError

__version__ = "0.1.0"
__all__ = ["ImplicitPRM", "UserError", "compare", "generate", "prm", "rl", "sft"]


def __getattr__(name: str) -> Any:
    """The names of `__all__`, imported when they are asked for: the command line loads no torch."""
    if name == "ImplicitPRM":
        from openprime.prime.prm import ImplicitPRM

        return ImplicitPRM
    if name == "UserError":
        from openprime.types import UserError

        return UserError
    if name == "compare":
        from openprime.evaluation.comparison import compare

        return compare
    if name in __all__:
        from openprime import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a notebook completes."""
    return sorted([*globals(), *__all__])
