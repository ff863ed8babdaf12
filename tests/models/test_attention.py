"""Packed tokens against rows that go through the model one by one, without padding and without sharing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openprime.models import logprobs
from openprime.models.attention import NAME, PACKS, attention, pack, packs
from openprime.models.logprobs import token_logprobs
from support.tiny_zoo import PLAIN, SCALED, VOCABULARY, make

PROMPTS = ([5, 6, 7], [5, 6, 7], [8], [5, 6, 7], [8], [5, 6])
"""The first, second and fourth rows share a prompt, the third and fifth another one; the last is a part of one."""
RESPONSES = (9, 2, 20, 1, 4, 3)


@pytest.fixture
def ids() -> Tensor:
    """[6, 21], right-padded with a token of the vocabulary."""
    g = torch.Generator().manual_seed(1)
    block = torch.full((6, 21), 3)
    for row, (prompt, length) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        response = torch.randint(VOCABULARY, (length,), generator=g)
        block[row, : len(prompt) + length] = torch.cat([torch.tensor(prompt), response])
    return block


@pytest.fixture
def mask() -> Tensor:
    t = torch.arange(21)
    ends = [(len(p), len(p) + n) for p, n in zip(PROMPTS, RESPONSES, strict=True)]
    return torch.stack([(t >= start) & (t < end) for start, end in ends])


def one_by_one(model, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities [B, T] from the model's own logits of each row alone."""
    values = torch.zeros(mask.shape)
    for b, t in mask.nonzero().tolist():
        logits = model(input_ids=ids[b : b + 1, :t], use_cache=False).logits[0, -1].float()
        values = values.index_put((torch.tensor(b), torch.tensor(t)), logits.log_softmax(-1)[ids[b, t]])
    return values


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_pack__gives_values_and_gradients_of_single_rows(name: str, ids: Tensor, mask: Tensor):
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2)) * mask
    ours, theirs = make(name), make(name)
    assert packs(ours)
    mine, other = token_logprobs(ours, ids, mask), one_by_one(theirs, ids, mask)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    (mine * weights).sum().backward()
    (other * weights).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (key, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4 * largest, msg=key)


def test_packs__only_architectures_that_the_test_above_tries():
    assert {make(name).config.model_type for name in (*PLAIN, *SCALED)} == PACKS


@pytest.mark.parametrize("name", ["llama", "gemma2, capped logits"])
def test_packs__a_model_with_another_attention_keeps_it_and_reads_padded_rows(
    name: str, ids: Tensor, mask: Tensor
):
    packed = token_logprobs(make(name), ids, mask)
    model = make(name)
    model.set_attn_implementation("eager")
    assert not packs(model)
    torch.testing.assert_close(token_logprobs(model, ids, mask), packed, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "eager"


def test_packs__a_saved_model_does_not_name_our_attention(tmp_path):
    model = make("llama")
    assert packs(model)
    assert model.config._attn_implementation == NAME
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


def test_pack__a_shared_prompt_is_read_once_and_neither_padding_nor_last_tokens(ids: Tensor, mask: Tensor):
    model, seen = make("qwen2"), []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    logprobs.has_plain_head(model)  # looks at four tokens
    seen.clear()
    token_logprobs(model, ids, mask)
    assert seen == [(1, (3 + 1 + 2) + sum(n - 1 for n in RESPONSES))]


def test_pack__masks_with_holes_and_rows_without_a_response():
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9], [1, 2, 3, 4, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 0, 1, 0], [0] * 6, [0, 0, 0, 1, 0, 0]]).bool()
    model = make("qwen3")
    torch.testing.assert_close(
        token_logprobs(model, ids, mask), one_by_one(model, ids, mask), rtol=1e-4, atol=1e-4
    )


@st.composite
def rows(draw) -> tuple[Tensor, Tensor]:
    """Up to six rows over three tokens, so that prompts often coincide."""
    width, count = draw(st.integers(2, 12)), draw(st.integers(1, 6))

    def block(values: st.SearchStrategy) -> Tensor:
        row = st.lists(values, min_size=width, max_size=width)
        return torch.tensor(draw(st.lists(row, min_size=count, max_size=count)))

    ids, mask = block(st.integers(0, 2)), block(st.booleans())
    mask[:, 0] = False
    mask[0, 1] = True  # one at least
    return ids, mask


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows())
def test_pack__keeps_every_token_that_counts_with_all_that_it_sees(batch: tuple[Tensor, Tensor]):
    """Against the definition: which tokens come before a True, where, and what stands to their left."""
    ids, mask = batch
    found = pack(ids, mask)
    tokens, positions = found.token_ids[0].tolist(), found.positions[0].tolist()
    contexts: dict[int, tuple[int, ...]] = {}  # of each place: the tokens up to it
    flat = []
    for block in found.rows:
        for row in block.tolist():
            flat += row
            for t in range(len(row)):
                if positions[row[t]] == t and row[t] not in contexts:
                    contexts[row[t]] = tuple(tokens[place] for place in row[: t + 1])
    assert sorted(contexts) == list(range(len(tokens)))  # every place is in a row
    assert [flat[i] for i in found.back.tolist()] == list(range(len(tokens)))
    before = [tuple(ids[b, :t].tolist()) for b, t in mask.nonzero().tolist()]
    assert [contexts[place] for place in found.places.tolist()] == before
    prompts, own = set(), 0
    for row, marks in zip(ids.tolist(), mask.tolist(), strict=True):
        if any(marks):
            start, end = marks.index(True), max(t for t, mark in enumerate(marks) if mark)
            prompts.add(tuple(row[:start]))
            own += end - start
    assert len(tokens) == sum(len(prompt) for prompt in prompts) + own


@pytest.mark.parametrize("masked", [False, True])
def test_attention__heads_that_share_a_key_head_see_what_they_saw_with_keys_of_their_own(masked: bool):
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, h, t, 8, generator=g) for h, t in ((6, 1), (2, 5), (2, 5)))
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:, None, None, None] if masked else None
    found, _ = attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    assert found.shape == (3, 1, 6, 8)
    for row in range(3):
        for head in range(6):
            scores = 0.3 * key[row, head // 3] @ query[row, head, 0]  # [5]
            if mask is not None:
                scores = scores.masked_fill(~mask[row, 0, 0], -math.inf)
            expected = scores.softmax(-1) @ value[row, head // 3]
            torch.testing.assert_close(found[row, 0, head], expected)
