"""Token log-probabilities against the form that holds all logits and leaves the gradient to autograd."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openprime.models import attention, logprobs
from openprime.models.attention import Blocks, Sequences, packs
from openprime.models.logprobs import (
    candidate_logprobs,
    has_plain_head,
    lay_out,
    likeliest_logprobs,
    pack,
    selected_logprobs,
    token_logprobs,
    with_likeliest,
)
from openprime.models.placement import Placement
from support import architectures
from support.host_reads import ReadsWithin
from support.tiny_zoo import PLAIN, SCALED, VOCABULARY, logits_of_head, make
from support.varlen import plain_varlen_attn

property_test = settings(max_examples=150, deadline=None, derandomize=True)
ALL = (True, True, True)


def naive(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float) -> Tensor:
    """The definition, with every logit held."""
    logits = hidden @ weight.T + (0 if bias is None else bias)
    return (logits / temperature).log_softmax(-1).gather(-1, ids)


def problem(
    tokens: int, width: int, vocabulary: int, bias: bool, count=1, dtype=torch.float32, needs=ALL, seed=0
):
    """Hidden states, weight and bias, leaves that need gradients or not; ids of each token; an incoming gradient."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(tokens, width), (vocabulary, width), (vocabulary,)]
    leaves = [torch.randn(*shape, generator=g, dtype=dtype) for shape in shapes]
    hidden, weight, b = (leaf.requires_grad_(need) for leaf, need in zip(leaves, needs, strict=True))
    ids = torch.randint(vocabulary, (tokens, count), generator=g)
    return hidden, weight, b if bias else None, ids, torch.randn(tokens, count, generator=g, dtype=dtype)


def solved(function, temperature: float, *shape, **how) -> list[Tensor | None]:
    """[values, gradient of the hidden states, of the weight, of the bias]; None where there is none."""
    hidden, weight, bias, ids, grad = problem(*shape, **how)
    values = function(hidden, weight, bias, ids, temperature)
    values.backward(grad)
    return [values.detach(), hidden.grad, weight.grad, None if bias is None else bias.grad]


@property_test
@given(
    st.tuples(
        st.integers(1, 23), st.integers(1, 16), st.integers(1, 50), st.booleans(), st.sampled_from([1, 2, 5])
    ),
    st.sampled_from([1.0, 0.7, 2.0]),
    st.integers(1, 60) | st.sampled_from([3 * 50, 7 * 50 + 49, 2**24]),
    st.integers(0, 90) | st.sampled_from([23 * 20, 2**24]),
    st.tuples(*[st.booleans()] * 3),
    st.sampled_from([(torch.float64, 1e-10), (torch.float32, 3e-5)]),
)
def test_selected_logprobs__values_and_gradients_are_the_definitions_in_any_blocks_and_room(
    shape: tuple, temperature: float, block: int, room: int, needs: tuple, precision: tuple
):
    """What needs no gradient gets none: a frozen head, or a frozen transformer under a trained head.

    A token's ids may repeat, as they must where the vocabulary has fewer entries.
    """
    assume(any(needs[:2]) or (needs[2] and shape[3]))
    dtype, tolerance = precision
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "BLOCK_ELEMENTS", block)
        patch.setattr(logprobs, "KEPT_ELEMENTS", room)
        ours, theirs = (
            solved(function, temperature, *shape, dtype=dtype, needs=needs)
            for function in (selected_logprobs, naive)
        )
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tokens", [1, 128, 300])
@pytest.mark.parametrize("needs", [ALL, (True, False, False), (False, True, False)])
@pytest.mark.parametrize("tf32", [False, True])
def test_selected_logprobs__in_chunks_of_tokens_as_on_a_gpu(
    tokens: int, needs: tuple, tf32: bool, monkeypatch: pytest.MonkeyPatch
):
    """Values and gradients are the definition's, whatever the number of chunks."""
    shape: tuple = (tokens, 8, 40, True, 3)
    theirs = solved(naive, 0.7, *shape, dtype=torch.float64, needs=needs)
    monkeypatch.setattr(logprobs, "by_tokens", lambda device: True)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 1)  # of 128 tokens
    ours = solved(
        lambda *inputs: selected_logprobs(*inputs, tf32), 0.7, *shape, dtype=torch.float64, needs=needs
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert torch.get_float32_matmul_precision() == "highest"  # within alone


def test_with_likeliest__in_chunks_of_tokens_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    hidden, weight, bias, ids, _ = problem(300, 8, 40, True, 2, torch.float64)
    expected = with_likeliest(hidden, weight, bias, ids, 5, 0.7)
    monkeypatch.setattr(logprobs, "by_tokens", lambda device: True)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(with_likeliest(hidden, weight, bias, ids, 5, 0.7), expected)


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "opt"])
def test_token_logprobs__with_a_layout_the_host_reads_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    """Neither in the forward pass nor in the backward pass, as on a GPU; packed or padded."""
    model = make(name) if name != "opt" else architectures.make("OPT")
    monkeypatch.setattr(logprobs, "by_tokens", lambda device: True)
    token_logprobs(model, IDS, MASK)  # what is found out once is found
    layout = lay_out(model, IDS, MASK)
    assert (layout.packing is None) == (name == "opt")
    with ReadsWithin() as reads:
        values = token_logprobs(model, IDS, MASK, layout=layout)
        values.sum().backward()
    assert not reads.found
    torch.testing.assert_close(values, token_logprobs(model, IDS, MASK))


def test_selected_logprobs__is_right_far_out_where_exp_would_overflow():
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    values = selected_logprobs(hidden, torch.tensor([[1.0], [0.0]]), None, torch.tensor([[1], [1]]))
    assert values.tolist() == [[-1000.0], [0.0]]
    values.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[-1.0], [0.0]]


def test_selected_logprobs__changes_none_of_its_inputs():
    """Autograd may share an incoming gradient between several consumers."""
    hidden, weight, bias, ids, grad = problem(6, 4, 5, True, 2)
    kept = [hidden.detach().clone(), weight.detach().clone(), grad.clone()]
    selected_logprobs(hidden, weight, bias, ids, 0.7).backward(grad)
    torch.testing.assert_close([hidden.detach(), weight.detach(), grad], kept, rtol=0, atol=0)


def test_selected_logprobs__gradients_in_bfloat16_change_no_value_and_little_of_a_gradient():
    exact = solved(selected_logprobs, 0.7, 40, 16, 50, True)
    ours = solved(lambda *inputs: selected_logprobs(*inputs, bfloat16=True), 0.7, 40, 16, 50, True)
    for i in (0, 3):  # the bias's gradient is a sum
        assert torch.equal(ours[i], exact[i])
    for mine, other in zip(ours[1:3], exact[1:3], strict=True):
        assert mine.dtype == torch.float32
        assert 0 < float((mine - other).norm() / other.norm()) < 1e-2


class Logits(TorchDispatchMode):
    """Notes [rows, columns] of the products that have a row for each of `tokens` tokens, but for `width` columns."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width, self.made = tokens, width, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if str(func).startswith(("aten.mm", "aten.addmm")) and found.shape[1] != self.width:
            self.made += [found.shape[1]] if found.shape[0] == self.tokens else []
        return found


@pytest.mark.parametrize(
    ("block", "room", "blocks", "again"),
    [
        (4 * 40 + 1, 159, [4, 4, 3], [4, 4, 3]),
        (4 * 40 + 1, 160, [4, 4, 3], [4, 3]),
        (4 * 40 + 1, 320, [4, 4, 3], [3]),
        (4 * 40 + 1, 439, [4, 4, 3], [3]),
        (4 * 40 + 1, 440, [4, 4, 3], []),
        (5, 0, [1] * 11, [1] * 11),  # more tokens than a block: an entry of the vocabulary at a time
    ],
)
def test_selected_logprobs__blocks_are_kept_while_there_is_room_and_made_again_after(
    block: int, room: int, blocks: list[int], again: list[int], monkeypatch: pytest.MonkeyPatch
):
    """What is saved for the backward pass otherwise is the inputs and a few numbers a token."""
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", room)
    hidden, weight, bias, ids, grad = problem(40, 5, 11, True)
    saved: list[int] = []
    with Logits(40, 5) as logits:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            values = selected_logprobs(hidden, weight, bias, ids)
        assert logits.made == blocks
        values.backward(grad)
    assert logits.made[len(blocks) :] == again
    kept = 40 * (sum(blocks) - sum(again))
    assert kept < sum(saved) <= kept + hidden.numel() + weight.numel() + 11 + (2 + len(blocks)) * 40


@property_test
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 50), st.booleans(), st.integers(0, 2)),
    st.sampled_from([1.0, 0.7]),
    st.integers(1, 99) | st.just(2**24),
    st.integers(1, 60),
)
def test_with_likeliest__are_the_largest_of_the_definitions_in_any_blocks(
    shape: tuple, temperature: float, block: int, likeliest: int
):
    """Behind the ids that are asked for; the whole vocabulary, in order, where more are."""
    hidden, weight, bias, ids, _ = problem(*shape, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "BLOCK_ELEMENTS", block)
        found, values = with_likeliest(hidden, weight, bias, ids, likeliest, temperature)
    every = torch.arange(shape[2]).expand(shape[0], -1)
    order = naive(hidden, weight, bias, every, temperature).sort(descending=True).indices[:, :likeliest]
    expected = torch.cat([ids, order], -1)
    assert torch.equal(found, expected)
    torch.testing.assert_close(values, naive(hidden, weight, bias, expected, temperature), rtol=0, atol=1e-10)
    assert not values.requires_grad


@pytest.mark.parametrize("room", [0, 2**24])
def test_selected_logprobs__of_candidates_no_tensor_has_a_row_for_each_token_and_a_column_for_each_entry(
    room: int, monkeypatch: pytest.MonkeyPatch
):
    """But for what is kept in `room`, whatever is made in both passes is a block, or as large as the inputs."""
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", 40 * 50)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", room)
    hidden, weight, bias, ids, grad = problem(40, 5, 1000, True, 7)
    with Sizes() as sizes:
        with_likeliest(hidden, weight, bias, ids, 7)
        selected_logprobs(hidden, weight, bias, ids).backward(grad)
    assert 40 * 50 <= max(sizes.made) <= 5 * 1000


class Sizes(TorchDispatchMode):
    """Notes the elements of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.made += [t.numel() for t in (found if isinstance(found, tuple | list) else [found])]
        return found


# Whole models

PROMPTS, RESPONSES, WIDTH = ([5, 6, 7], [5, 6, 7], [8], [5, 6, 7], [8], [5, 6]), (9, 2, 20, 1, 4, 3), 21
"""The first, second and fourth rows share a prompt, the third and fifth another one; the last is a part of one."""
STARTS = [len(prompt) for prompt in PROMPTS]
LENGTHS = [start + count for start, count in zip(STARTS, RESPONSES, strict=True)]
MASK = torch.tensor([[s <= t < n for t in range(WIDTH)] for s, n in zip(STARTS, LENGTHS, strict=True)])
IDS = torch.randint(VOCABULARY, (6, WIDTH), generator=torch.Generator().manual_seed(1))
for row, prompt, length in zip(IDS, PROMPTS, LENGTHS, strict=True):
    row[: len(prompt)] = torch.tensor(prompt)
    row[length:] = 3  # padding is a token of the vocabulary
WEIGHTS = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(2))


def own_distributions(model, temperature: float, token_ids: Tensor = IDS, mask: Tensor = MASK) -> Tensor:
    """[N, V] of the response tokens, from the model's own logits row by row, with attention as its paper has it."""
    model.set_attn_implementation("eager")
    found = []
    for ids, marks in zip(token_ids, mask, strict=True):
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float() / temperature
        found.append(logits.log_softmax(-1)[marks.nonzero()[:, 0] - 1])
    return torch.cat(found)


def own_logprobs(model, temperature: float, ids: Tensor = IDS, mask: Tensor = MASK) -> Tensor:
    """[B, T] likewise."""
    values = own_distributions(model, temperature, ids, mask).gather(-1, ids[mask][:, None])[:, 0]
    return torch.zeros(mask.shape).masked_scatter(mask, values)


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs__every_architecture_agrees_with_its_own_logits(name: str, temperature: float):
    model = make(name)
    ours, theirs = token_logprobs(model, IDS, MASK, temperature), own_logprobs(model, temperature)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert bool((ours[~MASK] == 0).all())
    assert bool((ours[MASK] < 0).all())
    assert theirs[MASK].std() > 0.5  # the models say something


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_token_logprobs__every_architecture_has_the_gradient_of_its_own_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """Tied embeddings get the gradient of both of their uses."""
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", 4 * VOCABULARY)
    ours, theirs = make(name), make(name)
    (token_logprobs(ours, IDS, MASK, 0.7) * WEIGHTS).sum().backward()
    (own_logprobs(theirs, 0.7) * WEIGHTS).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None, key
        assert other.grad is not None, key
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4 * largest, msg=key)


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_likeliest_logprobs__are_those_of_every_architectures_own_logits(name: str, temperature: float):
    """The token itself and all of the vocabulary, or a few; asked for by name they are the same, with a gradient."""
    model = make(name)
    whole, own = own_distributions(model, temperature), IDS[MASK][:, None]
    for count in (VOCABULARY, 5):
        ids, values = likeliest_logprobs(model, IDS, MASK, count, temperature)
        expected = torch.cat([whole.gather(-1, own), whole.topk(count).values], -1)
        torch.testing.assert_close(values[MASK], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values[MASK], whole.gather(-1, ids[MASK]), rtol=1e-4, atol=1e-4)
        assert torch.equal(ids[MASK][:, :1], own)
        assert not ids[~MASK].any()
        assert not values[~MASK].any()
        again = candidate_logprobs(model, IDS, MASK, ids, temperature)
        assert again.requires_grad
        torch.testing.assert_close(again.detach(), values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2 tied", *SCALED])
def test_candidate_logprobs__have_the_gradient_of_the_models_own_logits(name: str):
    ours, theirs, draw = make(name), make(name), torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (*MASK.shape, 4), generator=draw)
    slopes = torch.randn(ids.shape, generator=draw)
    (candidate_logprobs(ours, IDS, MASK, ids, 0.7) * slopes).sum().backward()
    (own_distributions(theirs, 0.7).gather(-1, ids[MASK]) * slopes[MASK]).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4 * largest, msg=key)


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_has_plain_head__not_where_logits_are_scaled_or_capped(name: str):
    assert has_plain_head(make(name)) == (name in PLAIN)


def test_has_plain_head__a_cap_is_recognised_while_the_logits_are_still_small():
    """A capped model's first weights give logits that the cap leaves alone; its trained ones do not."""
    model = make("gemma2", initializer_range=0.02, final_logit_softcapping=30.0)
    token_logprobs(model, IDS, MASK)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(100)  # as training would
    torch.testing.assert_close(
        token_logprobs(model, IDS, MASK), own_logprobs(model, 1.0), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "gemma2, capped logits"])
def test_token_logprobs__a_model_with_another_attention_keeps_it_and_reads_padded_rows(name: str):
    model = make(name)
    model.set_attn_implementation("eager")
    assert not packs(model)
    ours = token_logprobs(model, IDS, MASK)
    torch.testing.assert_close(ours, token_logprobs(make(name), IDS, MASK), rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "eager"


def test_token_logprobs__padding_changes_nothing():
    model, mask = make("qwen2"), torch.nn.functional.pad(MASK, (0, 3))
    wider = torch.nn.functional.pad(IDS, (0, 3), value=9)
    other = torch.where(torch.arange(WIDTH + 3) < torch.tensor(LENGTHS)[:, None], wider, 17)
    values = [token_logprobs(model, block, mask) for block in (wider, other)]
    assert torch.equal(values[0], values[1])
    torch.testing.assert_close(values[0][:, :WIDTH], token_logprobs(model, IDS, MASK), rtol=1e-5, atol=1e-5)


def test_token_logprobs__masks_with_holes_and_rows_without_a_response():
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9], [1, 2, 3, 4, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 0, 1, 0], [0] * 6, [0, 0, 0, 1, 0, 0]]).bool()
    model = make("qwen3")
    torch.testing.assert_close(
        token_logprobs(model, ids, mask), own_logprobs(model, 1.0, ids, mask), rtol=1e-4, atol=1e-4
    )


def test_token_logprobs__prompts_and_padding_cost_no_work_in_the_head():
    model = make("gpt2 tied")
    assert has_plain_head(model)  # tries four tokens
    for tokens, blocks in ((int(MASK.sum()), [VOCABULARY]), (MASK.numel(), [])):
        with Logits(tokens, 32) as head:
            token_logprobs(model, IDS, MASK).sum().backward()
        assert [
            columns for columns in head.made if columns == VOCABULARY
        ] == blocks  # kept for the backward pass


def test_token_logprobs__a_frozen_model_gives_the_same_values():
    model = make("llama tied")
    free = token_logprobs(model, IDS, MASK).detach()
    frozen = token_logprobs(model.requires_grad_(False), IDS, MASK)
    assert not frozen.requires_grad
    assert torch.equal(free, frozen)


def test_token_logprobs__without_response_tokens_are_zeros_with_a_graph():
    values = token_logprobs(make("llama"), IDS, torch.zeros_like(MASK))
    assert torch.equal(values, torch.zeros(MASK.shape))
    values.sum().backward()


def test_token_logprobs__an_even_distribution_gives_log_one_over_the_vocabulary():
    model = make("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    values = token_logprobs(model, IDS, MASK)[MASK]
    torch.testing.assert_close(values, torch.full_like(values, -math.log(VOCABULARY)))


@pytest.mark.parametrize("name", ["llama", "gpt2 tied", *SCALED])
def test_token_logprobs__trap_11_logits_are_float32_although_the_transformer_runs_in_bfloat16(name: str):
    """Against exact logits of the pass's own hidden states: rounding logits to bfloat16 costs 1e-2."""
    model, states = make(name), []
    exact = token_logprobs(model, IDS, MASK)[MASK].detach()
    model.base_model.register_forward_hook(lambda *found: states.append(found[-1].last_hidden_state))
    with torch.no_grad(), Placement(bfloat16=True).autocast():
        ours = token_logprobs(model, IDS, MASK)[MASK]
        ids, whole = (found[MASK] for found in likeliest_logprobs(model, IDS, MASK, VOCABULARY))
    assert torch.equal(*states)
    hidden = states[0][0, pack(IDS, MASK).places]  # [N, D]
    with torch.no_grad():
        logits = logits_of_head(model, hidden.double())  # [N, V]
    expected = logits.log_softmax(-1).gather(-1, IDS[MASK][:, None])[:, 0]
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.double(), logits.log_softmax(-1).gather(-1, ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, exact, atol=1e-4)  # the transformer did run in bfloat16
    assert (ours.bfloat16().float() == ours).float().mean() < 0.2


def test_token_logprobs__trap_11_a_bfloat16_pass_keeps_float32_weights_and_gradients():
    found = []
    for bfloat16 in (True, False):
        model = make("qwen2 tied")
        with Placement(bfloat16=bfloat16).autocast():
            token_logprobs(model, IDS, MASK).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    mine, other = found
    assert mine.dtype == torch.float32
    assert len(mine) == len(other)
    assert 0.99 < float(torch.nn.functional.cosine_similarity(mine, other, dim=0)) < 1


# Packing


def test_pack__what_prompts_share_is_read_once_and_neither_padding_nor_last_tokens():
    model, seen = make("qwen2"), []
    has_plain_head(model)  # looks at four tokens
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    token_logprobs(model, IDS, MASK)
    assert seen == [(1, (3 + 1) + sum(n - 1 for n in RESPONSES))]


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


@property_test
@given(rows())
def test_pack__keeps_every_token_that_counts_with_all_that_it_sees(batch: tuple[Tensor, Tensor]):
    """Against the definition: which tokens come before a True, where, and what stands to their left."""
    ids, mask = batch
    found = pack(ids, mask)
    tokens, positions = found.token_ids[0].tolist(), found.positions[0].tolist()
    contexts: dict[int, tuple[int, ...]] = {}  # of each place: the tokens up to it
    flat = []
    assert isinstance(found.rows, Blocks)
    for block in found.rows.rows:
        for row in block.tolist():
            flat += row
            for t in range(len(row)):
                if positions[row[t]] == t and row[t] not in contexts:
                    contexts[row[t]] = tuple(tokens[place] for place in row[: t + 1])
    assert sorted(contexts) == list(range(len(tokens)))  # every place is in a row
    assert [flat[i] for i in found.rows.back.tolist()] == list(range(len(tokens)))
    before = [tuple(ids[b, :t].tolist()) for b, t in mask.nonzero().tolist()]
    assert [contexts[place] for place in found.places.tolist()] == before
    prompts, own = set(), 0
    for row, marks in zip(ids.tolist(), mask.tolist(), strict=True):
        if any(marks):
            start, end = marks.index(True), max(t for t, mark in enumerate(marks) if mark)
            prompts |= {tuple(row[:t]) for t in range(1, start + 1)}
            own += end - start
    assert len(tokens) == len(prompts) + own


@property_test
@given(rows())
def test_pack__in_sequences_every_query_sees_what_stands_to_its_left(batch: tuple[Tensor, Tensor]):
    """Of rows with fewer queries than keys the last query is at the last key. Against the tokens of the batch."""
    ids, mask = batch
    found, rows = pack(ids, mask, sequences=True), pack(ids, mask).rows
    plain = pack(ids, mask)
    assert torch.equal(found.token_ids, plain.token_ids)
    assert torch.equal(found.positions, plain.positions)
    assert torch.equal(found.places, plain.places)
    assert isinstance(rows, Blocks)
    sequences = found.rows
    assert isinstance(sequences, Sequences)
    tokens = found.token_ids[0].tolist()
    keys = list(range(len(tokens))) if sequences.keys is None else sequences.keys.tolist()
    new, seen = sequences.new.tolist(), sequences.seen.tolist()
    assert (new[-1], seen[-1]) == (len(tokens), len(keys))
    contexts = {}  # of each place: the tokens up to it
    for i in range(len(new) - 1):
        queries, own = new[i + 1] - new[i], keys[seen[i] : seen[i + 1]]
        assert 0 < queries <= sequences.most_new
        assert len(own) <= sequences.most_seen
        for j in range(queries):
            sees = own[: len(own) - queries + j + 1]
            assert sees[-1] == new[i] + j  # itself
            contexts[new[i] + j] = tuple(tokens[place] for place in sees)
    before = [tuple(ids[b, :t].tolist()) for b, t in mask.nonzero().tolist()]
    assert [contexts[place] for place in found.places.tolist()] == before
    assert {len(contexts[place]) - 1 for place in contexts} == set(found.positions[0].tolist())


UNCAPPED = [name for name in (*PLAIN, *SCALED) if "gemma2" not in name] + ["gemma2 uncapped"]


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Models attend as on a GPU, by loops; shapes of the queries and keys that they hand over."""
    handed: list[tuple] = []

    def record(query: Tensor, key: Tensor, *args, **how) -> Tensor:
        handed.append((tuple(query.shape), tuple(key.shape), query.dtype))
        return plain_varlen_attn(query, key, *args, **how)

    monkeypatch.setattr(attention, "varlen_attn", record)
    monkeypatch.setattr(logprobs, "takes_sequences", lambda model, device: True)
    return handed


def uncapped(name: str):
    return make(name, attn_logit_softcapping=None) if name == "gemma2 uncapped" else make(name)


@pytest.mark.parametrize("name", UNCAPPED)
def test_token_logprobs__by_varlen_attn_are_those_of_the_models_own_logits(name: str, varlen: list[tuple]):
    """Values and gradients of every architecture, with shared prompts, against its own attention on whole rows."""
    ours, theirs = uncapped(name), uncapped(name)
    values = token_logprobs(ours, IDS, MASK, 0.7)
    torch.testing.assert_close(values, own_logprobs(theirs, 0.7), rtol=1e-4, atol=1e-4)
    shared = getattr(ours.config, "num_key_value_heads", 4)
    new = sum(STARTS[i] for i in (0, 2)) + sum(n - 1 for n in RESPONSES)
    # The fourth row's one token is predicted from a prompt that is there: it has no query, and needs no keys.
    seen = sum(LENGTHS[i] - 1 for i in (0, 1, 2, 4, 5))
    assert varlen == [((new, 4, 8), (seen, shared, 8), torch.float32)] * 2
    (values * WEIGHTS).sum().backward()
    (own_logprobs(theirs, 0.7) * WEIGHTS).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4 * largest, msg=key)


def test_token_logprobs__varlen_attn_is_handed_bfloat16_and_no_copy_where_nothing_is_shared(
    varlen: list[tuple],
):
    model, own = make("qwen2"), [0, 2]
    exact = token_logprobs(model, IDS[own], MASK[own])
    with Placement(bfloat16=True).autocast():
        layout = lay_out(model, IDS[own], MASK[own])
        ours = token_logprobs(model, IDS[own], MASK[own], layout=layout)
    assert layout.packing is not None
    assert isinstance(layout.packing.rows, Sequences)
    assert layout.packing.rows.keys is None
    assert varlen[-1][2] == torch.bfloat16
    assert 0 < float((ours - exact).detach().abs().mean()) < 0.05


@pytest.mark.parametrize("recompute", [False, True])
def test_token_logprobs__by_varlen_attn_the_host_reads_nothing(
    recompute: bool, varlen: list[tuple], monkeypatch
):
    """With a layout; the kernel's own stand-in, which reads lengths, is left out."""
    model = make("mistral")
    if recompute:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    monkeypatch.setattr(logprobs, "by_tokens", lambda device: True)
    monkeypatch.setattr(attention, "varlen_attn", lambda q, k, v, *args, **how: q + 0 * k.sum() + 0 * v.sum())
    token_logprobs(model, IDS, MASK)
    layout = lay_out(model, IDS, MASK)
    with ReadsWithin() as reads:
        token_logprobs(model, IDS, MASK, layout=layout).sum().backward()
    assert not reads.found
