r"""Clock arithmetic: a chain of operations modulo 10, worked out line by line.

A prompt is a worksheet, its solution fills it in:

    Start four             +seven one
    +seven = ?             *three three
    *three = ?      ->     +five eight
    +five = ?              #### 8

Numbers are words, so that a line is three tokens of a usual tokenizer.

Every step needs one *skill*, a pair (operation, digit). Demonstrations come from a noisy demonstrator
with misconceptions: for some skills it writes one fixed wrong digit, with a probability of the skill's
own. Half of these are above one half, so that a model that imitates the demonstrator gets them wrong
under greedy decoding too, and reinforcement learning has something to repair besides noise. A
wrong digit is carried on, so that an early error spoils the answer.

Only the last line is ever verified. `check_steps` is an oracle for every line; it is for analysis.
"""

import random
import zlib
from dataclasses import dataclass

from openprime.config import DataConfig

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPERATIONS = (*(f"+{d}" for d in DIGITS[1:]), "*three", "*seven", "*nine")
"""All of them permute the digits, so an error never corrects itself."""
ACCURACY = 0.3
"""Approximate accuracy of the demonstrator's answers, at any horizon."""


@dataclass(frozen=True, slots=True)
class Misconception:
    """The wrong digit that the demonstrator writes for a skill, and its probability."""

    digit: int
    probability: float


def apply(operation: str, digit: int) -> int:
    """The true result, modulo 10."""
    operand = DIGITS.index(operation[1:])
    return (digit + operand if operation[0] == "+" else digit * operand) % 10


def misconceptions(horizon: int, seed: int) -> dict[tuple[str, int], Misconception]:
    """The demonstrator's misconceptions, skill -> error: as many as bring the whole chain to about `ACCURACY`.

    Half have probability .6 to .9 (greedy decoding is wrong), half .2 to .4 (it is right).
    """
    rng = random.Random(f"clock-misconceptions-{seed}")
    skills = [(operation, digit) for operation in OPERATIONS for digit in range(10)]
    rng.shuffle(skills)
    wanted = (1 - ACCURACY ** (1 / horizon)) * len(skills)  # expected wrong digits over all skills
    chosen: dict[tuple[str, int], Misconception] = {}
    for i, skill in enumerate(skills):
        probability = rng.uniform(0.6, 0.9) if i % 2 == 0 else rng.uniform(0.2, 0.4)
        if wanted <= 0:
            break
        wanted -= probability
        wrong = (apply(*skill) + rng.randrange(1, 10)) % 10
        chosen[skill] = Misconception(wrong, probability)
    return chosen


def rows(config: DataConfig) -> list[dict[str, str]]:
    """`config.limit` rows (1,000 if 0) of `config.split`; a row depends on (task_seed, split, index) alone."""
    flaws = misconceptions(config.horizon, config.task_seed)
    made = []
    for index in range(config.limit or 1000):
        rng = random.Random(f"clock-{config.task_seed}-{config.horizon}-{config.split}-{index}")
        while True:
            start = rng.randrange(10)
            operations = [rng.choice(OPERATIONS) for _ in range(config.horizon)]
            if _is_test(start, operations) == (config.split == "test"):
                break
        true, written, lines = start, start, []
        for operation in operations:
            true = apply(operation, true)
            flaw = flaws.get((operation, written))
            errs = flaw is not None and rng.random() < flaw.probability
            written = flaw.digit if flaw is not None and errs else apply(operation, written)
            lines.append(f"{operation} {DIGITS[written]}")
        made.append(
            {
                "prompt": "\n".join(
                    [f"Start {DIGITS[start]}", *(f"{operation} = ?" for operation in operations)]
                ),
                "answer": str(true),
                "response": "\n".join([*lines, f"#### {written}"]),
            }
        )
    return made


def _is_test(start: int, operations: list[str]) -> bool:
    """A fifth of all prompts belongs to the split `test`, whatever the seed."""
    return zlib.crc32(f"{start} {operations}".encode()) % 5 == 0


def check_steps(prompt: str, response: str) -> list[bool]:
    """Oracle step checker: True for each line of a response that follows from the line before. For analysis only.

    A line is judged by the digit of the line before, right or wrong, so an error counts once. A line
    that is missing a digit or has another operation than the worksheet's is wrong.
    """
    first, *asked = prompt.splitlines()
    digit: int | None = DIGITS.index(first.split()[1])
    heads = [line.split()[0] for line in asked] + ["####"]
    verdicts = []
    for i, line in enumerate(response.removesuffix("\n").split("\n") if response else []):
        parts = line.split()
        head = heads[i] if i < len(heads) else None
        names = [str(d) for d in range(10)] if head == "####" else DIGITS
        written = names.index(parts[1]) if len(parts) == 2 and parts[1] in names else None
        follows = head is not None and digit is not None and written is not None and parts[0] == head
        if follows and head is not None and digit is not None:
            follows = written == (digit if head == "####" else apply(head, digit))
        verdicts.append(follows)
        digit = written
    return verdicts
