"""The implicit PRM against two models' own log-softmax in float64, token by token; saving and loading it."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import openprime
from openprime.config import PromptFormat
from openprime.data.chat import SUFFIXES, SYSTEM
from openprime.data.steps import ENDS, token_texts
from openprime.models.hub import load_model
from openprime.models.lm import LM
from openprime.models.tiny import build_model, build_tokenizer
from openprime.prime.prm import (
    PUBLISHED_BETA,
    ImplicitPRM,
    Score,
    find_parts,
    fit,
    fitting_beta,
    median_nats,
    read_settings,
)
from openprime.types import Group, Prompt, Response, UserError
from support import brute, tiny_zoo
from support.tiny_lm import make_batch

BETA = 0.3
CORPUS = ["Start four\n+seven = ?\nStep 1: so it is eleven\n\n#### 11 é 😀\n"] * 5
QUESTION = "Start four\n+seven = ?"
RESPONSES = [
    "Step 1: +seven eleven\n\nStep 2: so\n#### 11",
    "[ASSESS]\n\n# four and seven\n\nNext action: [OUTPUT]\n\n[OUTPUT]\n\n#### 11\n",
    "",
    "e\u0301leven 😀\n👩\u200d👩\u200d👧 中文\n\n\n \nx",
    "\n\n",
    "a" * 150,
    "eleven",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(CORPUS, 320)


def save(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A model of random weights, saved as others save theirs."""
    build_model(tokenizer, 32, 2, 2, 512, 1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_prm(folder: Path, tokenizer: PreTrainedTokenizerBase, reference: str) -> str:
    """A PRM of other random weights."""
    model = build_model(tokenizer, 32, 2, 2, 512, 2)
    ImplicitPRM(LM(model), None, BETA).save_pretrained(folder, tokenizer, reference)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """A PRM with its settings, and its reference."""
    root = tmp_path_factory.mktemp("models")
    reference = save(root / "reference", tokenizer)
    return save_prm(root / "prm", tokenizer, reference), reference


@pytest.fixture(scope="module")
def prm(folders: tuple[str, str]) -> ImplicitPRM:
    return ImplicitPRM.from_pretrained(folders[0], device="cpu")


def logprobs(name: str, prompt_ids: list[int], response_ids: list[int]) -> list[float]:
    """log p of each response token by transformers alone, in float64, with the soft caps that `sdpa` leaves out."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        table = model(torch.tensor([prompt_ids + response_ids])).logits.log_softmax(-1)[0]
    first = len(prompt_ids) - 1
    return [float(table[first + t, token]) for t, token in enumerate(response_ids)]


def encoded(name: str, question: str, response: str) -> tuple[list[int], list[int]]:
    """Prompt and response as the tokenizer's own chat template and end-of-sequence token have it."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    return prompt, [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def close(found: Sequence[float], expected: Sequence[float]) -> None:
    assert list(found) == pytest.approx(list(expected), abs=1e-5)


def check_rewards(score: Score, names: Sequence[str], ids: tuple[list[int], list[int]], beta: float) -> None:
    """They are beta times the log-ratio of the two models."""
    phi, ref = (logprobs(name, *ids) for name in names)
    close(score.token_rewards, [beta * (a - b) for a, b in zip(phi, ref, strict=True)])
    close(score.reference_logprobs, ref)
    assert score.reward == pytest.approx(beta * (sum(phi) - sum(ref)), abs=1e-5)


def same(found: Score, expected: Score) -> None:
    close(found.token_rewards, expected.token_rewards)
    close(found.reference_logprobs, expected.reference_logprobs)
    for name in ("tokens", "steps", "step_of_token"):
        assert getattr(found, name) == getattr(expected, name)


# The rewards


@pytest.mark.parametrize("response", RESPONSES)
def test_score__rewards_are_the_models_log_ratios(prm: ImplicitPRM, folders: tuple[str, str], response: str):
    """The end-of-sequence token has a reward too, of an empty response as well."""
    (score,) = prm.score([QUESTION], [response])
    ids = encoded(folders[1], QUESTION, response)
    check_rewards(score, folders, ids, BETA)
    assert max(map(abs, score.token_rewards)) > 0.01
    assert len(score.tokens) == len(score.step_of_token) == len(ids[1])
    assert "".join(score.tokens) == "".join(score.steps) == response
    assert score.tokens[-1] == ""
    if not response:
        assert (score.steps, score.step_of_token) == ([""], [0])


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("response", RESPONSES)
def test_score__steps_are_sums_and_the_total_is_the_same_for_every_split(
    prm: ImplicitPRM, how: str, response: str
):
    (score,) = prm.score([QUESTION], [response], how)
    sums = [
        math.fsum(r for r, s in zip(score.token_rewards, score.step_of_token, strict=True) if s == step)
        for step in range(len(score.steps))
    ]
    close(score.step_rewards, sums)
    assert math.fsum(score.step_rewards) == pytest.approx(math.fsum(score.token_rewards), abs=1e-9)
    (whole,) = prm.score([QUESTION], [response], [[response]])
    assert whole.step_rewards == [pytest.approx(score.reward, abs=1e-5)]


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("response", RESPONSES)
def test_score__of_a_prm_whose_scores_are_means_has_the_prefix_value_at_the_end_of_a_step(
    prm: ImplicitPRM, how: str, response: str
):
    """Of the same token rewards: what a step is judged by includes all that was written before it."""
    mean = ImplicitPRM(prm.lm, prm.reference, prm.beta, prm.tokenizer, "mean")
    (plain,), (score,) = (which.score([QUESTION], [response], how) for which in (prm, mean))
    assert score.token_rewards == plain.token_rewards
    assert score.reward == pytest.approx(math.fsum(score.token_rewards) / len(score.token_rewards))
    assert score.probability == pytest.approx(1 / (1 + math.exp(-score.reward)))
    values = brute.mean_prefix_values(score.token_rewards)
    for step, value in enumerate(score.step_rewards):
        before = [t for t, own in enumerate(score.step_of_token) if own <= step]
        assert value == pytest.approx(values[before[-1]] if before else 0.0, abs=1e-9)
    assert score.step_rewards[-1] == pytest.approx(score.reward, abs=1e-9)
    rewards = torch.tensor([[*score.token_rewards, 0.0]])
    mask = torch.tensor([[True] * len(score.token_rewards) + [False]])
    assert float(mean.response_scores(rewards, mask)) == pytest.approx(score.reward, abs=1e-5)
    assert float(prm.response_scores(rewards, mask)) == pytest.approx(plain.reward, abs=1e-5)


def test_score__does_not_depend_on_company_order_or_memory(
    folders: tuple[str, str], prm: ImplicitPRM, monkeypatch: pytest.MonkeyPatch
):
    questions = [QUESTION, "what?", "Start " + "nine " * 40]
    rows = [(question, response) for question in questions for response in RESPONSES]
    alone = {row: prm.score([row[0]], [row[1]])[0] for row in rows}
    for tokens, at_a_time in ((1, 256), (64, 256), (300, 4), (16384, 256), (16384, 1)):
        monkeypatch.setattr("openprime.prime.prm.ROWS", at_a_time)
        other = ImplicitPRM.from_pretrained(folders[0], device="cpu", tokens_per_microbatch=tokens)
        mixed = rows * 2
        random.Random(tokens).shuffle(mixed)
        scores = other.score([q for q, _ in mixed], [r for _, r in mixed])
        for row, score in zip(mixed, scores, strict=True):
            same(score, alone[row])
    assert prm.score([], []) == []


def test_score_sampled__tokens_are_scored_as_they_are(prm: ImplicitPRM, folders: tuple[str, str]):
    """A model may sample ids that its text would not be encoded to, and stop without an end of sequence."""
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    prompt_ids, _ = encoded(folders[0], QUESTION, "")
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "eleven"]
    assert tokenizer.encode("eleven") != letters
    sampled = [letters, [*letters, tokenizer.eos_token_id], letters[:1]]
    responses = tuple(Response(tuple(ids), (0.0,) * len(ids), "", True) for ids in sampled)
    groups = [Group(Prompt("p", tuple(prompt_ids), "", None), responses[:2], 0)]
    groups.append(Group(Prompt("q", tuple(prompt_ids[:5]), "", None), responses[2:], 0))
    scores = prm.score_sampled(groups)
    assert [len(row) for row in scores] == [2, 1]
    for group, row in zip(groups, scores, strict=True):
        for response, score in zip(group.responses, row, strict=True):
            check_rewards(score, folders, (list(group.prompt.token_ids), list(response.token_ids)), BETA)
            assert score.tokens == token_texts(tokenizer, response.token_ids)
    assert scores[0][0].tokens == list("eleven")


def test_score__takes_steps_that_are_given(prm: ImplicitPRM):
    steps = [["Step 1: a\n\n", "b 😀"], ["x"], ["a", "", "b"]]
    texts = ["".join(row) for row in steps]
    scores, plain = prm.score([QUESTION] * 3, texts, steps), prm.score([QUESTION] * 3, texts)
    for score, row, other in zip(scores, steps, plain, strict=True):
        assert score.steps == row
        assert len(score.step_rewards) == len(row)
        close(score.token_rewards, other.token_rewards)
        assert math.fsum(score.step_rewards) == pytest.approx(other.reward, abs=1e-9)
    assert scores[2].step_rewards[1] == 0


@pytest.mark.parametrize(
    ("response", "split", "message"),
    [
        ("ab", [["a", "c"]], "steps of response 0 do not join"),
        ("ab", [["xy"]], "steps of response 0 do not join"),
        ("ab", [[]], "steps of response 0 do not join"),
        ("", [[]], "steps of response 0 do not join"),  # it has one step all the same
        ("ab", [["ab"], ["ab"]], "steps of 2 responses, but there are 1"),
        ("ab", "lines", "no 'lines'; there are: newline, blank_line, numbered, actions"),
    ],
)
def test_score__refuses_steps_that_are_not_the_responses(prm: ImplicitPRM, response, split, message: str):
    with pytest.raises(ValueError, match=message):
        prm.score([QUESTION], [response], split)


# Prompts


def test_score__prompts_are_put_as_asked(prm: ImplicitPRM, folders: tuple[str, str]):
    """Every way to say the same prompt has the same rewards."""
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION + SUFFIXES["math"]}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    (first,), *others = [
        prm.score([QUESTION], ["eleven"], form=PromptFormat(template="eurus-actions")),
        prm.score([QUESTION], ["eleven"], form=PromptFormat(system=SYSTEM, suffix=SUFFIXES["math"])),
        prm.score([chat], ["eleven"]),
        prm.score([rendered], ["eleven"], form=PromptFormat(chat_template="none")),
    ]
    for (score,) in others:
        same(score, first)
    (other,) = prm.score([QUESTION], ["eleven"])
    assert other.reward != pytest.approx(first.reward, abs=1e-3)


def test_score__a_tokenizer_without_a_template_reads_the_plain_text(tmp_path: Path):
    """Another architecture, whose vocabulary is larger than its tokenizer's."""
    tokenizer = build_tokenizer(CORPUS, 320)
    tokenizer.chat_template = None
    names = [str(tmp_path / str(seed)) for seed in (1, 2)]
    for seed, name in enumerate(names, 1):
        model = tiny_zoo.make("gemma2, capped logits", seed, vocab_size=330, max_position_embeddings=512)
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    (score,) = ImplicitPRM.from_pretrained(*names, device="cpu").score([QUESTION], [RESPONSES[0]])
    prompt = tokenizer(QUESTION)["input_ids"]
    response = [*tokenizer(RESPONSES[0])["input_ids"], tokenizer.eos_token_id]
    check_rewards(score, names, (prompt, response), PUBLISHED_BETA)


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (["q", "r"], ["a"], "2 prompts, but 1 responses"),
        (["q", " "], ["a", "b"], "prompt 1: expected text or a list of messages"),
        ([[{"role": "user"}]], ["a"], "prompt 0: expected a message with `role` and `content`"),
    ],
)
def test_score__refuses_what_cannot_be_encoded(prm: ImplicitPRM, prompts, responses, message: str):
    with pytest.raises(ValueError, match=message):
        prm.score(prompts, responses)


# Saving and loading


def test_implicit_prm__is_exported_by_the_package():
    assert openprime.ImplicitPRM is ImplicitPRM


@pytest.mark.parametrize(("nats", "beta"), [(0.0, 1.0), (0.5, 1.0), (2.0, 0.25), (10.0, 0.05), (500.0, 0.05)])
def test_fitting_beta__by_hand(nats: float, beta: float):
    """One half over the nats of the median response, between the published beta and 1."""
    assert fitting_beta(nats) == pytest.approx(beta)


@pytest.mark.parametrize(
    ("nats", "asked", "expected"),
    [
        (1.0, ("auto", "auto"), (10.0, 5.0)),  # the published numbers
        (0.1, ("auto", "auto"), (100.0, 5.0)),
        (4.0, ("auto", "auto"), (2.5, 5.0)),
        (0.0, ("auto", "auto"), (1000.0, 5.0)),
        (0.1, (10.0, "auto"), (10.0, 0.5)),
        (0.1, ("auto", 2.0), (100.0, 2.0)),
        (0.1, (10.0, 5.0), (10.0, 5.0)),
    ],
)
def test_fit__the_margin_is_half_of_what_the_median_response_can_reach(nats: float, asked, expected):
    """By hand: beta times the nats a token is the largest mean value; of sums there is no margin."""
    assert fit(nats, "mean", *asked) == pytest.approx(expected)
    assert fit(2.0, "sum", "auto", "auto") == (0.25, 0.0)
    assert fit(2.0, "sum", 0.7, "auto") == (0.7, 0.0)


def test_median_nats__of_sums_and_of_means():
    """Responses of 1, 2, 3, 2 and 4 nats a token, the rest of the block is garbage."""
    lengths, nats = [1, 5, 2, 3, 1], [1.0, 2.0, 3.0, 2.0, 4.0]
    mask = torch.arange(8)[None, :] < torch.tensor(lengths)[:, None]
    block = torch.where(mask, -torch.tensor(nats)[:, None], 99.0)
    batch = replace(make_batch([0, 0, 1, 1, 1], [0, 1, 0, 1, 1]), ref_logprobs=block, response_mask=mask)
    assert median_nats(batch, "sum") == 6.0  # of 1, 10, 6, 6, 4
    assert median_nats(batch, "mean") == 2.0


def test_save_pretrained__a_scoring_is_kept_and_another_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, folders: tuple[str, str]
):
    lm = LM(build_model(tokenizer, 32, 2, 2, 512, 2))
    ImplicitPRM(lm, None, 10.0, scoring="mean").save_pretrained(tmp_path, tokenizer, folders[1])
    assert read_settings(str(tmp_path)) == (10.0, folders[1], "mean")
    prm = ImplicitPRM.from_pretrained(str(tmp_path), device="cpu")
    (score,) = prm.score([QUESTION], ["eleven"])
    assert (prm.scoring, score.scoring) == ("mean", "mean")
    for settings in ({"scoring": "median"}, {"scoring": []}, {"scoring": None}):
        (tmp_path / "implicit_prm.json").write_text(json.dumps({"beta": 1.0, "reference": ""} | settings))
        with pytest.raises(UserError, match="expected an object with beta and reference: ValueError"):
            read_settings(str(tmp_path))
    (tmp_path / "implicit_prm.json").write_text("[]")
    with pytest.raises(UserError, match="expected an object with beta and reference"):
        read_settings(str(tmp_path))


@pytest.mark.parametrize("reference", ["sft/model", ""])
def test_save_pretrained__leaves_a_model_with_its_settings_beside_it(
    reference: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
):
    folder = Path(save_prm(tmp_path / "prm", tokenizer, reference))
    ids = torch.tensor([[5, 9, 30, 2]])
    with torch.no_grad():
        expected = build_model(tokenizer, 32, 2, 2, 512, 2)(ids).logits
        for loaded in (AutoModelForCausalLM.from_pretrained(folder), load_model(str(folder))):
            assert torch.equal(loaded.eval()(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(folder).encode("Start") == tokenizer.encode("Start")
    assert read_settings(str(folder)) == (BETA, reference, "sum")
    written = json.loads((folder / "implicit_prm.json").read_text(encoding="utf-8"))
    assert written == {"beta": BETA, "reference": reference, "scoring": "sum"}


def test_save_pretrained__a_relative_reference_is_found_from_another_folder(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    save_prm(Path("prm"), tokenizer, save(Path("reference"), tokenizer))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_parts("../prm")[0] == (BETA, str(tmp_path / "reference"), "sum")


def test_from_pretrained__any_model_with_a_reference_has_the_published_beta(
    folders: tuple[str, str], prm: ImplicitPRM
):
    """As the published EurusPRM: a causal language model without settings beside it."""
    other = ImplicitPRM.from_pretrained(folders[1], folders[0], "cpu")
    assert other.beta == PUBLISHED_BETA == 0.05
    (score,), (inverse,) = prm.score([QUESTION], ["eleven"]), other.score([QUESTION], ["eleven"])
    close(inverse.token_rewards, [-r * 0.05 / BETA for r in score.token_rewards])


def test_from_pretrained__another_reference_keeps_the_prms_beta(folders: tuple[str, str]):
    """Scored against itself every reward is 0."""
    prm = ImplicitPRM.from_pretrained(folders[0], folders[0], "cpu")
    assert prm.beta == BETA
    (score,) = prm.score([QUESTION], ["eleven"])
    assert score.token_rewards == [0.0] * len(score.tokens)


def test_from_pretrained__refuses_models_that_do_not_fit(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, folders: tuple[str, str]
):
    prm, reference = folders
    other = save(tmp_path / "other", build_tokenizer(["quite another text, longer"] * 5, 300))
    orphan = save_prm(tmp_path / "orphan", tokenizer, "")
    lost = save_prm(tmp_path / "lost", tokenizer, str(tmp_path / "gone"))
    broken = save_prm(tmp_path / "broken", tokenizer, reference)
    Path(broken, "implicit_prm.json").write_text('{"beta": 1}')
    for model, against, message in (
        (reference, "", r"not an implicit PRM: .*implicit_prm\.json.* needs a reference \(--reference\)"),
        (prm, other, "vocabulary of .*prm .* differs from that of .*other"),
        (other, prm, "vocabulary of .*other .* differs from that of .*prm"),
        (orphan, "", "orphan: the PRM was saved without a reference model: name it"),
        (lost, "", "lost: its reference cannot be loaded: name it .*gone: no tokenizer"),
        (str(tmp_path / "nowhere"), reference, "nowhere: no tokenizer"),
        (broken, "", "implicit_prm.json: expected an object with beta and reference: KeyError"),
    ):
        with pytest.raises(ValueError, match=message):
            ImplicitPRM.from_pretrained(model, against, "cpu")
