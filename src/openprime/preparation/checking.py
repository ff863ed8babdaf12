"""What a model is asked about rows: open questions, solutions that agree, demonstrations (PRIME, appendix A)."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from openprime.config import PromptFormat
from openprime.data.chat import complete
from openprime.data.readers import Row
from openprime.data.steps import ACTIONS, split_steps
from openprime.data.template import Messages
from openprime.preparation.asking import Asker
from openprime.preparation.choices import options
from openprime.types import Prompt, Verdict
from openprime.verifiers.math import canonical_answer
from openprime.verifiers.pool import Pool

REWRITE = """Below is a multiple-choice question. Can it be asked without its options, so that whoever solves it \
arrives at one answer? Then reply with the question alone, rewritten to ask for the answer itself, with all that it \
says and without its options. Does it need its options, because it compares them or several answers would do? Then \
reply with the two words NEEDS OPTIONS.

{question}"""
SOLVE = """Solve the problem below step by step. Put the final answer into \\boxed{{}}. If it cannot be solved, as \
a condition is missing or conditions contradict each other, say which one, and end with \\boxed{{unsolvable}}.

{question}"""
NEEDS = "needs options"
UNSOLVABLE = re.compile(r"\W*(?:text)?\W*unsolvable\W*", re.IGNORECASE)
NUMBER = re.compile(r"\d+")
HEADER = re.compile(rf"\s*\[({'|'.join(ACTIONS)})\]")
NEXT = re.compile(rf"Next action:\s*\[({'|'.join(ACTIONS)})\]\s*\Z")


def question_of(row: Row) -> str:
    """The user's last text in a row's prompt."""
    prompt = row["prompt"]
    return (
        prompt
        if isinstance(prompt, str)
        else next(m["content"] for m in reversed(prompt) if m["role"] == "user")
    )


def rewritten(asker: Asker, rows: Sequence[Row], check: Callable[[], None]) -> list[str]:
    """The open question of each row that was a multiple choice, as the model writes it; empty where it cannot be."""
    asked = asker.ask([_chat(REWRITE, row["original"]) for row in rows], 1, check)
    return [fit(texts[0], question_of(row)) if texts else "" for row, texts in zip(rows, asked, strict=True)]


def fit(text: str, question: str) -> str:
    """A model's open question, where it has no options and every number of `question`; else empty."""
    text = text.strip()
    is_whole = set(NUMBER.findall(question)) <= set(NUMBER.findall(text))
    if (
        not text
        or NEEDS in text.lower()
        or options(text)
        or not is_whole
        or len(text) > 3 * len(question) + 200
    ):
        return ""
    return text


def solved(
    asker: Asker, pool: Pool, rows: Sequence[Row], samples: int, agreement: float, check: Callable[[], None]
) -> list[tuple[str, float, str]]:
    """(reason to drop it, share of right responses, note) of each row: N responses are compared with its reference.

    At least `agreement` of them must be right. Else it is unsolvable, or has another answer, where as many say so.
    """
    asked = asker.ask([_chat(SOLVE, question_of(row)) for row in rows], samples, check)
    verdicts = _judged(pool, rows, asked)
    return [agreed(texts, found, agreement) for texts, found in zip(asked, verdicts, strict=True)]


def agreed(texts: Sequence[str], verdicts: Sequence[Verdict], agreement: float) -> tuple[str, float, str]:
    """(reason, share of right responses, note), as `solved` has them, from the responses and their verdicts."""
    if not texts:
        return "refused", 0.0, ""
    share = sum(verdict.outcome == 1 for verdict in verdicts) / len(texts)
    if share >= agreement:
        return "", share, ""
    counts = Counter(
        canonical_answer(text) for text, v in zip(texts, verdicts, strict=True) if v.outcome != 1
    )
    unsolvable = sum(n for answer, n in counts.items() if answer and UNSOLVABLE.fullmatch(answer))
    del counts[None]
    said = ", ".join(f"{answer} ({n})" for answer, n in counts.most_common(3)) or "no answer"
    note = f"{share:.0%} of {len(texts)} responses are right; the others say: {said}"
    if unsolvable / len(texts) >= agreement:
        return "unsolvable", share, note
    if counts and counts.most_common(1)[0][1] / len(texts) >= agreement:
        return "other_answer", share, note
    return "no_agreement", share, note


def demonstrated(
    asker: Asker, pool: Pool, rows: Sequence[Row], responses: int, check: Callable[[], None]
) -> list[tuple[Messages, int, str]]:
    """(what was asked, number of the first response in the form of the seven actions that is right, or -1, why not)."""
    chats = action_chats(rows)
    asked = asker.ask(chats, responses, check)
    found = []
    for chat, texts, verdicts in zip(chats, asked, _judged(pool, rows, asked), strict=True):
        formed = [i for i, text in enumerate(texts) if in_form(text)]
        right = [i for i in formed if verdicts[i].outcome == 1]
        why = "" if right else "wrong" if formed else "not_in_form" if texts else "refused"
        found.append((chat, right[0] if right else -1, why))
    return found


def action_chats(rows: Sequence[Row]) -> list[Messages]:
    """What is asked for demonstrations: the published system message of the seven actions, the question, and the
    request for a boxed answer."""
    form = PromptFormat(template="eurus-actions")
    return [complete(row["prompt"], row["origin"], form, "math") for row in rows]


def in_form(text: str) -> bool:
    """True for steps that each begin with an action and name the next one at their end, the last of them OUTPUT."""
    steps = split_steps(text.strip(), "actions")
    named = [HEADER.match(step) for step in steps]
    if not all(named) or len(steps) < 2 or text.count("Next action:") != len(steps) - 1:
        return False
    actions = [match[1] for match in named if match]
    nexts = [NEXT.search(step) for step in steps]
    links = all(
        match and match[1] == after for match, (_, after) in zip(nexts, pairwise(actions), strict=False)
    )
    return links and actions[-1] == "OUTPUT" and nexts[-1] is None


def _chat(form: str, question: str) -> Messages:
    return [{"role": "user", "content": form.format(question=question)}]


def _judged(pool: Pool, rows: Sequence[Row], asked: Sequence[Sequence[str]]) -> list[list[Verdict]]:
    """The verdict of the mathematical verifier on each response."""
    prompts = [Prompt(row["origin"], (), question_of(row), row["answer"]) for row in rows]
    futures = [
        pool.submit(prompt, texts) if texts else [] for prompt, texts in zip(prompts, asked, strict=True)
    ]
    return [[future.result() for future in each] for each in futures]
