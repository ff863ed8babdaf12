"""From groups of responses to one right-padded batch."""

import torch

from openprime.data.chat import Turn
from openprime.types import Batch, Group, Prompt, Response


def collate(groups: list[Group], step_ends: frozenset[int], pad_id: int) -> Batch:
    """Put all verified responses of the groups into one batch, group by group.

    `step_ends` are the tokens that end a step of a response. Responses without an outcome are left out.
    """
    rows = [
        (g, group.prompt, r)
        for g, group in enumerate(groups)
        for r in group.responses
        if r.outcome is not None
    ]
    lengths = [len(prompt.token_ids) + len(r.token_ids) for _, prompt, r in rows]
    size, width = len(rows), max(lengths)
    token_ids = torch.full((size, width), pad_id, dtype=torch.long)
    response_mask = torch.zeros(size, width, dtype=torch.bool)
    logprobs = torch.zeros(size, width)
    step_end = torch.zeros(size, width, dtype=torch.bool)
    for b, (_, prompt, response) in enumerate(rows):
        start, end = len(prompt.token_ids), lengths[b]
        token_ids[b, :end] = torch.tensor(prompt.token_ids + response.token_ids)
        response_mask[b, start:end] = True
        logprobs[b, start:end] = torch.tensor(response.logprobs)
        step_end[b, start:end] = torch.tensor([token in step_ends for token in response.token_ids])
    return Batch(
        token_ids=token_ids,
        response_mask=response_mask,
        lengths=torch.tensor(lengths),
        outcome=torch.tensor([float(r.outcome or 0.0) for _, _, r in rows]),
        group=torch.tensor([g for g, _, _ in rows]),
        logprobs=logprobs,
        step_end=step_end,
    )


def collate_demonstrations(rows: list[Turn], pad_id: int) -> Batch:
    """Demonstrations as a batch: each is the only response of its prompt."""
    responses = [Response(row.response_ids, (0.0,) * len(row.response_ids), "", False, 1.0) for row in rows]
    prompts = [Prompt(str(i), row.prompt_ids, "", None) for i, row in enumerate(rows)]
    groups = [Group(prompt, (response,), 0) for prompt, response in zip(prompts, responses, strict=True)]
    return collate(groups, frozenset(), pad_id)


def tokens_containing(tokenizer, text: str) -> frozenset[int]:
    """All tokens of the vocabulary whose text contains `text`."""
    return frozenset(i for i in range(len(tokenizer)) if text in tokenizer.decode([i]))
