"""Trap 12 at the first batch: where sampler and trainer are two models, the run ends before it learns."""

from dataclasses import replace
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.engines import transformers as engine
from openprime.models.lm import LM
from openprime.models.placement import Placement
from openprime.prime.methods import check_mismatch
from openprime.types import RunError
from support.tiny_lm import make_batch, make_model, naive_logprobs
from support.tiny_runs import records, rl_args


@pytest.mark.parametrize(
    ("bfloat16", "limit", "shift", "ends"),
    [
        (False, "auto", 0.009, False),
        (False, "auto", 0.011, True),
        (False, "auto", -0.011, True),
        (False, 0.5, 0.49, False),
        (False, 0.5, 0.51, True),
        (False, 0.0, 9.0, False),
        (True, "auto", 0.1, False),
        (True, "auto", 0.4, True),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_check_mismatch__ends_above_the_limit_of_the_mean(bfloat16, limit, shift, ends, temperature):
    """The sampler's log-probabilities are the model's own at the policy's temperature, and `shift` more."""
    model, batch = make_model(), make_batch()
    own = naive_logprobs(model, batch, temperature).detach()
    batch = replace(batch, logprobs=(own + shift) * batch.response_mask)
    lm = LM(model, Placement(bfloat16=bfloat16), temperature=temperature)
    if not ends:
        check_mismatch(lm, batch, limit)
        return
    with pytest.raises(RunError, match=r"nats from the sampler's .* above policy\.mismatch_limit=") as caught:
        check_mismatch(lm, batch, limit)
    if not bfloat16:
        assert f"are {abs(shift):.3g} nats" in str(caught.value)


@pytest.fixture
def another_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine says that its tokens are less likely than they are."""
    original = engine.to_response
    wrong = lambda tokens, logprobs, *rest: original(tokens, [p - 0.05 for p in logprobs], *rest)  # noqa: E731
    monkeypatch.setattr(engine, "to_response", wrong)


@pytest.mark.parametrize("algorithm", ["prime", "outcome", "distill"])
def test_train__a_sampler_of_another_model_ends_the_run_before_its_first_step(
    algorithm: str, model: Path, tmp_path: Path, another_sampler: None, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(rl_args(model, out, "--algorithm", algorithm)) == 1
    said = capsys.readouterr().err
    assert "are 0.05 nats from the sampler's on average, above policy.mismatch_limit=0.01" in said
    assert "Traceback" not in said
    assert [row["step"] for row in records(out / "metrics.jsonl")] == [0]


@pytest.mark.parametrize("limit", ["0", "0.06"])
def test_train__a_limit_that_is_set_is_the_limit(
    limit: str, model: Path, tmp_path: Path, another_sampler: None
):
    assert main(rl_args(model, tmp_path / "out", "--policy.mismatch-limit", limit)) == 0
