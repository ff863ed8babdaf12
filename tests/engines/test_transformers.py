"""The sampling engine against Hugging Face's generate, against the trainer, and against itself cut otherwise."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.data.collate import collate
from openprime.engines import transformers as module
from openprime.engines.transformers import TransformersEngine, sample
from openprime.models import products
from openprime.models.logprobs import token_logprobs
from openprime.models.placement import Placement
from openprime.models.tiny import build_tokenizer
from openprime.types import Group, NonFiniteError, Prompt, Response, Sampling
from support.tiny_zoo import PLAIN, SCALED, VOCABULARY, logits_of_head, make

property_test = settings(max_examples=150, deadline=None, derandomize=True)
LENGTHS = [5, 1, 9, 3, 9, 2, 12]
ENDS = frozenset({1, 7, 11, 23, 30, 44})
"""Many, so that responses end at all sorts of places."""
NEVER = frozenset({VOCABULARY + 1})
KINDS = ["qwen2 tied", "gpt2", "mistral, sliding window", "gemma2, capped logits"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Only decodes; its special tokens are 0, 1 and 2."""
    return build_tokenizer(["Start four"] * 5, 280)


@pytest.fixture
def make_engine(tokenizer: PreTrainedTokenizerBase):
    """(name of the model or a model, ends, sequences, bfloat16) -> an engine."""

    def build(model="qwen2 tied", ends=ENDS, sequences=256, bfloat16=False) -> TransformersEngine:
        model = make(model) if isinstance(model, str) else model
        return TransformersEngine(model, Placement(bfloat16=bfloat16), tokenizer, ends, sequences)

    return build


def prompts_of(lengths: list[int]) -> list[Prompt]:
    g = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(VOCABULARY, (n,), generator=g).tolist()) for n in lengths]
    return [Prompt(f"p{i}", own, "", None) for i, own in enumerate(ids)]


PROMPTS = prompts_of(LENGTHS)


def tokens_of(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[r.token_ids for r in group.responses] for group in groups]


def responses_of(groups: list[Group]) -> list[Response]:
    return [response for group in groups for response in group.responses]


def assert_same_samples(ours: list[Group], theirs: list[Group]) -> None:
    """The same tokens, and their log-probabilities within rounding."""
    assert tokens_of(ours) == tokens_of(theirs)
    for one, other in zip(responses_of(ours), responses_of(theirs), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, rel=0, abs=1e-4)


class Passes:
    """Notes (rows, columns) of each forward pass of the transformer, and its last hidden states [rows, D]."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.hidden: list[Tensor] = []
        engine.try_out()  # a few tokens, once
        engine.model.base_model.register_forward_hook(self._note)

    def _note(self, _module, _inputs, found) -> None:
        rows, columns, _ = found.last_hidden_state.shape
        self.shapes.append((rows, columns))
        self.hidden.append(found.last_hidden_state[:, -1])


# Against Hugging Face


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_generate__greedily_equals_hugging_faces_token_for_token(name: str, make_engine):
    """Ragged prompts, padded on the left in both; learned and rotary positions, sliding windows."""
    free = make_engine(name, NEVER).generate(PROMPTS, Sampling(1, 20, 0.0), seed=0)
    ends = frozenset(g.responses[0].token_ids[3 * i] for i, g in enumerate(free[:4]))
    engine = make_engine(name, ends)
    mine = engine.generate(PROMPTS, Sampling(1, 20, 0.0), seed=0)
    width = max(LENGTHS)
    left = [width - length for length in LENGTHS]
    theirs = engine.model.generate(
        input_ids=torch.tensor([[0] * n + list(p.token_ids) for n, p in zip(left, PROMPTS, strict=True)]),
        attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in left]),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=sorted(ends),
        pad_token_id=0,
    )[:, width:]
    lengths = set()
    for group, row in zip(mine, theirs.tolist(), strict=True):
        size = next((t + 1 for t, token in enumerate(row) if token in ends), len(row))
        assert group.responses[0].token_ids == tuple(row[:size])
        assert group.responses[0].truncated == (row[size - 1] not in ends)
        lengths.add(size)
    assert len(lengths) > 1


@pytest.mark.parametrize("lengths", [[6, 6, 6], [6], [3, 8]])
def test_generate__greedily_takes_the_likeliest_token_at_every_place(lengths: list[int], make_engine):
    """Each response alone, without a cache and without padding."""
    engine = make_engine("llama", ends=frozenset({1}))
    for group in engine.generate(prompts_of(lengths), Sampling(1, 6, 0.0), 0):
        ids = list(group.prompt.token_ids)
        for token, logprob in zip(group.responses[0].token_ids, group.responses[0].logprobs, strict=True):
            with torch.no_grad():
                table = engine.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert token == int(table.argmax())
            assert logprob == pytest.approx(float(table.max()), abs=1e-4)
            ids.append(token)


# Against the trainer


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_generate__trap_12_log_probabilities_are_the_trainers(name: str, temperature: float, make_engine):
    engine = make_engine(name, sequences=16)
    groups = engine.generate(PROMPTS, Sampling(4, 15, temperature), seed=3)
    judged = [replace(g, responses=tuple(replace(r, outcome=1.0) for r in g.responses)) for g in groups]
    batch = collate(judged, frozenset(), 0)
    with torch.no_grad():
        trainer = token_logprobs(engine.model, batch.token_ids, batch.response_mask, temperature)
    assert len(batch) == 4 * len(LENGTHS)
    assert int(batch.response_mask.sum()) == sum(len(r.token_ids) for r in responses_of(groups))
    assert float((trainer - batch.logprobs).abs().max()) < 1e-4
    assert float(batch.logprobs[batch.response_mask].std()) > 0.3


@pytest.mark.parametrize("name", ["llama", *SCALED])
def test_generate__trap_11_samples_from_float32_logits_in_bfloat16_too(name: str, make_engine):
    """Against exact logits of the hidden states of each pass: rounding logits to bfloat16 costs 1e-2."""
    engine = make_engine(name, NEVER, bfloat16=True)
    passes = Passes(engine)
    responses = responses_of(engine.generate(prompts_of([4, 4]), Sampling(2, 5), 0))
    states = [passes.hidden[0].repeat_interleave(2, 0), *passes.hidden[1:]]
    assert len(states) == 5
    for t, state in enumerate(states):
        with torch.no_grad():
            table = logits_of_head(engine.model, state.double()).log_softmax(-1)  # [4, V]
        expected = [float(table[row, r.token_ids[t]]) for row, r in enumerate(responses)]
        assert [r.logprobs[t] for r in responses] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_generate__bfloat16_log_probabilities_are_near_those_of_float32(make_engine):
    one, two = (
        make_engine("llama", bfloat16=narrow).generate(prompts_of([4, 7]), Sampling(1, 1, 0.0), 0)
        for narrow in (False, True)
    )
    gaps = [a.logprobs[0] - b.logprobs[0] for a, b in zip(responses_of(one), responses_of(two), strict=True)]
    assert 0 < max(map(abs, gaps)) < 0.1


@pytest.mark.parametrize("bfloat16", [False, True])
def test_generate__the_cache_has_the_precision_in_which_attention_multiplies(
    bfloat16: bool, make_engine, monkeypatch: pytest.MonkeyPatch
):
    """Rotated keys are float32; kept so, all of them would be cast for every token."""
    kept, update = set(), module._GrowingLayer.update

    def noted(self, *args, **kwargs):
        found = update(self, *args, **kwargs)
        kept.update(part.dtype for part in found)
        return found

    monkeypatch.setattr(module._GrowingLayer, "update", noted)
    engine = make_engine(bfloat16=bfloat16)
    engine.try_out()  # in float32
    kept.clear()
    engine.generate(PROMPTS, Sampling(2, 4), 0)
    assert kept == {torch.bfloat16 if bfloat16 else torch.float32}


def test_generate__logits_that_are_not_finite_are_an_error(make_engine):
    engine = make_engine()
    with torch.no_grad():
        engine.model.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="logits are not finite"):
        engine.generate(PROMPTS, Sampling(2, 4), 0)


# Products of a CPU


@pytest.mark.parametrize("name", ["qwen2 tied", "phi, head with a bias", *SCALED])
def test_generate__onednns_float32_products_give_the_trainers_log_probabilities(
    name: str, make_engine, monkeypatch: pytest.MonkeyPatch
):
    """And the samples that other products give: they differ in rounding alone."""
    expected = make_engine(name).generate(PROMPTS, Sampling(2, 12), 3)
    monkeypatch.setattr(products, "LARGE", 1)
    engine = make_engine(name)
    products.use_onednn(engine.model)
    assert_same_samples(engine.generate(PROMPTS, Sampling(2, 12), 3), expected)


def test_generate__weights_that_changed_are_packed_anew(make_engine):
    """Nothing is kept between calls: an update in place is seen by the next one."""
    engine, other = make_engine("llama", bfloat16=True), make("llama", seed=5)
    before = engine.generate(PROMPTS, Sampling(1, 8, 0.0), 0)
    with torch.no_grad():
        for own, new in zip(engine.model.parameters(), other.parameters(), strict=True):
            own.copy_(new)
    expected = make_engine(other, bfloat16=True).generate(PROMPTS, Sampling(1, 8, 0.0), 0)
    assert tokens_of(engine.generate(PROMPTS, Sampling(1, 8, 0.0), 0)) == tokens_of(expected)
    assert tokens_of(before) != tokens_of(expected)


# Against itself


@pytest.mark.parametrize("name", KINDS)
def test_generate__has_the_same_samples_however_many_sequences_go_together(name: str, make_engine):
    first, *others = (
        make_engine(name, sequences=n).generate(PROMPTS, Sampling(4, 12), seed=5) for n in (4, 8, 64, 1)
    )
    for other in others:
        assert_same_samples(other, first)


@pytest.mark.parametrize("first", [0, 2, 5])
def test_generate__a_part_of_the_prompts_has_the_samples_of_the_whole(first: int, make_engine):
    """What a rank samples: random numbers go by the place in the whole call."""
    engine, own = make_engine(), PROMPTS[first : first + 2]
    whole = engine.generate(PROMPTS, Sampling(3, 12), 4)
    part = engine.generate(own, Sampling(3, 12), 4, first=first)
    assert tokens_of(part) == tokens_of(whole[first : first + 2])
    if first:
        assert tokens_of(engine.generate(own, Sampling(3, 12), 4)) != tokens_of(part)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("lengths", [LENGTHS, [6] * 7], ids=["ragged", "even"])
def test_generate__rows_that_leave_the_batch_disturb_no_other(
    name: str, lengths: list[int], make_engine, monkeypatch: pytest.MonkeyPatch
):
    """Never compact, as it is, and at every end of a row."""
    answers, work = [], []
    for share in (0.0, module.COMPACT_AT, 2.0):
        monkeypatch.setattr(module, "COMPACT_AT", share)
        engine = make_engine(name)
        passes = Passes(engine)
        answers.append(engine.generate(prompts_of(lengths), Sampling(4, 25), seed=2))
        work.append(sum(rows for rows, columns in passes.shapes if columns == 1))
    for other in answers[1:]:
        assert_same_samples(other, answers[0])
    assert work[0] > work[1] >= work[2]
    sizes = {len(r.token_ids) for r in responses_of(answers[0])}
    assert len(sizes) > 5
    assert max(sizes) > 8


@pytest.mark.parametrize(
    ("sequences", "shapes"),
    [
        (256, [(3, 8), (18, 1), (18, 1), (18, 1)]),
        (12, [(2, 5), (12, 1), (12, 1), (12, 1), (1, 8), (6, 1), (6, 1), (6, 1)]),
    ],
)
def test_generate__a_prompts_responses_share_a_prefill_and_sequences_bound_a_pass(
    sequences, shapes, make_engine
):
    engine = make_engine(ends=NEVER, sequences=sequences)
    passes = Passes(engine)
    engine.generate(prompts_of([5, 3, 8]), Sampling(6, 4), seed=0)
    assert passes.shapes == shapes


def test_generate__responses_differ_by_place_seed_and_number(make_engine):
    """Equal prompts get different ones too; the global random state is neither used nor changed."""
    prompt, engine = PROMPTS[0], make_engine()
    torch.manual_seed(1)
    one, two = tokens_of(engine.generate([prompt, prompt], Sampling(4, 12), seed=0))
    assert one != two
    assert tokens_of(engine.generate([prompt, prompt], Sampling(4, 12), seed=1))[0] not in (one, two)
    before = torch.manual_seed(2).get_state()
    assert tokens_of(engine.generate([prompt, prompt], Sampling(4, 12), seed=0)) == [one, two]
    assert torch.equal(torch.get_rng_state(), before)
    for group in tokens_of(engine.generate(PROMPTS, Sampling(8, 12), seed=0)):
        assert len(set(group)) > 4


# What comes back


def test_generate__trap_14_the_end_token_is_part_of_the_response_and_nothing_follows_it(
    make_engine, tokenizer
):
    """The text is the decoded response without special tokens."""
    kinds, special = set(), set(tokenizer.all_special_ids)
    responses = responses_of(make_engine().generate(PROMPTS, Sampling(8, 10), seed=1))
    for response in responses:
        ids = response.token_ids
        assert len(ids) == len(response.logprobs)
        assert 1 <= len(ids) <= 10
        assert not ENDS & set(ids[:-1])
        ended = ids[-1] in ENDS
        assert response.truncated == (not ended)
        assert ended or len(ids) == 10
        assert response.text == tokenizer.decode([t for t in ids if t not in special])
        assert response.outcome is None
        kinds.add((ended, len(ids)))
    assert len(kinds) > 5
    assert {ended for ended, _ in kinds} == {True, False}
    assert any(special & set(response.token_ids) for response in responses)


def test_generate__an_end_on_the_last_allowed_token_is_not_a_truncation(make_engine):
    """Greedily, with the limit put where the response ends."""
    prompts = prompts_of([6])
    free = make_engine(ends=NEVER).generate(prompts, Sampling(1, 12, 0.0), 0)[0].responses[0].token_ids
    engine = make_engine(ends=frozenset({free[10]}))
    size = free.index(free[10]) + 1
    assert size > 1
    exact, short, longer = (
        engine.generate(prompts, Sampling(1, limit, 0.0), 0)[0].responses[0]
        for limit in (size, size - 1, size + 9)
    )
    assert exact == longer
    assert exact.token_ids == free[:size]
    assert not exact.truncated
    assert short.truncated
    assert short.token_ids == free[: size - 1]


def test_generate__groups_come_in_the_order_of_the_prompts_with_the_engines_version(make_engine):
    engine = make_engine(sequences=6)
    assert engine.generate([], Sampling(2, 4), 0) == []
    assert [g.policy_version for g in engine.generate(PROMPTS, Sampling(3, 4), 0)] == [0] * 7
    engine.load([], 12)
    groups = engine.generate(PROMPTS, Sampling(3, 4), 0)
    assert [g.prompt for g in groups] == PROMPTS
    assert {g.policy_version for g in groups} == {12}
    assert {len(g.responses) for g in groups} == {3}


def test_generate__a_finished_group_is_handed_over_while_others_are_sampled(make_engine):
    engine, seen = make_engine(), []
    passes = Passes(engine)
    finished = lambda group: seen.append((group, len(passes.shapes)))  # noqa: E731
    groups = engine.generate(prompts_of([3, 9, 5, 4, 7]), Sampling(2, 60), 3, None, finished)
    assert sorted(id(group) for group, _ in seen) == sorted(map(id, groups)), "each once, as returned"
    for group, steps in seen:  # the prefill gives the first token: after n steps the longest has n tokens
        assert steps == max(len(r.token_ids) for r in group.responses)
    steps = [steps for _, steps in seen]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1] <= len(passes.shapes)


def test_generate__the_check_is_called_after_each_batch_and_may_interrupt(make_engine):
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    engine = make_engine(sequences=4)
    engine.generate(prompts_of([3, 4, 5]), Sampling(4, 4), 0, check)
    assert len(calls) == 3
    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts_of([3, 4, 5]), Sampling(4, 4), 0, check)


@pytest.mark.parametrize("training", [True, False])
def test_generate__dropout_is_off_and_the_model_comes_back_as_it_was(training: bool, make_engine):
    """In its mode, and with nothing that was made without gradients in it."""
    model = make("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    engine = make_engine(model)
    one = engine.generate(PROMPTS, Sampling(2, 8), 0)
    model.train(training)
    assert engine.generate(PROMPTS, Sampling(2, 8), 0) == one
    assert model.training == training
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert engine.generate(PROMPTS, Sampling(2, 8), 0) == one


# New weights


@pytest.mark.parametrize("name", ["qwen2 tied", "llama"])
def test_load__copies_other_weights_and_sets_the_version(name: str, make_engine):
    engine, trainer = make_engine(name), make(name, seed=8)
    expected = make_engine(trainer).generate(PROMPTS, Sampling(2, 8), 0)
    assert tokens_of(engine.generate(PROMPTS, Sampling(2, 8), 0)) != tokens_of(expected)
    engine.load(trainer.named_parameters(), 3)
    assert engine.version == 3
    assert tokens_of(engine.generate(PROMPTS, Sampling(2, 8), 0)) == tokens_of(expected)
    for mine, other in zip(engine.model.parameters(), trainer.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.data_ptr() != other.data_ptr()  # a copy: the trainer may move on
        assert mine.requires_grad


def test_load__of_a_live_model_copies_nothing_and_samples_from_its_present_weights(make_engine):
    engine = make_engine()
    old = copy.deepcopy(engine.generate(PROMPTS, Sampling(2, 8), 0))
    with torch.no_grad():
        for p in engine.model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    before = {name: p._version for name, p in engine.model.named_parameters()}
    engine.load(engine.model.named_parameters(), 1)
    assert {name: p._version for name, p in engine.model.named_parameters()} == before
    assert engine.version == 1
    assert tokens_of(engine.generate(PROMPTS, Sampling(2, 8), 0)) != tokens_of(old)


# The sampling function

LOGITS = [1.5, -0.5, 0.0, 2.0, -3.0, 0.7, 1.1, -1.0]
ALMOST_ONE = math.nextafter(1.0, 0.0)


def drawn(logits: list[float], uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`sample` with the same logits for all."""
    return sample(torch.tensor([logits]).expand(len(uniforms), -1), uniforms.double(), temperature)


def chi_square(counts: list[int], shares: list[float]) -> float:
    n = sum(counts)
    return sum((c - n * p) ** 2 / (n * p) for c, p in zip(counts, shares, strict=True))


def softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def test_sample__tokens_far_rarer_than_the_resolution_of_float32_get_their_share():
    """10,000 tokens share 1e-4 behind a token that has the rest."""
    tail = 10_000
    places = torch.tensor([0, 1, 7, 100, 5000, tail - 2, tail - 1])
    logits = [math.log1p(-1e-4), *[math.log(1e-8)] * tail]
    tokens, _ = drawn(logits, (places.double() + 0.5) * 1e-8, 1.0)
    assert tokens.tolist() == [tail - place for place in places.tolist()]


def test_generate__is_distributed_as_the_models_softmax(make_engine):
    """First tokens, and second tokens after a first one of either half of the vocabulary.

    Random numbers of the engine's own making; one that is used twice would show in the second tokens.
    """
    engine = make_engine("llama", ends=NEVER, sequences=10**6)
    with torch.no_grad():
        engine.model.lm_head.weight *= 0.2
    prompt, half = prompts_of([4])[0], VOCABULARY // 2
    responses = engine.generate([prompt], Sampling(20_000, 2), seed=1)[0].responses
    continued = torch.tensor([[*prompt.token_ids, token] for token in range(VOCABULARY)])
    with torch.no_grad():
        logits = engine.model(continued).logits.double()
    first, second = logits[0, -2].softmax(-1), logits[:, -1].softmax(-1)
    cases = [([r.token_ids[0] for r in responses], first)]
    for tokens in (range(half), range(half, VOCABULARY)):
        seconds = [r.token_ids[1] for r in responses if r.token_ids[0] in tokens]
        weights = first[list(tokens)] / first[list(tokens)].sum()
        cases.append((seconds, weights @ second[list(tokens)]))
    for found, shares in cases:
        assert len(found) * float(shares.min()) > 10
        counts = [found.count(token) for token in range(VOCABULARY)]
        assert chi_square(counts, shares.tolist()) < 115  # 59 degrees of freedom: more in 2 of 100,000 draws
        assert chi_square(counts, [1 / VOCABULARY] * VOCABULARY) > 115  # the test has power


@property_test
@given(
    st.lists(st.sampled_from([-math.inf, -1e4, -200.0, -30.0, 0.0, 1.0, 5.0]), min_size=1, max_size=12),
    st.sampled_from([0.0, 5e-324, 1e-300, 2.0**-53, 1e-9, 0.3, 1 - 1e-9, ALMOST_ONE]),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
)
def test_sample__never_takes_a_token_without_probability(
    logits: list[float], uniform: float, temperature: float
):
    if max(logits) == -math.inf:
        return
    tokens, logprobs = drawn(logits, torch.tensor([uniform], dtype=torch.float64), temperature)
    shares = (torch.tensor(logits).double() / (temperature or 1.0)).softmax(-1)
    token = int(tokens[0])
    assert 0 <= token < len(logits)
    assert float(shares[token]) > 0
    assert float(logprobs[0]) == pytest.approx(math.log(float(shares[token])), abs=1e-3, rel=1e-5)


@pytest.mark.parametrize("uniform", [0.0, ALMOST_ONE, 1 - 2.0**-24])
@pytest.mark.parametrize("size", [3, 1000, 150_000])
def test_sample__at_the_ends_of_the_interval_stays_within_the_possible_tokens(uniform: float, size: int):
    """Impossible tokens on both sides, as a padded vocabulary has; sums over many tokens round."""
    logits = torch.full((1, size), -math.inf)
    first, last = size // 3, size - size // 3
    logits[0, first:last] = torch.randn(last - first, generator=torch.Generator().manual_seed(0))
    token = int(sample(logits, torch.tensor([uniform], dtype=torch.float64), 1.0)[0][0])
    assert first <= token < last


def test_sample__temperature_zero_takes_the_likeliest_token_and_its_untempered_log_probability():
    tokens, logprobs = drawn(LOGITS, torch.rand(50, generator=torch.Generator().manual_seed(0)), 0.0)
    assert set(tokens.tolist()) == {3}
    expected = math.log(softmax(LOGITS, 1.0)[3])
    torch.testing.assert_close(logprobs, torch.full((50,), expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [8, 255, 256, 257, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_sample__inverts_the_cumulative_softmax(size: int, temperature: float):
    """Every row with its own logits and its own number; an even grid gives each token its exact share."""
    g = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(400, size, generator=g)
    logits[:, ::3] = -math.inf
    uniforms = torch.rand(400, generator=g, dtype=torch.float64)
    tokens, logprobs = sample(logits, uniforms, temperature)
    exact = (logits.double() / temperature).log_softmax(-1)
    reached = exact.exp().cumsum(-1) >= (1 - uniforms)[:, None]
    assert tokens.tolist() == reached.int().argmax(-1).tolist()
    expected = exact.gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = torch.bincount(drawn(logits[0].tolist(), grid, temperature)[0], minlength=size).tolist()
    assert counts == pytest.approx((10_000 * exact[0].exp()).tolist(), abs=1.01)


def test_uniforms__are_uniform_and_differ_by_seed_place_response_and_position():
    """By the high bits of a seed too: derived seeds have 62, PyTorch's generator on the CPU looks at 32."""
    sampling, seeds = Sampling(10, 20), (0, 1, 12_345, 5 + 2**32, 5 + 2**40, 5 + 2**61)
    blocks = {(s, p): module._uniforms(s, p, sampling) for s in seeds for p in (0, 1, 999)}
    assert {tuple(b.shape) for b in blocks.values()} == {(10, 20)}
    every = torch.cat([b.flatten() for b in blocks.values()])
    assert len(every.unique()) == len(every)
    assert bool(((every >= 0) & (every < 1)).all())
    assert abs(float(every.mean()) - 0.5) < 0.03
    assert torch.equal(module._uniforms(1, 999, sampling), blocks[1, 999])
