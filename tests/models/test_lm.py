"""A model with its circumstances against the functions it is made of; micro-batches on one rank and on several."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.config import LoRAConfig, LoRAOptimizerConfig, OptimizerConfig, PromptFormat
from openprime.models.hub import load_model, load_tokenizer, read_format
from openprime.models.lm import LM, Loader, cut, deal, micro_batches
from openprime.models.lora import add_adapter, merged_model, merged_tensors, trained_parameters
from openprime.models.placement import Placement
from openprime.models.tiny import build_model, build_tokenizer
from openprime.types import Batch
from support.ranks import become
from support.tiny_zoo import VOCABULARY, make

property_test = settings(max_examples=150, deadline=None, derandomize=True)
LENGTHS = [7, 12, 5, 9, 12, 3]


@pytest.fixture
def batch() -> Batch:
    """Six rows of different lengths, two to a group; two tokens of each are the prompt."""
    width = max(LENGTHS)
    at, lengths = torch.arange(width), torch.tensor(LENGTHS)
    mask = (at >= 2) & (at < lengths[:, None])
    return Batch(
        token_ids=torch.randint(VOCABULARY, (6, width), generator=torch.Generator().manual_seed(4)),
        response_mask=mask,
        lengths=lengths,
        outcome=torch.arange(6) % 2.0,
        group=torch.arange(6) // 2,
        logprobs=torch.zeros(6, width),
        step_end=torch.zeros_like(mask),
    )


def row_by_row(lm: LM, batch: Batch) -> torch.Tensor:
    """Log-probabilities [B, T] from the plain model's own logits of each row alone."""
    model, found = merged_model(lm.model, lm.adapter), torch.zeros(batch.token_ids.shape)
    with torch.no_grad():
        for b, t in batch.response_mask.nonzero().tolist():
            logits = model(input_ids=batch.token_ids[b : b + 1, :t], use_cache=False).logits[0, -1]
            found[b, t] = (logits / lm.temperature).log_softmax(-1)[batch.token_ids[b, t]]
    return found


@pytest.mark.parametrize("tokens", [1, 20, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_lm_logprobs__trap_07_come_in_the_batchs_order(tokens: int, temperature: float, batch: Batch):
    lm = LM(make("qwen2"), temperature=temperature, tokens_per_microbatch=tokens)
    found = lm.logprobs(batch)
    assert not found.requires_grad
    torch.testing.assert_close(found, row_by_row(lm, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 20, 1000])
def test_lm__forward_and_candidates_agree_and_come_in_the_batchs_order(tokens: int, batch: Batch):
    lm = LM(make("qwen2"), temperature=0.7, tokens_per_microbatch=tokens)
    ids, found = lm.likeliest(batch, 4)  # [B, T, 5]
    batch = replace(batch, candidates=ids)
    values, table = lm.forward(batch), lm.forward_candidates(batch)
    assert values.requires_grad
    assert table.requires_grad
    torch.testing.assert_close(values, row_by_row(lm, batch), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table[..., 0], values)
    torch.testing.assert_close(table.detach(), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lm.candidate_logprobs(batch), found, rtol=1e-4, atol=1e-5)
    everything = lm.likeliest(batch, VOCABULARY + 9)[1][batch.response_mask][:, 1:]
    assert everything.shape[1] == VOCABULARY
    torch.testing.assert_close(everything.exp().sum(-1), torch.ones(len(everything)))
    torch.testing.assert_close(everything[:, :4], found[batch.response_mask][:, 1:], rtol=1e-4, atol=1e-5)


def test_lm__bfloat16_of_its_placement_is_that_of_its_passes(batch: Batch):
    exact, narrow = (LM(make("qwen2"), Placement(bfloat16=b)).logprobs(batch) for b in (False, True))
    assert 1e-4 < float((exact - narrow).abs().max()) < 0.5


def test_lm__of_one_base_each_computes_with_its_own_adapter(batch: Batch):
    """A PRM and a reference on the policy's base; the policy's adapter is left in use."""
    pytest.importorskip("peft")
    model = make("qwen2 tied")
    for name in ("policy", "prm"):
        add_adapter(model, name, LoRAConfig(rank=2))
        with torch.no_grad():
            for parameter in trained_parameters(model, name).values():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    lms = {name: LM(model, adapter=name) for name in ("policy", "prm", "")}
    with torch.no_grad():
        before = model(input_ids=batch.token_ids).logits
        reference = LM(make("qwen2 tied")).logprobs(batch)
    found = {name: lm.logprobs(batch) for name, lm in lms.items()}
    assert torch.equal(found[""], reference)
    for name in ("policy", "prm"):
        torch.testing.assert_close(found[name], row_by_row(lms[name], batch), rtol=1e-4, atol=1e-4)
        assert float((found[name] - found[""]).abs().max()) > 0.01
        for (key, mine), (other, theirs) in zip(
            lms[name].tensors(), merged_tensors(model, name), strict=True
        ):
            assert key == other
            assert torch.equal(mine, theirs)
    with torch.no_grad():
        assert torch.equal(model(input_ids=batch.token_ids).logits, before)
    assert any(p.requires_grad for p in model.parameters())


def test_lm_save__remembers_how_the_model_was_asked(tmp_path: Path):
    """prompt_format.json: what evaluation needs to ask it in the same way."""
    tokenizer = build_tokenizer(["one two three"], 300)
    lm = LM(build_model(tokenizer, 8, 1, 2, 32, 0))
    asked = {"system": "Be brief.", "suffix": " Box it.", "template": "eurus", "chat_template": "auto"}
    lm.save(tmp_path, tokenizer, PromptFormat.model_validate(asked))
    assert json.loads((tmp_path / "prompt_format.json").read_text()) == asked
    assert read_format(str(tmp_path)) == PromptFormat.model_validate(asked)
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()
    for mine, saved in zip(lm.model.parameters(), load_model(str(tmp_path)).parameters(), strict=True):
        assert torch.equal(mine, saved)
    lm.save(tmp_path / "plain", tokenizer)
    assert read_format(str(tmp_path / "plain")) is None


# What a run loads


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Two folders with models."""
    for name in ("a", "b"):
        make("qwen2").save_pretrained(tmp_path / name)
    return [str(tmp_path / name) for name in ("a", "b")]


def test_loader__adapters_and_references_share_a_base_and_what_is_trained_whole_stands_apart(
    names: list[str],
):
    pytest.importorskip("peft")
    loader, (a, b) = Loader(Placement()), names
    adapters, whole = LoRAOptimizerConfig(lora=LoRAConfig(rank=2)), LoRAOptimizerConfig()
    policy, prm = loader.trained(a, "policy", adapters, 0.7), loader.trained(a, "prm", adapters)
    assert policy.model is prm.model is loader.reference(a).model
    assert (policy.adapter, prm.adapter, loader.reference(a).adapter) == ("policy", "prm", "")
    assert (policy.temperature, prm.temperature) == (0.7, 1.0)
    assert loader.reference(a, 99).tokens_per_microbatch == 99
    assert loader.trained(a, "policy", whole).model is not policy.model
    other = loader.trained(b, "prm", whole)
    assert other.adapter == loader.trained(b, "prm", OptimizerConfig()).adapter == ""
    assert loader.reference(b).model is loader.reference(b).model is not other.model
    assert all(p.requires_grad for p in other.model.parameters())
    assert not any(p.requires_grad for p in loader.reference(b).model.parameters())


# Micro-batches


@property_test
@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(1, 120), st.booleans(), st.data())
def test_cut__is_a_partition_within_the_budget(sizes: list[int], tokens: int, whole: bool, data):
    rows_of = st.lists(st.integers(0, 6), min_size=len(sizes), max_size=len(sizes))
    group = data.draw(st.none() | rows_of, "group")
    parts = cut(torch.tensor(sizes), tokens, None if group is None else torch.tensor(group), whole)
    rows = [part.tolist() for part in parts]
    assert sorted(row for part in rows for row in part) == list(range(len(sizes)))
    group_of = group if group is not None else list(range(len(sizes)))
    homes = [{group_of[row] for row in part} for part in rows]
    for part, groups in zip(rows, homes, strict=True):
        assert len(groups if whole else part) == 1 or sum(sizes[row] for row in part) <= tokens
    if whole:
        assert sum(len(groups) for groups in homes) == len(set(group_of))  # no group in two micro-batches
    in_order = [group_of[row] for part in rows for row in part]
    changes = sum(one != other for one, other in pairwise(in_order))
    assert changes == len(set(group_of)) - 1  # a group's rows follow one another


@property_test
@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(1, 120), st.booleans(), st.data())
def test_cut__with_padding_the_budget_holds_the_longest_row_as_often_as_there_are_rows(
    sizes: list[int], tokens: int, whole: bool, data
):
    rows_of = st.lists(st.integers(0, 6), min_size=len(sizes), max_size=len(sizes))
    group = data.draw(rows_of, "group")
    parts = cut(torch.tensor(sizes), tokens, torch.tensor(group), whole, padded=True)
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(sizes)))
    for part in (part.tolist() for part in parts):
        units = {group[row] for row in part} if whole else part
        assert len(units) == 1 or len(part) * max(sizes[row] for row in part) <= tokens


@pytest.mark.parametrize(
    ("lengths", "tokens", "group", "whole", "expected"),
    [
        ([3, 9, 1, 5, 3, 9, 4, 1], 20, None, False, [[1, 5], [0, 2, 3, 4, 6, 7]]),
        # Larger ones leave a CPU's cache; what is longer by itself still goes through.
        ([512] * 9, 16384, None, False, [[0, 1, 2, 3], [4, 5, 6, 7], [8]]),
        ([5000] * 2, 16384, None, False, [[0], [1]]),
        # Groups are cut where the budget ends, or stay whole.
        ([9, 1, 1, 9, 1], 9, [0, 1, 2, 0, 2], False, [[0], [3], [1, 2, 4]]),
        ([9, 1, 1, 9, 1], 9, [0, 1, 2, 0, 2], True, [[0, 3], [1, 2, 4]]),
    ],
)
def test_cut__by_hand(lengths: list[int], tokens: int, group, whole: bool, expected: list[list[int]]):
    parts = cut(torch.tensor(lengths), tokens, None if group is None else torch.tensor(group), whole)
    assert [sorted(part.tolist()) for part in parts] == expected


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(2, 9),
    st.integers(1, 200),
    st.booleans(),
)
@property_test
def test_micro_batches__all_ranks_have_as_many_and_together_the_batch(
    lengths: list[int], world: int, tokens: int, pairs: bool
):
    unit = torch.tensor([row // 2 for row in range(len(lengths))]) if pairs else None
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(world):
            become(patch, rank, world)
            found.append(micro_batches(torch.tensor(lengths), tokens, unit, pairs))
    assert len({len(own) for own in found}) == 1
    rows = [row for own in found for micro in own for row in micro.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    for micro in (micro for own in found for micro in own):
        held = sum(lengths[row] for row in micro.tolist())
        units = {int(unit[row]) for row in micro.tolist()} if unit is not None else set(micro.tolist())
        assert held <= tokens or len(units) == 1
    assert any(len(own[-1]) for own in found)  # somebody needs the last one
    if unit is not None:  # a pair is on one rank
        assert sum(len(unit[torch.cat(own)].unique()) for own in found) == len(unit.unique())


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(2, 9), st.integers(1, 8))
@property_test
def test_deal__gives_everything_out_with_units_kept_together_and_no_rank_far_ahead(
    lengths: list[int], world: int, units: int
):
    unit = [row % units for row in range(len(lengths))]
    with pytest.MonkeyPatch.context() as patch:
        become(patch, 0, world)
        shares = deal(torch.tensor(lengths), torch.tensor(unit))
        alone = deal(torch.tensor(lengths))
    assert len(shares) == world
    where = {unit[row]: rank for rank, rows in enumerate(shares) for row in rows}
    assert all(where[unit[row]] == rank for rank, rows in enumerate(shares) for row in rows)
    for dealt, own in ((shares, unit), (alone, range(len(lengths)))):
        assert sorted(row for rows in dealt for row in rows) == list(range(len(lengths)))
        tokens = [sum(lengths[row] for row in rows) for rows in dealt]
        largest = Counter()
        for row, length in enumerate(lengths):
            largest[own[row]] += length
        assert max(tokens) - min(tokens) <= max(largest.values())
