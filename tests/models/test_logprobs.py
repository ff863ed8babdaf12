"""Token log-probabilities against the form that holds all logits and leaves the gradient to autograd."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openprime.models import logprobs
from openprime.models.logprobs import has_plain_head, selected_logprobs, token_distributions, token_logprobs
from support.tiny_zoo import PLAIN, SCALED, VOCABULARY, logits_of_head, make

property_test = settings(max_examples=80, deadline=None, derandomize=True)


def naive(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> Tensor:
    """The definition, with every logit held."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    return (logits / temperature).log_softmax(-1)[torch.arange(len(targets)), targets]


def problem(
    tokens: int, width: int, vocabulary: int, bias: bool, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Leaves that need gradients: hidden, weight, bias; then targets and an incoming gradient."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    targets = torch.randint(vocabulary, (tokens,), generator=g)
    return (
        draw(tokens, width),
        draw(vocabulary, width),
        draw(vocabulary) if bias else None,
        targets,
        draw(tokens).detach(),
    )


def both(
    tokens: int,
    width: int,
    vocabulary: int,
    bias: bool,
    temperature: float,
    dtype: torch.dtype,
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """[values, gradients...] of ours and of the definition."""
    answers = []
    for function in (selected_logprobs, naive):
        hidden, weight, b, targets, grad = problem(tokens, width, vocabulary, bias, dtype, seed)
        values = function(hidden, weight, b, targets, temperature)
        leaves = [hidden, weight] + ([b] if b is not None else [])
        answers.append([values.detach(), *torch.autograd.grad(values, leaves, grad)])
    return answers[0], answers[1]


def assert_all_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@property_test
@given(
    st.integers(1, 13),
    st.integers(1, 6),
    st.integers(1, 11),
    st.booleans(),
    st.sampled_from([1.0, 0.7, 2.0]),
    st.integers(1, 40),
    st.integers(0, 90),
    st.integers(0, 5),
)
def test_values_and_gradients_are_those_of_the_definition_for_any_shape_block_and_room(
    tokens: int, width: int, vocabulary: int, bias: bool, temperature: float, block: int, room: int, seed: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "BLOCK_ELEMENTS", block)
        patch.setattr(logprobs, "KEPT_ELEMENTS", room)
        ours, theirs = both(tokens, width, vocabulary, bias, temperature, torch.float64, seed)
    assert_all_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("block", [1, 3 * 50, 7 * 50 + 49, 2**24])
@pytest.mark.parametrize("room", [0, 23 * 20, 2**24])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_float32_values_and_gradients_in_several_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int, room: int, temperature: float
):
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", room)
    ours, theirs = both(23, 16, 50, True, temperature, torch.float32)
    assert_all_close(ours, theirs, 2e-5)


def test_gradients_pass_the_finite_difference_check(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", 10)
    hidden, weight, bias, targets, _ = problem(5, 3, 4, True, torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: selected_logprobs(h, w, b, targets, 0.7), (hidden, weight, bias)
    )


def test_a_log_probability_is_right_far_out_where_exp_would_overflow():
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]])
    values = selected_logprobs(hidden, weight, None, torch.tensor([1, 1]))
    assert values.tolist() == [-1000.0, 0.0]
    values.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[-1.0], [0.0]]


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_needs_a_gradient_gets_one(needs: tuple[bool, bool, bool]):
    """A frozen head, or a frozen transformer under a trained head."""
    leaves: list[list[Tensor | None]] = []
    for function in (selected_logprobs, naive):
        hidden, weight, bias, targets, grad = problem(6, 4, 5, True, torch.float64)
        assert bias is not None
        for leaf, need in zip((hidden, weight, bias), needs, strict=True):
            leaf.requires_grad_(need)
        function(hidden, weight, bias, targets, 0.7).backward(grad)
        leaves.append([hidden.grad, weight.grad, bias.grad])
    for mine, other, need in zip(leaves[0], leaves[1], needs, strict=True):
        assert (mine is not None) == need
        if need:
            torch.testing.assert_close(mine, other)


def test_incoming_gradients_are_not_changed():
    """Autograd may share a gradient between several consumers."""
    hidden, weight, bias, targets, grad = problem(6, 4, 5, True, torch.float32)
    kept = (hidden.detach().clone(), weight.detach().clone(), grad.clone())
    selected_logprobs(hidden, weight, bias, targets, 0.7).backward(grad)
    for now, before in zip((hidden, weight, grad), kept, strict=True):
        assert torch.equal(now, before)


class Recorder:
    """Notes the shape of each block of logits made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[tuple[int, int]] = []
        original = logprobs._logits

        def record(hidden: Tensor, weight: Tensor, *rest) -> Tensor:
            self.blocks.append((hidden.shape[0], weight.shape[0]))
            return original(hidden, weight, *rest)

        monkeypatch.setattr(logprobs, "_logits", record)


@pytest.mark.parametrize(
    ("room", "again"), [(159, [4, 4, 3]), (160, [4, 3]), (320, [3]), (439, [3]), (440, [])]
)
def test_blocks_of_logits_are_made_again_where_there_was_no_room(
    room: int, again: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", 4 * 40 + 1)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", room)
    recorder = Recorder(monkeypatch)
    hidden, weight, bias, targets, grad = problem(40, 3, 11, True, torch.float32)
    values = selected_logprobs(hidden, weight, bias, targets)
    assert recorder.blocks == [(40, 4), (40, 4), (40, 3)]
    values.backward(grad)
    assert recorder.blocks[3:] == [(40, size) for size in again]


def test_more_tokens_than_a_block_go_one_entry_of_the_vocabulary_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", 5)
    recorder = Recorder(monkeypatch)
    hidden, weight, bias, targets, _ = problem(6, 3, 4, True, torch.float32)
    selected_logprobs(hidden, weight, bias, targets)
    assert recorder.blocks == [(6, 1)] * 4


def test_gradients_multiplied_in_bfloat16_change_no_value_and_little_of_a_gradient():
    found = []
    for narrow in (False, True):
        hidden, weight, bias, targets, grad = problem(40, 16, 50, True, torch.float32)
        assert bias is not None
        values = selected_logprobs(hidden, weight, bias, targets, 0.7, narrow)
        found.append([values.detach(), *torch.autograd.grad(values, (hidden, weight, bias), grad)])
    assert torch.equal(found[0][0], found[1][0])
    for exact, ours in zip(found[0][1:], found[1][1:], strict=True):
        assert ours.dtype == torch.float32
        assert float((exact - ours).norm() / exact.norm()) < 1e-2


@pytest.mark.parametrize("room", [0, 50 * 10, 50 * 25])
def test_autograd_keeps_no_more_logits_than_there_is_room_for(room: int, monkeypatch: pytest.MonkeyPatch):
    """What is saved for the backward pass otherwise is the inputs and a few numbers a token."""
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", 50 * 10)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", room)
    hidden, weight, bias, targets, _ = problem(50, 3, 40, True, torch.float32)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        selected_logprobs(hidden, weight, bias, targets)
    assert saved
    logits = [size for size in saved if size == 50 * 10]
    assert len(logits) == room // (50 * 10)
    assert sum(saved) - sum(logits) <= hidden.numel() + weight.numel() + 40 + 4 * 50


# Whole models


PROMPTS, LENGTHS, WIDTH = [1, 4, 2, 7], [9, 5, 12, 8], 12


@pytest.fixture
def ids() -> Tensor:
    """[4, 12], right-padded with a token of the vocabulary."""
    g = torch.Generator().manual_seed(1)
    block = torch.randint(VOCABULARY, (len(LENGTHS), WIDTH), generator=g)
    for row, length in enumerate(LENGTHS):
        block[row, length:] = 3
    return block


@pytest.fixture
def mask() -> Tensor:
    """[4, 12]: responses of 8, 1, 10 and 1 tokens."""
    t = torch.arange(WIDTH)
    return torch.stack([(t >= p) & (t < n) for p, n in zip(PROMPTS, LENGTHS, strict=True)])


def by_the_models_own_head(model, ids: Tensor, temperature: float) -> Tensor:
    """Each row alone and without padding, from the model's own logits."""
    rows = []
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        own = ids[row : row + 1, :length]
        logits = model(input_ids=own, use_cache=False).logits[0].float() / temperature
        table = logits.log_softmax(-1)
        values = [table[t - 1, own[0, t]] if t >= prompt else table.new_zeros(()) for t in range(length)]
        rows.append(torch.stack(values + [table.new_zeros(())] * (WIDTH - length)))
    return torch.stack(rows)


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_architecture_agrees_with_its_own_logits_on_ragged_rows(
    name: str, temperature: float, ids: Tensor, mask: Tensor
):
    model = make(name)
    ours = token_logprobs(model, ids, mask, temperature)
    theirs = by_the_models_own_head(model, ids, temperature)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert theirs[mask].std() > 0.5  # the models say something


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_every_architecture_has_the_gradient_of_its_own_logits(
    name: str, ids: Tensor, mask: Tensor, monkeypatch: pytest.MonkeyPatch
):
    """Tied embeddings get the gradient of both of their uses."""
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", 4 * VOCABULARY)
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = make(name), make(name)
    (token_logprobs(ours, ids, mask, 0.7) * weights).sum().backward()
    (by_the_models_own_head(theirs, ids, 0.7) * weights).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None, key
        assert other.grad is not None, key
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4 * largest, msg=key)


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_whole_distributions_are_those_of_every_architectures_own_logits(
    name: str, temperature: float, ids: Tensor, mask: Tensor
):
    model = make(name)
    ours = token_distributions(model, ids, mask, temperature)
    theirs = []
    for row, columns in zip(ids, mask, strict=True):
        logits = model(input_ids=row[None]).logits[0].float() / temperature
        theirs += [logits[t - 1].log_softmax(-1) for t in columns.nonzero()[:, 0].tolist()]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_a_linear_head_is_recognised(name: str):
    assert has_plain_head(make(name))


@pytest.mark.parametrize("name", SCALED)
def test_a_head_that_scales_or_caps_is_recognised(name: str):
    assert not has_plain_head(make(name))


def test_a_cap_is_recognised_while_the_logits_are_still_small(ids: Tensor, mask: Tensor):
    """A capped model's first weights give logits that the cap leaves alone; its trained ones do not."""
    model = make("gemma2", initializer_range=0.02, final_logit_softcapping=30.0)
    token_logprobs(model, ids, mask)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(100)  # as training would
    ours = token_logprobs(model, ids, mask)
    torch.testing.assert_close(ours, by_the_models_own_head(model, ids, 1.0), rtol=1e-4, atol=1e-4)


def test_values_are_zero_off_the_mask(ids: Tensor, mask: Tensor):
    values = token_logprobs(make("llama"), ids, mask)
    assert values.shape == mask.shape
    assert bool((values[~mask] == 0).all())
    assert bool((values[mask] < 0).all())


def test_padding_changes_nothing(ids: Tensor, mask: Tensor):
    model = make("qwen2")
    wider = torch.nn.functional.pad(ids, (0, 3), value=9)
    other = wider.clone()
    for row, length in enumerate(LENGTHS):
        other[row, length:] = 17
    values = [token_logprobs(model, block, torch.nn.functional.pad(mask, (0, 3))) for block in (wider, other)]
    assert torch.equal(values[0], values[1])
    torch.testing.assert_close(values[0][:, :WIDTH], token_logprobs(model, ids, mask), rtol=1e-5, atol=1e-5)


def test_prompt_positions_and_padding_cost_no_work_in_the_head(
    ids: Tensor, mask: Tensor, monkeypatch: pytest.MonkeyPatch
):
    model = make("gpt2 tied")
    recorder = Recorder(monkeypatch)
    token_logprobs(model, ids, mask).sum().backward()
    assert recorder.blocks == [(int(mask.sum()), VOCABULARY)]  # kept for the backward pass


def test_a_frozen_model_gives_the_same_values(ids: Tensor, mask: Tensor):
    model = make("llama tied")
    free = token_logprobs(model, ids, mask).detach()
    model.requires_grad_(False)
    frozen = token_logprobs(model, ids, mask)
    assert not frozen.requires_grad
    assert torch.equal(free, frozen)


def test_a_batch_without_response_tokens_is_all_zeros(ids: Tensor, mask: Tensor):
    model = make("llama")
    values = token_logprobs(model, ids, torch.zeros_like(mask))
    assert torch.equal(values, torch.zeros(mask.shape))
    values.sum().backward()


@pytest.mark.parametrize("name", ["llama", "gpt2 tied", *SCALED])
def test_trap_11_logits_are_float32_although_the_transformer_runs_in_bfloat16(
    name: str, ids: Tensor, mask: Tensor
):
    """Against float32 logits of the same bfloat16 transformer: rounding logits to bfloat16 costs 1e-2."""
    model = make(name)
    rows, columns = mask.nonzero(as_tuple=True)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = logits_of_head(model, hidden[rows, columns - 1].double())
        expected = logits.log_softmax(-1)[torch.arange(len(rows)), ids[rows, columns]]
        ours = token_logprobs(model, ids, mask, bfloat16=True)[rows, columns]
        exact = token_logprobs(model, ids, mask)[rows, columns]
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, exact, atol=1e-4)  # the transformer did run in bfloat16
    rounded = (ours.bfloat16().float() == ours).float().mean()
    assert rounded < 0.2


def test_trap_11_a_bfloat16_forward_pass_keeps_float32_weights_and_gradients(ids: Tensor, mask: Tensor):
    model = make("qwen2 tied")
    exact = copy.deepcopy(model)
    token_logprobs(model, ids, mask, bfloat16=True).sum().backward()
    token_logprobs(exact, ids, mask).sum().backward()
    mine = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    other = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    assert mine.dtype == torch.float32
    assert len(mine) == len(other)
    assert float(torch.nn.functional.cosine_similarity(mine, other, dim=0)) > 0.99


def test_an_even_distribution_gives_log_one_over_the_vocabulary(ids: Tensor, mask: Tensor):
    model = make("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    values = token_logprobs(model, ids, mask)
    torch.testing.assert_close(values[mask], torch.full((int(mask.sum()),), -math.log(VOCABULARY)))
