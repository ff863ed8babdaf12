"""`openprime score`: the reward of every token, step and response of a file."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from openprime.config import ScoreConfig
from openprime.data.chat import Messages, encode_prompts, encode_responses, read_messages, suitable
from openprime.data.readers import PROMPT_FIELDS, Row
from openprime.data.records import (
    RecordedResponse,
    read_prompt,
    read_responses,
    read_rows,
    vocabulary_id,
)
from openprime.data.steps import split_steps, text_of_tokens, token_texts
from openprime.models.placement import pick_device
from openprime.prime.prm import ImplicitPRM, Score, find_parts
from openprime.run.folder import check_folder, open_folder
from openprime.run.jsonl import fill_jsonl, resume_jsonl
from openprime.types import UserError

AT_A_TIME = 128
"""Responses that are scored between two looks for a signal."""


Item = tuple[str | Messages, str, list[RecordedResponse]]
"""(prompt, name of its verifier, responses) of a row."""


def score(config: ScoreConfig) -> None:
    """Score every response in `config.file`; leaves scores.jsonl in `config.out`, the same rows with their rewards."""
    config.check()
    path, device, console = Path(config.file), pick_device(config.device), Console()
    rows = read_rows(path)
    if Path(config.out).is_file():
        raise UserError(f"out: {config.out} is a file: name a folder")
    out = Path(config.out) / "scores.jsonl"
    if out.exists() and out.samefile(path):
        raise UserError(f"out: {out} is the file to read: name another folder")
    check_folder(config, "score")
    _, _, tokenizer = find_parts(config.prm, config.reference)
    vocabulary = vocabulary_id(tokenizer)
    names = [f"{path}, row {i + 1}" for i in range(len(rows))]
    items = [read_item(row, name, vocabulary) for row, name in zip(rows, names, strict=True)]
    marks = [{name: row[name] for name in (*PROMPT_FIELDS, "response") if name in row} for row in rows]
    resume_jsonl(out, marks)
    form = suitable(config.prompt, tokenizer)
    bfloat16 = config.dtype == "bfloat16"
    prm = ImplicitPRM.from_pretrained(
        config.prm, config.reference, device, config.tokens_per_microbatch, bfloat16
    )
    open_folder(config, "score")

    def scored(places: range) -> list[Row]:
        chosen = items[places.start : places.stop]
        prompts, verifiers, given = zip(*chosen, strict=True)
        encoded = encode_prompts(prompts, names[places.start : places.stop], form, tokenizer, verifiers)
        prompt_ids = [ids for ids, some in zip(encoded, given, strict=True) for _ in some]
        responses = [response for some in given for response in some]
        encoded = encode_responses([r.text for r in responses], tokenizer)
        response_ids = [r.token_ids or ids for r, ids in zip(responses, encoded, strict=True)]
        texts = [
            token_texts(tokenizer, ids) if r.token_ids else text_of_tokens(tokenizer, r.text, ids)
            for r, ids in zip(responses, response_ids, strict=True)
        ]
        steps = [
            r.steps or split_steps("".join(pieces), config.step_split)
            for r, pieces in zip(responses, texts, strict=True)
        ]
        scores = iter(prm.score_tokens(prompt_ids, response_ids, texts, steps))
        return [
            scored_row(rows[i], some, [next(scores) for _ in some])
            for i, some in zip(places, given, strict=True)
        ]

    size = max(1, AT_A_TIME // max(len(responses) for _, _, responses in items))

    def make(places: range, check: Callable[[], None]) -> list[Row]:
        made: list[Row] = []
        for start in range(places.start, places.stop, size):
            check()
            made += scored(range(start, min(start + size, places.stop)))
        return made

    done = fill_jsonl(out, marks, "score", console, make)
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
    """The responses of a row; `vocabulary` is the PRM's. Raises UserError for what cannot be scored."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a character (a lone surrogate) in its text") from error
    field, value = read_prompt(row)
    if not field:
        raise UserError(f"{where}: no field {' or '.join(PROMPT_FIELDS)}; there are: {', '.join(row)}")
    prompt = read_messages(value, f"{where}, {field}")
    return prompt, str(row.get("verifier") or "math"), read_responses(row, where, vocabulary)


def scored_row(row: Row, given: list[RecordedResponse], scores: list[Score]) -> Row:
    """The row with its rewards: beside its one response, or in each of its responses."""
    results = [_result(score) for score in scores]
    if "responses" in row:
        return row | {"responses": [r.entry | result for r, result in zip(given, results, strict=True)]}
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
