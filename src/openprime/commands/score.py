"""`openprime score`: the reward of every token, step and response of a file."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from openprime.config import ScoreConfig
from openprime.data.chat import encode_turns, read_messages, read_tools, suitable
from openprime.data.readers import PROMPT_FIELDS, Row, identity, known_fields
from openprime.data.records import (
    RecordedResponse,
    read_prompt,
    read_responses,
    read_rows,
    vocabulary_id,
)
from openprime.data.steps import split_steps
from openprime.data.template import Messages, Tools
from openprime.models.placement import Placement
from openprime.prime.prm import ImplicitPRM, Score, find_parts
from openprime.run.folder import check_folder, made_of, open_folder
from openprime.run.jsonl import fill_jsonl, resume_jsonl
from openprime.types import UserError

AT_A_TIME = 128
"""Responses that are scored between two looks for a signal."""


Item = tuple[str | Messages, Tools, str, list[RecordedResponse]]
"""(prompt, tools, name of its verifier, responses) of a row."""


def score(config: ScoreConfig) -> None:
    """Score every response in `config.file`; leaves scores.jsonl in `config.out`, the same rows with their rewards."""
    config.check()
    path, place, console = Path(config.file), Placement.of(config), Console()
    rows = read_rows(path)
    if Path(config.out).is_file():
        raise UserError(f"out: {config.out} is a file: name a folder")
    out = Path(config.out) / "scores.jsonl"
    if out.exists() and out.samefile(path):
        raise UserError(f"out: {out} is the file to read: name another folder")
    check_folder(config, "score")
    _, tokenizer = find_parts(config.prm, config.reference)
    vocabulary = vocabulary_id(tokenizer)
    names = [f"{path}, row {i + 1}" for i in range(len(rows))]
    items = [read_item(row, name, vocabulary) for row, name in zip(rows, names, strict=True)]
    marks = [{name: row[name] for name in (*PROMPT_FIELDS, "response") if name in row} for row in rows]
    resume_jsonl(out, marks)
    form = suitable(config.prompt, tokenizer)
    for note in place.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    prm = ImplicitPRM.from_pretrained(
        config.prm, config.reference, place.device, config.tokens_per_microbatch, place.bfloat16
    )
    open_folder(config, "score", (identity(json.dumps(row, sort_keys=True)) for row in rows), grows=True)

    def scored(places: range) -> list[Row]:
        given = [items[i][-1] for i in places]
        each = [(*items[i][:-1], r, names[i]) for i in places for r in items[i][-1]]
        prompts, tools, verifiers, responses, whose = zip(*each, strict=True)
        said, ended = [r.said for r in responses], [not r.truncated for r in responses]
        turns = encode_turns(prompts, said, whose, form, tokenizer, verifiers, tools, ended, texts=True)
        texts = [[*turn.texts] for turn in turns]
        steps = [
            r.steps or split_steps("".join(pieces), config.step_split)
            for r, pieces in zip(responses, texts, strict=True)
        ]
        prompt_ids, response_ids = [t.prompt_ids for t in turns], [t.response_ids for t in turns]
        scores = iter(prm.score_tokens(prompt_ids, response_ids, texts, steps))
        return [
            scored_row(rows[i], some, [next(scores) for _ in some])
            for i, some in zip(places, given, strict=True)
        ]

    size = max(1, AT_A_TIME // max(len(responses) for *_, responses in items))

    def make(places: range, check: Callable[[], None]) -> list[Row]:
        made: list[Row] = []
        for start in range(places.start, places.stop, size):
            check()
            made += scored(range(start, min(start + size, places.stop)))
        return made

    done = fill_jsonl(out, marks, "score", console, make)
    with made_of(out):
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
    field, value = read_prompt(row)
    if not field:
        raise UserError(f"{where}: no field {' or '.join(PROMPT_FIELDS)}; there are: {known_fields([row])}")
    prompt = read_messages(value, f"{where}, {field}")
    responses = read_responses(row, where, vocabulary)
    return prompt, read_tools(row, where), str(row.get("verifier") or "math"), responses


def scored_row(row: Row, given: list[RecordedResponse], scores: list[Score]) -> Row:
    """The row with its rewards: beside its one response, or in each of its responses."""
    results = [_result(score) for score in scores]
    if "responses" in row:
        return row | {"responses": [r.entry | result for r, result in zip(given, results, strict=True)]}
    (result,) = results
    if given[0].steps:
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
