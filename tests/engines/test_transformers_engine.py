"""The sampling engine against Hugging Face's generate, against the trainer, and against itself cut otherwise."""

import copy
import math
from collections.abc import Callable
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
from openprime.models.attention import attention
from openprime.models.logprobs import token_logprobs
from openprime.models.tiny import build_tokenizer
from openprime.types import Group, Prompt, Sampling
from support.tiny_zoo import PLAIN, SCALED, VOCABULARY, make

property_test = settings(max_examples=150, deadline=None, derandomize=True)
LENGTHS = [5, 1, 9, 3, 9, 2, 12]
ENDS = frozenset({1, 7, 11, 23, 30, 44})
"""Many, so that responses end at all sorts of places."""
NEVER = frozenset({VOCABULARY + 1})


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Only decodes; its special tokens are 0, 1 and 2."""
    return build_tokenizer(["Start four"] * 5, 280)


@pytest.fixture
def make_engine(tokenizer: PreTrainedTokenizerBase) -> Callable[..., TransformersEngine]:
    """(name of the model, ends, sequences, ...) -> an engine."""

    def build(name: str = "qwen2 tied", ends: frozenset[int] = ENDS, seed: int = 0, **options):
        return TransformersEngine(make(name, seed), tokenizer, ends, **options)

    return build


def prompts_of(lengths: list[int], seed: int = 0) -> list[Prompt]:
    g = torch.Generator().manual_seed(seed)
    return [
        Prompt(f"p{i}", tuple(torch.randint(VOCABULARY, (n,), generator=g).tolist()), "", None)
        for i, n in enumerate(lengths)
    ]


def tokens_of(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[r.token_ids for r in group.responses] for group in groups]


def logprobs_of(groups: list[Group]) -> Tensor:
    return torch.tensor([x for group in groups for r in group.responses for x in r.logprobs])


class Passes:
    """Notes (rows, columns) of each forward pass of the transformer."""

    def __init__(self, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        original = engine._forward

        def note(ids: Tensor, *rest) -> Tensor:
            self.shapes.append((ids.shape[0], ids.shape[1]))
            return original(ids, *rest)

        monkeypatch.setattr(engine, "_forward", note)


# Against Hugging Face


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_greedy_decoding_equals_generate_token_for_token(name: str, make_engine):
    """Ragged prompts, padded on the left in both; learned and rotary positions, sliding windows."""
    prompts, engine = prompts_of(LENGTHS), make_engine(name, ends=NEVER)
    free = engine.generate(prompts, Sampling(1, 20, 0.0), seed=0)
    ends = frozenset(g.responses[0].token_ids[3 * i] for i, g in enumerate(free[:4]))
    engine = make_engine(name, ends=ends)
    mine = engine.generate(prompts, Sampling(1, 20, 0.0), seed=0)
    width = max(LENGTHS)
    ids = torch.tensor([[0] * (width - len(p.token_ids)) + list(p.token_ids) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts])
    theirs = engine.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=sorted(ends),
        pad_token_id=0,
    )[:, width:]
    lengths = set()
    for group, row in zip(mine, theirs.tolist(), strict=True):
        expected = []
        for token in row:
            expected.append(token)
            if token in ends:
                break
        assert group.responses[0].token_ids == tuple(expected)
        assert group.responses[0].truncated == (expected[-1] not in ends)
        lengths.add(len(expected))
    assert len(lengths) > 1


@pytest.mark.parametrize("lengths", [[6, 6, 6], [6], [3, 8]])
def test_greedy_decoding_is_the_likeliest_token_at_every_place(lengths: list[int], make_engine):
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
def test_trap_12_sampled_log_probabilities_are_the_trainers(name: str, temperature: float, make_engine):
    engine = make_engine(name, sequences=16)
    groups = engine.generate(prompts_of(LENGTHS), Sampling(4, 15, temperature), seed=3)
    judged = [replace(g, responses=tuple(replace(r, outcome=1.0) for r in g.responses)) for g in groups]
    batch = collate(judged, frozenset(), 0)
    with torch.no_grad():
        trainer = token_logprobs(engine.model, batch.token_ids, batch.response_mask, temperature)
    assert len(batch) == 4 * len(LENGTHS)
    assert int(batch.response_mask.sum()) == sum(len(r.token_ids) for g in groups for r in g.responses)
    assert float((trainer - batch.logprobs).abs().max()) < 1e-4
    assert float(batch.logprobs[batch.response_mask].std()) > 0.3


@pytest.mark.parametrize("name", ["llama", *SCALED])
def test_trap_11_samples_come_from_float32_logits_in_bfloat16_too(
    name: str, make_engine, monkeypatch: pytest.MonkeyPatch
):
    engine = make_engine(name, bfloat16=True)
    seen: list[Tensor] = []
    original = module.sample
    monkeypatch.setattr(module, "sample", lambda logits, *a: seen.append(logits) or original(logits, *a))
    engine.generate(prompts_of([4, 4]), Sampling(2, 5), 0)
    for logits in seen:
        assert logits.dtype == torch.float32
        assert float((logits.bfloat16().float() == logits).float().mean()) < 0.2


def test_bfloat16_log_probabilities_are_near_those_of_float32(make_engine):
    exact, half = make_engine("llama"), make_engine("llama", bfloat16=True)
    prompts = prompts_of([4, 7])
    one, two = (e.generate(prompts, Sampling(1, 1, 0.0), 0) for e in (exact, half))
    difference = (logprobs_of(one) - logprobs_of(two)).abs().max()
    assert 0 < float(difference) < 0.1


# Against itself


@pytest.mark.parametrize("name", ["qwen2 tied", "gpt2", "mistral, sliding window", "gemma2, capped logits"])
def test_the_same_seed_gives_the_same_samples_however_many_sequences_go_together(name: str, make_engine):
    answers = [
        make_engine(name, sequences=n).generate(prompts_of(LENGTHS), Sampling(4, 12), seed=5)
        for n in (4, 8, 64, 1)
    ]
    for other in answers[1:]:
        assert tokens_of(other) == tokens_of(answers[0])
        torch.testing.assert_close(logprobs_of(other), logprobs_of(answers[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("first", [0, 2, 5])
def test_a_part_of_the_prompts_has_the_samples_of_the_whole(first: int, make_engine):
    """What a rank samples: random numbers go by the place in the whole call."""
    engine, prompts = make_engine(), prompts_of(LENGTHS)
    whole = engine.generate(prompts, Sampling(3, 12), 4)
    part = engine.generate(prompts[first : first + 2], Sampling(3, 12), 4, first=first)
    assert tokens_of(part) == tokens_of(whole[first : first + 2])
    if first:
        assert tokens_of(engine.generate(prompts[first : first + 2], Sampling(3, 12), 4)) != tokens_of(part)


def test_sequences_bound_what_is_decoded_at_a_time(make_engine, monkeypatch: pytest.MonkeyPatch):
    engine = make_engine(ends=NEVER, sequences=9)
    passes = Passes(engine, monkeypatch)
    engine.generate(prompts_of(LENGTHS), Sampling(4, 3), seed=5)
    assert [rows for rows, columns in passes.shapes if columns == 1] == [8, 8] * 3 + [4, 4]


@pytest.mark.parametrize("name", ["qwen2 tied", "gpt2", "mistral, sliding window", "gemma2, capped logits"])
@pytest.mark.parametrize("lengths", [LENGTHS, [6] * 7], ids=["ragged", "even"])
def test_rows_that_leave_the_batch_disturb_no_other(
    name: str, lengths: list[int], make_engine, monkeypatch: pytest.MonkeyPatch
):
    """Never compact, as it is, and at every end of a row."""
    answers, work = [], []
    for share in (0.0, module.COMPACT_AT, 2.0):
        monkeypatch.setattr(module, "COMPACT_AT", share)
        engine = make_engine(name)
        passes = Passes(engine, monkeypatch)
        answers.append(engine.generate(prompts_of(lengths), Sampling(4, 25), seed=2))
        work.append(sum(rows for rows, columns in passes.shapes if columns == 1))
    for other in answers[1:]:
        assert tokens_of(other) == tokens_of(answers[0])
        torch.testing.assert_close(logprobs_of(other), logprobs_of(answers[0]), rtol=0, atol=1e-4)
    assert work[0] > work[1] >= work[2]
    longest = [max(len(r) for r in group) for group in tokens_of(answers[0])]
    assert len({len(r) for group in tokens_of(answers[0]) for r in group}) > 5
    assert max(longest) > 8


def test_responses_of_a_prompt_share_one_prefill(make_engine, monkeypatch: pytest.MonkeyPatch):
    engine = make_engine(ends=NEVER)
    passes = Passes(engine, monkeypatch)
    engine.generate(prompts_of([5, 3, 8]), Sampling(6, 4), seed=0)
    assert passes.shapes == [(3, 8), (18, 1), (18, 1), (18, 1)]


def test_responses_of_a_prompt_differ(make_engine):
    for group in make_engine().generate(prompts_of(LENGTHS), Sampling(8, 12), seed=0):
        assert len(set(tokens_of([group])[0])) > 4


def test_equal_prompts_get_different_responses_and_other_seeds_others_again(make_engine):
    prompt = prompts_of([5])[0]
    engine = make_engine()
    one, two = tokens_of(engine.generate([prompt, prompt], Sampling(4, 12), seed=0))
    assert one != two
    other = tokens_of(engine.generate([prompt, prompt], Sampling(4, 12), seed=1))
    assert other[0] not in (one, two)
    assert tokens_of(engine.generate([prompt, prompt], Sampling(4, 12), seed=0)) == [one, two]


def test_fewer_responses_or_tokens_are_no_matter_of_the_global_random_state(make_engine):
    engine = make_engine()
    torch.manual_seed(1)
    one = tokens_of(engine.generate(prompts_of(LENGTHS), Sampling(2, 8), seed=0))
    before = torch.manual_seed(2).get_state()
    assert tokens_of(engine.generate(prompts_of(LENGTHS), Sampling(2, 8), seed=0)) == one
    assert torch.equal(torch.get_rng_state(), before)


# What comes back


def test_trap_14_the_end_token_is_part_of_the_response_and_nothing_follows_it(make_engine):
    groups = make_engine().generate(prompts_of(LENGTHS), Sampling(8, 10), seed=1)
    kinds = set()
    for response in (r for group in groups for r in group.responses):
        assert len(response.token_ids) == len(response.logprobs)
        assert 1 <= len(response.token_ids) <= 10
        assert not ENDS & set(response.token_ids[:-1])
        ended = response.token_ids[-1] in ENDS
        assert response.truncated == (not ended)
        assert ended or len(response.token_ids) == 10
        kinds.add((ended, len(response.token_ids)))
    assert len(kinds) > 5
    assert {ended for ended, _ in kinds} == {True, False}


def test_an_end_on_the_last_allowed_token_is_not_a_truncation(make_engine):
    """Greedily, with the limit put where the response ends."""
    prompts = prompts_of([6])
    free = make_engine().generate(prompts, Sampling(1, 40, 0.0), 0)[0].responses[0]
    if free.truncated:
        engine = make_engine(ends=frozenset({free.token_ids[10]}))
        free = engine.generate(prompts, Sampling(1, 40, 0.0), 0)[0].responses[0]
    else:
        engine = make_engine()
    size = len(free.token_ids)
    assert 1 < size < 40
    exact = engine.generate(prompts, Sampling(1, size, 0.0), 0)[0].responses[0]
    short = engine.generate(prompts, Sampling(1, size - 1, 0.0), 0)[0].responses[0]
    assert exact == free
    assert not exact.truncated
    assert short.truncated
    assert short.token_ids == free.token_ids[:-1]


def test_the_text_is_the_decoded_response_without_special_tokens(make_engine, tokenizer):
    groups = make_engine().generate(prompts_of(LENGTHS), Sampling(8, 10), seed=1)
    special = set(tokenizer.all_special_ids)
    found = False
    for response in (r for group in groups for r in group.responses):
        assert response.text == tokenizer.decode([t for t in response.token_ids if t not in special])
        found |= bool(special & set(response.token_ids))
    assert found
    assert {r.outcome for group in groups for r in group.responses} == {None}


def test_groups_come_in_the_order_of_the_prompts_with_the_engines_version(make_engine):
    engine, prompts = make_engine(sequences=6), prompts_of(LENGTHS)
    assert [g.policy_version for g in engine.generate(prompts, Sampling(3, 4), 0)] == [0] * 7
    engine.load([], 12)
    groups = engine.generate(prompts, Sampling(3, 4), 0)
    assert [g.prompt for g in groups] == prompts
    assert {g.policy_version for g in groups} == {12}
    assert {len(g.responses) for g in groups} == {3}


def test_a_finished_group_is_handed_over_while_others_are_sampled(
    make_engine, monkeypatch: pytest.MonkeyPatch
):
    engine = make_engine()
    prompts, forwards, seen = prompts_of([3, 9, 5, 4, 7]), [0], []
    forward = engine._forward

    def count(*args: object) -> Tensor:
        forwards[0] += 1
        return forward(*args)

    monkeypatch.setattr(engine, "_forward", count)
    finished = lambda group: seen.append((group, forwards[0]))  # noqa: E731
    groups = engine.generate(prompts, Sampling(2, 60), 3, None, finished)
    assert sorted(id(group) for group, _ in seen) == sorted(map(id, groups)), "each once, as returned"
    for group, steps in seen:  # the prefill gives the first token: after n steps the longest has n tokens
        assert steps == max(len(r.token_ids) for r in group.responses)
    lengths = [steps for _, steps in seen]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] <= forwards[0]


def test_no_prompts_no_groups(make_engine):
    assert make_engine().generate([], Sampling(2, 4), 0) == []


def test_the_check_is_called_after_each_batch_and_may_interrupt(make_engine):
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
def test_the_model_comes_back_in_the_mode_it_was_in(training: bool, make_engine):
    engine = make_engine()
    engine.model.train(training)
    engine.generate(prompts_of([3]), Sampling(2, 4), 0)
    assert engine.model.training == training


def test_dropout_is_off_while_sampling(tokenizer: PreTrainedTokenizerBase):
    model = make("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    engine = TransformersEngine(model, tokenizer, ENDS)
    one = engine.generate(prompts_of(LENGTHS), Sampling(2, 8), 0)
    model.train()
    assert engine.generate(prompts_of(LENGTHS), Sampling(2, 8), 0) == one


def test_the_model_can_be_trained_after_sampling(make_engine):
    """Nothing made without gradients stays in the model."""
    engine = make_engine()
    engine.generate(prompts_of([3, 5]), Sampling(2, 4), 0)
    engine.model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    engine.generate(prompts_of([3, 5]), Sampling(2, 4), 0)


# New weights


@pytest.mark.parametrize("name", ["qwen2 tied", "llama"])
def test_loading_copies_other_weights_and_sets_the_version(name: str, make_engine, tokenizer):
    engine, trainer = make_engine(name), make(name, seed=8)
    assert engine.generate(prompts_of(LENGTHS), Sampling(2, 8), 0) != TransformersEngine(
        trainer, tokenizer, ENDS
    ).generate(prompts_of(LENGTHS), Sampling(2, 8), 0)
    engine.load(trainer.named_parameters(), 3)
    assert engine.version == 3
    expected = TransformersEngine(trainer, tokenizer, ENDS).generate(prompts_of(LENGTHS), Sampling(2, 8), 0)
    assert tokens_of(engine.generate(prompts_of(LENGTHS), Sampling(2, 8), 0)) == tokens_of(expected)
    for mine, other in zip(engine.model.parameters(), trainer.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.data_ptr() != other.data_ptr()  # a copy: the trainer may move on
        assert mine.requires_grad


def test_loading_its_own_weights_copies_nothing(make_engine):
    engine = make_engine()
    before = {name: p._version for name, p in engine.model.named_parameters()}
    engine.load(engine.model.named_parameters(), 1)
    assert {name: p._version for name, p in engine.model.named_parameters()} == before
    assert engine.version == 1


def test_a_live_model_samples_from_its_present_weights(make_engine):
    engine = make_engine()
    old = copy.deepcopy(engine.generate(prompts_of(LENGTHS), Sampling(2, 8), 0))
    with torch.no_grad():
        for p in engine.model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    engine.load(engine.model.named_parameters(), 1)
    assert tokens_of(engine.generate(prompts_of(LENGTHS), Sampling(2, 8), 0)) != tokens_of(old)


# The sampling function

LOGITS = [1.5, -0.5, 0.0, 2.0, -3.0, 0.7, 1.1, -1.0]
CRITICAL = 31.0
"""Chi-square with seven degrees of freedom stays below it but for six times in 100,000."""


def chi_square(counts: list[int], shares: list[float]) -> float:
    n = sum(counts)
    return sum((c - n * p) ** 2 / (n * p) for c, p in zip(counts, shares, strict=True))


def softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_are_distributed_as_the_softmax(temperature: float):
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logprobs = sample(torch.tensor([LOGITS]).expand(20_000, -1), uniforms, temperature)
    shares = softmax(LOGITS, temperature)
    counts = torch.bincount(tokens, minlength=8).tolist()
    assert chi_square(counts, shares) < CRITICAL
    assert chi_square(counts, softmax(LOGITS, temperature * 1.1)) > CRITICAL  # the test has power
    expected = torch.tensor([math.log(shares[t]) for t in tokens.tolist()])
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)


def test_an_even_grid_of_uniforms_gives_each_token_its_exact_share():
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens, _ = sample(torch.tensor([LOGITS]).expand(10_000, -1), grid, 1.0)
    counts = torch.bincount(tokens, minlength=8).tolist()
    assert counts == pytest.approx([10_000 * p for p in softmax(LOGITS, 1.0)], abs=1.01)


def test_tokens_far_rarer_than_the_resolution_of_float32_get_their_share():
    """10,000 tokens share 1e-4 behind a token that has the rest."""
    tail = 10_000
    logits = torch.full((1, tail + 1), math.log(1e-8))
    logits[0, 0] = math.log1p(-1e-4)
    places = torch.tensor([0, 1, 7, 100, 5000, tail - 2, tail - 1])
    tokens, _ = sample(logits.expand(len(places), -1), (places.double() + 0.5) * 1e-8, 1.0)
    assert tokens.tolist() == [tail - place for place in places.tolist()]


def test_engine_samples_are_distributed_as_the_models_softmax(make_engine):
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
        drawn = [r.token_ids[1] for r in responses if r.token_ids[0] in tokens]
        weights = first[list(tokens)] / first[list(tokens)].sum()
        cases.append((drawn, weights @ second[list(tokens)]))
    for drawn, shares in cases:
        assert len(drawn) * float(shares.min()) > 10
        counts = [drawn.count(token) for token in range(VOCABULARY)]
        assert chi_square(counts, shares.tolist()) < 115  # 59 degrees of freedom: more in 2 of 100,000 draws
        assert chi_square(counts, [1 / VOCABULARY] * VOCABULARY) > 115  # the test has power


ALMOST_ONE = math.nextafter(1.0, 0.0)


@property_test
@given(
    st.lists(st.sampled_from([-math.inf, -1e4, -200.0, -30.0, 0.0, 1.0, 5.0]), min_size=1, max_size=12),
    st.sampled_from([0.0, 5e-324, 1e-300, 2.0**-53, 1e-9, 0.3, 1 - 1e-9, ALMOST_ONE]),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
)
def test_a_token_without_probability_is_never_sampled(
    logits: list[float], uniform: float, temperature: float
):
    if max(logits) == -math.inf:
        return
    row = torch.tensor([logits])
    tokens, logprobs = sample(row, torch.tensor([uniform], dtype=torch.float64), temperature)
    shares = (row.double() / (temperature or 1.0)).softmax(-1)[0]
    token = int(tokens[0])
    assert 0 <= token < len(logits)
    assert float(shares[token]) > 0
    assert float(logprobs[0]) == pytest.approx(math.log(float(shares[token])), abs=1e-3, rel=1e-5)


@pytest.mark.parametrize("uniform", [0.0, ALMOST_ONE, 1 - 2.0**-24])
@pytest.mark.parametrize("size", [3, 1000, 150_000])
def test_the_ends_of_the_interval_stay_within_the_possible_tokens(uniform: float, size: int):
    """Impossible tokens on both sides, as a padded vocabulary has; sums over many tokens round."""
    logits = torch.full((1, size), -math.inf)
    first, last = size // 3, size - size // 3
    logits[0, first:last] = torch.randn(last - first, generator=torch.Generator().manual_seed(0))
    token = int(sample(logits, torch.tensor([uniform], dtype=torch.float64), 1.0)[0][0])
    assert first <= token < last


def test_temperature_zero_takes_the_likeliest_token_and_its_untempered_log_probability():
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logprobs = sample(torch.tensor([LOGITS]).expand(50, -1), uniforms, 0.0)
    assert set(tokens.tolist()) == {3}
    expected = math.log(softmax(LOGITS, 1.0)[3])
    torch.testing.assert_close(logprobs, torch.full((50,), expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [255, 256, 257, 1000])
def test_large_vocabularies_are_sampled_by_inverting_one_cumulative_sum(size: int):
    g = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(400, size, generator=g)
    logits[:, ::3] = -math.inf
    uniforms = torch.rand(400, generator=g, dtype=torch.float64)
    tokens, logprobs = sample(logits, uniforms, 0.7)
    exact = (logits.double() / 0.7).log_softmax(-1)
    reached = exact.exp().cumsum(-1) >= (1 - uniforms)[:, None]
    assert tokens.tolist() == reached.int().argmax(-1).tolist()
    torch.testing.assert_close(
        logprobs.double(), exact.gather(-1, tokens[:, None])[:, 0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("masked", [False, True])
def test_heads_that_share_a_key_head_see_what_they_saw_with_keys_of_their_own(masked: bool):
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, h, t, 8, generator=g) for h, t in ((6, 1), (2, 5), (2, 5)))
    mask = (
        torch.arange(5)[None, None, None] >= torch.tensor([0, 2, 4])[:, None, None, None] if masked else None
    )
    found, _ = attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    assert found.shape == (3, 1, 6, 8)
    for row in range(3):
        for head in range(6):
            scores = 0.3 * key[row, head // 3] @ query[row, head, 0]  # [5]
            if mask is not None:
                scores = scores.masked_fill(~mask[row, 0, 0], -math.inf)
            expected = scores.softmax(-1) @ value[row, head // 3]
            torch.testing.assert_close(found[row, 0, head], expected)


def test_rows_are_sampled_with_their_own_logits_and_numbers():
    logits = torch.tensor([LOGITS, LOGITS[::-1], [0.0] * 8])
    uniforms = torch.tensor([0.1, 0.8, 0.35], dtype=torch.float64)
    together, _ = sample(logits, uniforms, 1.0)
    alone = [int(sample(logits[i : i + 1], uniforms[i : i + 1], 1.0)[0][0]) for i in range(3)]
    assert together.tolist() == alone


def test_random_numbers_are_uniform_and_differ_by_seed_place_response_and_position():
    sampling = Sampling(10, 20)
    blocks = {(s, p): module._uniforms(s, p, sampling) for s in (0, 1, 12_345) for p in (0, 1, 999)}
    assert {tuple(b.shape) for b in blocks.values()} == {(10, 20)}
    every = torch.cat([b.flatten() for b in blocks.values()])
    assert len(every.unique()) == len(every)
    assert bool(((every >= 0) & (every < 1)).all())
    assert abs(float(every.mean()) - 0.5) < 0.03
    assert torch.equal(module._uniforms(1, 999, sampling), blocks[1, 999])


def test_seeds_that_differ_in_their_high_bits_alone_give_other_random_numbers():
    """Derived seeds have 62 bits; PyTorch's generator on the CPU looks at 32 of what it is given."""
    blocks = [module._uniforms(seed, 0, Sampling(2, 3)) for seed in (5, 5 + 2**32, 5 + 2**40, 5 + 2**61)]
    assert len(torch.stack(blocks).unique()) == 4 * 6
