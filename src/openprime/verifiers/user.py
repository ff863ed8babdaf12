"""Reward functions of the user's own, with TRL's signature."""

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from openprime.types import Prompt, UserError, Verdict, Verifier

REASONS = {0.0: "wrong", 1.0: "right"}


def load_user_verifier(name: str) -> Verifier:
    """The verifier around `module:function`, a function (prompts, completions, **columns) -> list of float.

    For the K responses to a prompt the function gets K times the prompt as the row has it (text or
    messages), the K completions (text, or one assistant message each where the prompt is messages),
    and every other field of the row K times. It returns K outcomes in [0, 1]; None leaves a response
    out. What it raises goes through, with a note. Modules in the current directory are found. Where the
    name is a class instead, an instance of it is the verifier: called with a Prompt and its responses'
    texts, it returns a Verdict each.

    Raises UserError for a bad name and for a module or function that is not there.
    """
    return user_verifier(_find(name), name)


def user_verifier(function: Callable[..., Any], name: str) -> Verifier:
    """The same around a function or class itself; `name` is for messages."""
    if isinstance(function, type):
        return function()

    def verify(prompt: Prompt, responses: Sequence[str]) -> list[Verdict]:
        count = len(responses)
        completions: list[Any] = list(responses)
        if not isinstance(prompt.messages, str):
            completions = [[{"role": "assistant", "content": text}] for text in responses]
        columns = {k: [v] * count for k, v in prompt.columns.items() if k not in ("prompt", "completion")}
        try:
            outcomes = function(prompts=[prompt.messages] * count, completions=completions, **columns)
        except Exception as error:
            error.add_note(f"raised by the verifier {name} on prompt {prompt.id}")
            raise
        where = f"data.verifier {name}, prompt {prompt.id}"
        if not isinstance(outcomes, Iterable) or isinstance(outcomes, str | dict):
            raise UserError(
                f"{where}: returned {outcomes!r}; expected a list of outcomes in [0, 1], one a completion"
            )
        outcomes = list(outcomes)
        if len(outcomes) != count:
            raise UserError(
                f"{where}: returned {len(outcomes)} outcomes {outcomes!r} for {count} completions"
            )
        return [_verdict(outcome, where) for outcome in outcomes]

    return verify


def _verdict(outcome: object, where: str) -> Verdict:
    if outcome is None:
        return Verdict(None, "no_verdict")
    value = float(outcome) if isinstance(outcome, Real) else math.nan
    if not 0 <= value <= 1:
        raise UserError(
            f"{where}: returned the outcome {outcome!r}; outcomes are numbers in [0, 1] (1 right, 0 wrong), "
            "or None to leave a response out"
        )
    return Verdict(value, REASONS.get(value, "partial"))


def _find(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    if not function_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(
            f"data.verifier: {name!r} is not of the form module:function "
            "(my_reward:score is the function score in my_reward.py of the current directory)"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # behind everything else: a user's file must not hide a library
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            error.add_note(f"while importing the verifier {name}")  # the user's module lacks a library
            raise
        raise UserError(
            f"data.verifier {name}: no module {error.name}, neither in {here} nor among the installed ones"
        ) from error
    function = vars(module).get(function_name)
    if not callable(function):
        origin = module.__spec__.origin if module.__spec__ else None
        raise UserError(f"data.verifier {name}: {origin or module_name} has no function {function_name}")
    return function
