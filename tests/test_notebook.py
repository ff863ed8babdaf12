"""Commands as functions of Python: as the command line, with a reward function of the process itself."""

import os
import signal
import threading
from pathlib import Path

import pytest

import openprime
from openprime.config import OutcomeConfig, PrimeConfig, RLConfig, VerifyConfig
from openprime.notebook import configure, plain, verifiers_of
from openprime.run.console import Interrupted, Signals
from openprime.types import Prompt, UserError
from openprime.verifiers.pool import Pool, VerifierError
from support.tiny_runs import assert_same_run, records, rl

TINY = "configs/rl/tiny.yaml"
SETTINGS = {
    "data": {"source": "task:clock", "horizon": 2, "limit": 100},
    "eval_data": {"horizon": 2, "limit": 6},
    "rollout": {"prompts": 2, "responses": 4, "max_response_tokens": 16},
    "filter": {"max_draws": 100},
    "policy": {"minibatch": 4, "warmup": 0, "epochs": 1, "lr": 1e-3},
    "eval": {"samples": 0},
    "prm": {"warmup": 0},
    "steps": 2,
}
"""What support.tiny_runs.RL says."""
REWARD = """
def longer(prompts, completions, answer, **columns):
    assert len(prompts) == len(completions) == len(answer)
    return [float(i % 2) for i in range(len(completions))]
"""


def longer(prompts, completions, answer, **columns):
    assert len(prompts) == len(completions) == len(answer)
    return [float(i % 2) for i in range(len(completions))]


def test_rl__with_a_function_is_the_run_of_the_command_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A worker runs the same function from a file; a run that is stopped, and goes on, is the same one too."""
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    names = ("--data.verifier", "my_reward:longer", "--eval-data.verifier", "my_reward:longer")
    theirs = rl(model, tmp_path / "cli", *names)
    ours = openprime.rl(TINY, model=model, out=tmp_path / "ours", reward=longer, **SETTINGS)
    assert_same_run(ours.folder, theirs, "model", "prm")
    assert [row["step"] for row in ours.metrics] == [0, 1, 2]
    assert ours.samples == records(theirs / "samples.jsonl")
    assert ours.responses == []

    calls = []

    def stopped(prompts, completions, answer, **columns):
        """As the stop button: in the second step's rollouts."""
        calls.append(len(completions))
        if len(calls) == 10:  # 6 held-out prompts, 2 groups, then those of step 2
            os.kill(os.getpid(), signal.SIGINT)
        return longer(prompts, completions, answer)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    again = {"out": tmp_path / "stopped", "reward": stopped} | SETTINGS
    with pytest.raises(Interrupted, match="saved"):
        openprime.rl(TINY, model=model, **again)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert len(records(tmp_path / "stopped" / "metrics.jsonl")) < 3
    assert_same_run(openprime.rl(TINY, model=model, resume=True, **again).folder, theirs, "model", "prm")


def test_rl__a_folder_in_use_is_refused_in_one_line(model: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match="holds a run already") as refused:
        openprime.rl(TINY, model=model, out=tmp_path, **SETTINGS)
    assert refused.value._render_traceback_() == [f"UserError: {refused.value}"]


def test_configure__is_the_file_and_the_settings_over_it(tmp_path: Path):
    got = configure(RLConfig, TINY, {"steps": 3, "policy": {"lr": 0.5}, "out": tmp_path})
    assert isinstance(got, PrimeConfig)
    assert (got.steps, got.policy.lr, got.out) == (3, 0.5, str(tmp_path))
    assert (got.policy.epochs, got.prm.beta) == (4, 0.3), "the file's"
    other = configure(RLConfig, TINY, {"algorithm": "outcome"})
    assert isinstance(other, OutcomeConfig)
    assert other.policy.epochs == 4
    assert configure(RLConfig, got, {"steps": 4}) == got.model_copy(update={"steps": 4})
    assert configure(RLConfig, "", {"policy": got.policy}).policy == got.policy  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (TINY, {"stepz": 3}, "the settings: unknown key stepz; did you mean steps"),
        (TINY, {"steps": "many"}, "the settings: steps: Input should be a valid integer"),
        (TINY, {"policy": 3}, "the settings: policy"),
        ("nothing.yaml", {}, "nothing.yaml: no such configuration file"),
        (7, {}, "the configuration is the name of a YAML file or a RLConfig, not int"),
        (TINY, {"algorithm": "ppo"}, "no algorithm 'ppo'"),
    ],
)
def test_configure__what_is_wrong_is_named(config: str, settings: dict, said: str):
    with pytest.raises(UserError, match=said):
        configure(RLConfig, config, settings)


def test_verifiers_of__a_function_judges_training_and_held_out_data():
    name = f"{longer.__module__}:longer"
    found, over = verifiers_of(longer, {"eval_data": {"verifier": "math", "limit": 6}}, "data", "eval_data")
    assert list(found) == [name]
    assert over["data"]["verifier"] == name
    assert over["eval_data"] == {"verifier": "math", "verifier_field": "", "limit": 6}
    assert verifiers_of(None, {"steps": 1}, "data") == ({}, {"steps": 1})
    with pytest.raises(UserError, match="reward is a function"):
        verifiers_of("math", {}, "data")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="leave one out"):
        verifiers_of(longer, {"data": {"verifier": "math"}}, "data")


def test_plain__paths_and_sections_are_as_in_a_file():
    assert plain({"a": [Path("x"), VerifyConfig(workers=2)]}) == {"a": ["x", {"workers": 2}]}


def judge(function, responses: tuple[str, ...]):
    """The verdicts of a function of this process."""
    verifiers, over = verifiers_of(function, {}, "data")
    prompt = Prompt("data:0", (), "question", "4", {"answer": "4"}, over["data"]["verifier"])
    with Pool(workers=1, here=verifiers) as pool:
        pool.prepare([prompt.verifier])
        verdicts = [future.result() for future in pool.submit(prompt, responses)]
        assert not pool._threads, "no worker was begun"
        return pool, verdicts


def test_pool__a_function_of_this_process_sees_what_is_there():
    seen = []

    def mine(prompts, completions, answer, **columns):
        seen.append((prompts, completions, answer, threading.current_thread()))
        return [1.0, 0, None, 0.5]

    _, verdicts = judge(mine, ("a", "b", "c", "d"))
    assert seen == [(["question"] * 4, [*"abcd"], ["4"] * 4, threading.main_thread())]
    assert [v.outcome for v in verdicts] == [1.0, 0.0, None, 0.5]
    assert [v.reason for v in verdicts] == ["right", "wrong", "no_verdict", "partial"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda **columns: 1 / 0, "ZeroDivisionError"),
        (lambda **columns: [1.0], "returned 1 outcomes"),
        (lambda **columns: [2.0, 0.0], "outcomes are numbers in"),
    ],
)
def test_pool__a_function_that_fails_leaves_the_responses_out(function, said: str):
    with pytest.warns(UserWarning, match="a verifier failed"):
        pool, verdicts = judge(function, ("a", "b"))
    assert [(v.outcome, v.reason) for v in verdicts] == [(None, "crash")] * 2
    assert said in pool.complaint
    assert isinstance(VerifierError("x"), UserError)


def test_pool__the_stop_button_is_no_failure_of_the_function():
    def stop(**columns):
        raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        judge(stop, ("a",))


def test_signals__outside_the_main_thread_are_left_alone():
    before, failed = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        try:
            with Signals() as signals, signals.interruptible():
                signals.check()
                assert signal.getsignal(signal.SIGINT) == before
        except Exception as error:  # noqa: BLE001 - the thread's failure is this test's
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
    assert signal.getsignal(signal.SIGINT) == before


def test_openprime__names_its_functions():
    assert {*openprime.__all__} <= {*dir(openprime)}
    assert all(callable(getattr(openprime, name)) for name in openprime.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        openprime.nothing  # noqa: B018
