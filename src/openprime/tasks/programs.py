r"""Small programs: a list of steps in words, to be written in Python and judged by running it.

    Program:              ```python
    add 3                 x = int(input())
    at most 7      ->     x += 3
    square                x = min(x, 7)
                          x *= x
                          print(x)
                          ```

As in clock arithmetic the demonstrations come from a noisy demonstrator with misconceptions: for some
skills, pairs of a step's verb and number, it writes the statement of another verb, with a probability of
the skill's own. Half of these are above one half, so that a model that imitates the demonstrator is wrong
under greedy decoding too. The outcome comes from tests (input and output), never from the program's text.
"""

import json
import random
import zlib

from openprime.config import DataConfig

STEPS = {
    "add": (lambda x, n: x + n, "x += {n}"),
    "subtract": (lambda x, n: x - n, "x -= {n}"),
    "times": (lambda x, n: x * n, "x *= {n}"),
    "remainder": (lambda x, n: x % n, "x %= {n}"),
    "share": (lambda x, n: x // n, "x //= {n}"),
    "at least": (lambda x, n: max(x, n), "x = max(x, {n})"),
    "at most": (lambda x, n: min(x, n), "x = min(x, {n})"),
    "negate": (lambda x, n: -x, "x = -x"),
    "absolute": (lambda x, n: abs(x), "x = abs(x)"),
    "square": (lambda x, n: x * x, "x *= x"),
}
"""Verb -> (its function of x and n, its Python statement)."""
TAKEN_FOR = {
    **{"add": "subtract", "subtract": "add", "times": "add", "remainder": "share", "share": "remainder"},
    **{"at least": "at most", "at most": "at least"},
    **{"negate": "absolute", "absolute": "negate", "square": "times"},
}
"""Verb -> the verb whose statement the demonstrator writes by mistake."""
ALONE = ("negate", "absolute", "square")
"""Verbs without a number."""
CASES = 6
"""Tests of a prompt."""
ACCURACY = 0.3
"""Approximate share of the demonstrator's programs that are written as asked, at any horizon."""

Skill = tuple[str, int]


def skills() -> list[Skill]:
    """All pairs of verb and number; the number is 2 for verbs without one."""
    return [(verb, n) for verb in STEPS for n in ((2,) if verb in ALONE else range(2, 10))]


def misconceptions(horizon: int, seed: int) -> dict[Skill, float]:
    """The demonstrator's misconceptions, skill -> probability of writing another statement."""
    rng = random.Random(f"programs-misconceptions-{seed}")
    every = skills()
    rng.shuffle(every)
    wanted = (1 - ACCURACY ** (1 / horizon)) * len(every)
    chosen: dict[Skill, float] = {}
    for i, skill in enumerate(every):
        if wanted <= 0:
            break
        chosen[skill] = rng.uniform(0.6, 0.9) if i % 2 == 0 else rng.uniform(0.2, 0.4)
        wanted -= chosen[skill]
    return chosen


def rows(config: DataConfig) -> list[dict[str, str]]:
    """`config.limit` rows (1,000 if 0) of `config.split`; a row depends on (task_seed, split, index) alone."""
    flaws, every = misconceptions(config.horizon, config.task_seed), skills()
    made = []
    for index in range(config.limit or 1000):
        rng = random.Random(f"programs-{config.task_seed}-{config.horizon}-{config.split}-{index}")
        while True:
            chosen = [rng.choice(every) for _ in range(config.horizon)]
            few_squares = sum(verb == "square" for verb, _ in chosen) <= 2  # numbers stay short
            if few_squares and _is_test(chosen) == (config.split == "test"):
                break
        inputs = rng.sample(range(-30, 31), CASES)
        outputs = []
        for x in inputs:
            for verb, n in chosen:
                x = STEPS[verb][0](x, n)
            outputs.append(str(x))
        written = [TAKEN_FOR[v] if rng.random() < flaws.get((v, n), 0.0) else v for v, n in chosen]
        lines = [STEPS[verb][1].format(n=n) for verb, (_, n) in zip(written, chosen, strict=True)]
        steps = [verb if verb in ALONE else f"{verb} {n}" for verb, n in chosen]
        tests = {"inputs": [f"{x}\n" for x in inputs], "outputs": outputs, "fn_name": None}
        made.append(
            {
                "prompt": "\n".join(["Program:", *steps]),
                "answer": json.dumps(tests),
                "response": "\n".join(["```python", "x = int(input())", *lines, "print(x)", "```"]),
                "verifier": "code",
            }
        )
    return made


def _is_test(chosen: list[Skill]) -> bool:
    """A fifth of all prompts belongs to the split `test`, whatever the seed."""
    return zlib.crc32(str(chosen).encode()) % 5 == 0
