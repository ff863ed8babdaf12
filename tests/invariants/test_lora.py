"""Adapters through the command line: one base in memory or several, checkpoints, exports, every stage."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openprime.cli import main
from openprime.models import lm
from openprime.models.hub import load_tokenizer, save_model
from openprime.models.tiny import build_model
from openprime.prime.prm import ImplicitPRM, read_settings
from openprime.run.checkpoint import checkpoints
from support.tiny_runs import CLOCK, assert_same_run, metrics, records, rl, rl_args

pytest.importorskip("peft")
BOTH = ("--policy.lora.rank", "4", "--prm.lora.rank", "4", "--policy.lr", "1e-3", "--prm.lr", "1e-2")


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models loaded from here on."""
    loaded, real = [], lm.load_trained

    def load(name: str, *args):
        loaded.append(Path(name).name)
        return real(name, *args)

    monkeypatch.setattr(lm, "load_trained", load)
    return loaded


def changed(run: Path, start: Path) -> set[str]:
    """Names of weights that a run changed, all names being the same."""
    ours, theirs = load_file(run / "model.safetensors"), load_file(start / "model.safetensors")
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def test_lora__one_base_in_memory_gives_the_run_of_separate_models(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same model under three names is loaded three times: policy, PRM, and reference of an earlier PRM."""
    for name in ("second", "third"):
        shutil.copytree(model, tmp_path / name)
    settings = {"beta": 0.3, "reference": str(tmp_path / "third")}
    (tmp_path / "second" / "implicit_prm.json").write_text(json.dumps(settings))
    loaded = count_loads(monkeypatch)
    one = rl(model, tmp_path / "one", *BOTH, "--steps", "3")
    assert loaded == ["model"]
    three = rl(model, tmp_path / "three", *BOTH, "--steps", "3", "--prm.model", str(tmp_path / "second"))
    assert loaded == ["model", "model", "second", "third"]
    assert_same_run(one, three, "model", "prm")
    assert records(one / "metrics.jsonl")[2]["advantage/process_std"] > 0


def test_lora__the_sampler_is_the_policys_adapter_and_the_prm_and_its_reference_are_not(
    model: Path, tmp_path: Path
):
    rows = records(rl(model, tmp_path / "run", *BOTH, "--steps", "3") / "metrics.jsonl")
    assert all(row["policy/mismatch_max"] < 1e-4 for row in rows[1:])
    assert rows[1]["prm/score_right"] == 0  # an adapter starts as its reference
    assert rows[2]["prm/score_right"] != 0


def test_lora__exports_are_whole_models_with_the_adapters_merged(model: Path, tmp_path: Path):
    run = rl(model, tmp_path / "run", *BOTH)
    matrices = {name for name in load_file(model / "model.safetensors") if "_proj.weight" in name}
    assert changed(run / "model", model) == changed(run / "prm", model) == matrices
    assert not list(run.rglob("adapter*"))
    assert read_settings(str(run / "prm")).reference == str(model)
    # What was trained is what was written: scores of the exported PRM, against the change of the weights.
    before, after = load_file(model / "model.safetensors"), load_file(run / "prm" / "model.safetensors")
    for name in matrices:
        rank = torch.linalg.matrix_rank((after[name] - before[name]).double(), atol=1e-6)
        assert 0 < rank <= 4
    read = ["evaluate", str(run / "model"), "--prm", str(run / "prm"), "--benchmark", "clock", "--limit", "2"]
    assert main([*read, "--samples", "2", "--max-response-tokens", "8", "--out", str(tmp_path / "e")]) == 0


def test_lora__checkpoints_hold_only_what_is_trained_and_resuming_is_exact(model: Path, tmp_path: Path):
    flags = (*BOTH, "--save-every", "1", "--keep", "9")
    whole = rl(model, tmp_path / "whole", *flags, "--steps", "4")
    part = rl(model, tmp_path / "part", *flags, "--steps", "2")
    rl(model, part, *flags, "--steps", "4", "--resume")
    assert [r for r in metrics(part) if r["step"] != 2] == [r for r in metrics(whole) if r["step"] != 2]
    for name in ("model", "prm"):
        assert (part / name / "model.safetensors").read_bytes() == (
            whole / name / "model.safetensors"
        ).read_bytes()
    state = torch.load(checkpoints(whole / "checkpoints")[-1] / "state.pt", weights_only=True)
    for part, name in (("policy", "policy"), ("method", "prm")):
        held = state[part]["model"]
        assert held
        assert all(f".lora_A.{name}." in key or f".lora_B.{name}." in key for key in held)


@pytest.mark.parametrize("which", ["policy", "prm"])
def test_lora__one_of_the_two_may_be_trained_whole(
    which: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The reference is the base of whichever has an adapter: two models in memory, not three."""
    loaded = count_loads(monkeypatch)
    run = rl(model, tmp_path / "run", f"--{which}.lora.rank", "2")
    assert loaded == ["model", "model"]
    adapted, whole = ("model", "prm") if which == "policy" else ("prm", "model")
    assert all("_proj.weight" in name for name in changed(run / adapted, model))
    assert "model.embed_tokens.weight" in changed(run / whole, model)


def test_lora__gradient_checkpointing_changes_no_number(model: Path, tmp_path: Path):
    flags = (*BOTH, "--policy.gradient-checkpointing", "--prm.gradient-checkpointing")
    runs = rl(model, tmp_path / "plain", *BOTH), rl(model, tmp_path / "recomputed", *flags)
    for ours, theirs in zip(*map(metrics, runs), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("flags", [BOTH, ("--algorithm", "distill", *BOTH[:2])])
def test_lora__recomputing_in_one_of_two_on_one_base_is_refused(flags, model: Path, tmp_path: Path, capsys):
    assert main(rl_args(model, tmp_path / "run", *flags, "--prm.gradient-checkpointing")) == 2
    assert "prm.gradient_checkpointing to the same" in capsys.readouterr().err


def test_lora__adapters_on_weights_in_the_hosts_memory_are_refused(model: Path, tmp_path: Path, capsys):
    assert main(rl_args(model, tmp_path / "run", *BOTH, "--parallel.cpu-offload")) == 2
    assert "parallel.cpu_offload is for models that are trained whole" in capsys.readouterr().err


@pytest.mark.parametrize("adapters", [(), BOTH])
def test_lora__a_prm_smaller_than_the_policy(model: Path, tmp_path: Path, adapters: tuple[str, ...]):
    """Same tokenizer, half as wide; it is its own reference and is read again by the other commands."""
    tokenizer = load_tokenizer(str(model))
    small = tmp_path / "small"
    save_model(build_model(tokenizer, 16, 1, 2, 512, seed=4), tokenizer, small)
    run = rl(model, tmp_path / "run", "--prm.model", str(small), "--prm.lr", "1e-2", *adapters)
    first, second = records(run / "metrics.jsonl")[1:]
    assert first["prm/score_right"] == first["prm/score_wrong"] == 0
    assert second["prm/score_right"] != 0
    assert read_settings(str(run / "prm")) == (0.3, str(small), "sum")
    assert load_file(run / "prm" / "model.safetensors")["model.norm.weight"].shape == (16,)
    assert load_file(run / "model" / "model.safetensors")["model.norm.weight"].shape == (32,)
    assert changed(run / "prm", small)
    score = ImplicitPRM.from_pretrained(str(run / "prm")).score(["Start four\n+two = ?"], ["+two = six"])
    assert score[0].reward != 0


def test_lora__sft_trains_an_adapter_and_leaves_a_whole_model(model: Path, tmp_path: Path, capsys):
    out = tmp_path / "sft"
    args = ["sft", "configs/sft/tiny.yaml", *CLOCK, "--data.limit", "40", "--eval-data.limit", "2"]
    args += ["--eval.max-response-tokens", "8", "--eval.samples", "0", "--epochs", "1", "--out", str(out)]
    assert main([*args, "--model", str(model), "--optimizer.lora.rank", "2"]) == 0
    assert changed(out / "model", model) == {
        name for name in load_file(model / "model.safetensors") if "_proj.weight" in name
    }
    width, mlp, rank = 32, 96, 2
    trained = rank * (4 * 2 * width + 3 * (width + mlp))
    assert f"{trained:,} trained parameters" in capsys.readouterr().out
    assert main([*args, "--model", "new", "--optimizer.lora.rank", "2", "--out", str(tmp_path / "new")]) == 2
    assert "a new model has nothing to adapt" in capsys.readouterr().err


def test_lora__an_offline_prm_is_an_adapter_on_its_own_reference(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [
        {"prompt": f"say {i // 2}", "response": f"{'four' if i % 2 else 'oops'} {i}", "outcome": i % 2}
        for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = count_loads(monkeypatch)
    args = ["prm", "--model", str(model), "--data.source", str(tmp_path / "rows.jsonl"), "--batch", "8"]
    args += ["--epochs", "8", "--held-out", "0.2", "--optimizer.lr", "1e-2", "--optimizer.lora.rank", "4"]
    assert main([*args, "--out", str(tmp_path / "prm")]) == 0
    assert loaded == ["model"]
    summary = json.loads((tmp_path / "prm" / "held_out.json").read_text())
    assert summary["start"]["pairwise_accuracy"] == 0.5  # no reward at all before training
    assert summary["end"]["loss"] < 0.5 * summary["start"]["loss"]
    assert all("_proj.weight" in name for name in changed(tmp_path / "prm" / "prm", model))


def test_lora__without_the_library_the_command_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "peft" else real(name, *a)
    )
    assert main(rl_args(model, tmp_path / "run", *BOTH)) == 2
    assert "pip install 'openprime[lora]'" in capsys.readouterr().err
