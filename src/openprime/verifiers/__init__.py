"""Verifiers: from the text of a response to an outcome in [0, 1] and a reason."""

from openprime.types import Verifier
from openprime.verifiers.math import verify_math
from openprime.verifiers.user import load_user_verifier


def make_verifier(name: str) -> Verifier:
    """The verifier that `data.verifier` names: `math`, or a user's `module:function`.

    Raises ValueError for an unknown name, and for a module or function that is not there.
    """
    if name == "math":
        return verify_math
    if ":" in name:
        return load_user_verifier(name)
    raise ValueError(
        f"data.verifier: no verifier {name!r}; valid are math, and module:function "
        "(my_reward:score is the function score in my_reward.py of the current directory)"
    )
