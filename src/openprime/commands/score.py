"""`openprime score`: the reward of every token, step and response of a file."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openprime.config import ScoreConfig
from openprime.data.chat import Messages, encode_prompts, encode_responses, read_messages, suitable
from openprime.data.readers import read_json
from openprime.data.records import vocabulary_id
from openprime.data.steps import apart, split_steps, text_of_tokens, token_texts
from openprime.models.hub import pick_device
from openprime.prime.prm import ImplicitPRM, Score, find_parts
from openprime.run.jsonl import fill_jsonl, resume_jsonl
from openprime.run.run import check_folder, open_folder
from openprime.types import UserError

PROMPT_FIELDS = ("prompt", "question", "problem")
AT_A_TIME = 128
"""Responses that are scored between two looks for a signal."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to score."""

    text: str
    token_ids: list[int] | None = None
    """Its sampled tokens, where they are of the PRM's vocabulary."""
    steps: list[str] | None = None
    """Its steps, where the row has them; joined they are the text."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is scored of a row."""

    name: str
    prompt: str | Messages
    verifier: str
    answers: list[Answer]


def score(config: ScoreConfig) -> None:
    """Score every response in `config.file`; leaves scores.jsonl in `config.out`, the same rows with their rewards."""
    config.check()
    path, device, console = Path(config.file), pick_device(config.device), Console()
    if not path.is_file():
        raise UserError(f"file: there is no file {path}")
    if Path(config.out).is_file():
        raise UserError(f"out: {config.out} is a file: name a folder")
    out = Path(config.out) / "scores.jsonl"
    if out.exists() and out.samefile(path):
        raise UserError(f"out: {out} is the file to read: name another folder")
    check_folder(config, "score")
    rows = read_json(path, 0)
    if not rows:
        raise UserError(f"{path}: no rows")
    _, _, tokenizer = find_parts(config.prm, config.reference)
    vocabulary = vocabulary_id(tokenizer)
    items = [read_item(row, f"{path}, row {i + 1}", vocabulary) for i, row in enumerate(rows)]
    same_rows(resume_jsonl(out), rows, path, out)
    form = suitable(config.prompt, tokenizer)
    bfloat16 = config.dtype == "bfloat16"
    prm = ImplicitPRM.from_pretrained(
        config.prm, config.reference, device, config.tokens_per_microbatch, bfloat16
    )
    open_folder(config, "score")

    def scored(places: range) -> list[Row]:
        chosen = items[places.start : places.stop]
        names, prompts, verifiers = zip(*((i.name, i.prompt, i.verifier) for i in chosen), strict=True)
        encoded = encode_prompts(prompts, names, form, tokenizer, verifiers)
        prompt_ids = [ids for item, ids in zip(chosen, encoded, strict=True) for _ in item.answers]
        answers = [answer for item in chosen for answer in item.answers]
        encoded = encode_responses([answer.text for answer in answers], tokenizer)
        response_ids = [a.token_ids or ids for a, ids in zip(answers, encoded, strict=True)]
        texts = [
            token_texts(tokenizer, ids) if a.token_ids else text_of_tokens(tokenizer, a.text, ids)
            for a, ids in zip(answers, response_ids, strict=True)
        ]
        steps = [
            a.steps or split_steps("".join(pieces), config.step_split)
            for a, pieces in zip(answers, texts, strict=True)
        ]
        scores = iter(prm.score_tokens(prompt_ids, response_ids, texts, steps))
        return [
            scored_row(rows[i], [next(scores) for _ in item.answers])
            for i, item in zip(places, chosen, strict=True)
        ]

    size = max(1, AT_A_TIME // max(len(item.answers) for item in items))

    def make(places: range, check: Callable[[], None]) -> list[Row]:
        made: list[Row] = []
        for start in range(places.start, places.stop, size):
            check()
            made += scored(range(start, min(start + size, places.stop)))
        return made

    done = fill_jsonl(out, len(rows), "score", console, make)
    responses = [response for row in done for response in row.get("responses", [row])]
    rewards = torch.tensor([response["reward"] for response in responses], dtype=torch.float64)
    tokens = sum(len(response["tokens"]) for response in responses)
    console.print(
        f"{len(done)} rows, {len(responses)} responses, {tokens:,} tokens: "
        f"mean reward {rewards.mean():+.4f}, mean probability {rewards.sigmoid().mean():.3f}\n"
        f"written: {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def read_item(row: Row, where: str, vocabulary: str) -> Item:
    """What is scored of a row; `vocabulary` is the PRM's. Raises ValueError for what cannot be scored."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a character (a lone surrogate) in its text") from error
    field = next((name for name in PROMPT_FIELDS if row.get(name) is not None), None)
    if field is None:
        raise UserError(f"{where}: no field {' or '.join(PROMPT_FIELDS)}; there are: {', '.join(row)}")
    prompt = read_messages(row[field], f"{where}, {field}")
    return Item(where, prompt, str(row.get("verifier") or "math"), list(_answers(row, where, vocabulary)))


def _answers(row: Row, where: str, vocabulary: str) -> Iterator[Answer]:
    if "responses" in row:
        for i, given in enumerate(_filled_list(row["responses"], f"{where}, responses")):
            name = f"{where}, response {i + 1}"
            if not isinstance(given, dict):
                yield Answer(_text(given, name))
                continue
            ids = given.get("token_ids") if row.get("vocabulary") == vocabulary else None
            if not isinstance(ids, list | None) or not all(isinstance(token, int) for token in ids or []):
                raise UserError(f"{name}: token_ids: expected a list of numbers, found {ids!r:.80}")
            yield Answer(_text(given.get("text"), f"{name}, text"), ids)
    elif "response" in row:
        yield Answer(_text(row["response"], f"{where}, response"))
    elif "steps" in row:
        steps = [_text(step, f"{where}, steps") for step in _filled_list(row["steps"], f"{where}, steps")]
        steps = apart(steps)
        yield Answer("".join(steps), steps=steps)
    else:
        raise UserError(f"{where}: no field response, responses or steps; there are: {', '.join(row)}")


def _filled_list(value: object, where: str) -> list:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a list with at least one entry, found {value!r:.80}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text, found {value!r:.80}")
    return value


def same_rows(done: list[Row], rows: list[Row], path: Path, out: Path) -> None:
    """Raises ValueError where the rows that are scored already are not the first ones of the file."""
    prompts = [[row.get(name) for name in PROMPT_FIELDS] for row in rows]
    if [[row.get(name) for name in PROMPT_FIELDS] for row in done] != prompts[: len(done)]:
        raise UserError(f"{path} has changed since {out} was begun: score it into another --out")


def scored_row(row: Row, scores: list[Score]) -> Row:
    """The row with its rewards: beside its one response, or in each of its responses."""
    results = [_result(score) for score in scores]
    if "responses" in row:
        given = [r if isinstance(r, dict) else {"text": r} for r in row["responses"]]
        return row | {"responses": [r | result for r, result in zip(given, results, strict=True)]}
    (result,) = results
    if "response" not in row:
        del result["steps"]  # the row's own
    return row | result


def _result(score: Score) -> Row:
    return {
        "tokens": score.tokens,
        "token_rewards": [round(value, 6) for value in score.token_rewards],
        "steps": score.steps,
        "step_rewards": [round(value, 6) for value in score.step_rewards],
        "reward": round(score.reward, 6),
        "probability": round(score.probability, 6),
    }
