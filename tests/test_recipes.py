"""The configurations for large models: each runs two steps with a tiny model and the embedded task in their place."""

import json
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.config import PrimeConfig, SFTConfig, find_config, read_config
from support.tiny_runs import records

RL = ("eurus-2-7b-prime", "prime-zero-7b", "lora-24gb")
TASK = ("source", "task:clock"), ("verifier-field", ""), ("subset", ""), ("horizon", "2"), ("limit", "40")


def swapped(section: str) -> list[str]:
    """Flags that put the embedded task in the place of a section's data."""
    return [flag for name, value in TASK for flag in (f"--{section}.{name}", value)]


@pytest.mark.parametrize("name", RL)
def test_recipes__two_steps_of_rl(name: str, model: Path, tmp_path: Path):
    if name == "lora-24gb":
        pytest.importorskip("peft")
    args = ["rl", f"configs/rl/{name}.yaml", "--model", str(model), "--out", str(tmp_path / "run")]
    args += [
        *swapped("data"),
        *swapped("eval-data"),
        "--data.template",
        "none",
        "--eval-data.template",
        "none",
    ]
    args += ["--rollout.prompts", "2", "--rollout.max-response-tokens", "16", "--filter.max-draws", "200"]
    args += ["--filter.low", "0.05", "--filter.high", "0.95", "--steps", "2", "--verify.workers", "1"]
    args += ["--engine.kind", "transformers"]
    assert main([*args, "--eval-data.limit", "4"]) == 0
    rows = records(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["prm/score_right"] == 0  # the PRM begins as its reference
    assert rows[2]["prm/loss"] > 0
    for part in ("model", "prm"):
        assert (tmp_path / "run" / part / "model.safetensors").is_file()


def test_recipes__two_steps_of_sft(model: Path, tmp_path: Path):
    args = ["sft", "configs/sft/eurus-2-7b.yaml", "--model", str(model), "--out", str(tmp_path / "run")]
    args += [*swapped("data"), "--data.template", "none", "--batch", "20", "--epochs", "1"]
    assert main(args) == 0
    assert [row["step"] for row in records(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_recipes__two_steps_of_an_offline_prm(model: Path, tmp_path: Path):
    talks = [(f"say {i // 2}", f"{'yes' if i % 2 else 'no'} {i}") for i in range(200)]
    rows = [
        {"response": [{"role": r, "content": c} for r, c in zip(("user", "assistant"), talk, strict=True)]}
        | {"label": i % 2}
        for i, talk in enumerate(talks)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["prm", "configs/prm/eurus-prm-7b.yaml", "--model", str(model), "--out", str(tmp_path / "run")]
    args += ["--data.source", str(tmp_path / "rows.jsonl"), "--batch", "99", "--step-split", "newline"]
    assert main(args) == 0
    assert max(row["step"] for row in records(tmp_path / "run" / "metrics.jsonl")) == 2


def test_recipes__data_of_the_published_pipeline(tmp_path: Path):
    """Rows in the fields of NuminaMath-CoT, whose messages repeat them."""
    solved = {
        "What is $2 + 3$?": r"We add: \boxed{5}.",
        "Find $x$ if $2x = 7$.": r"Halve it: \boxed{\frac{7}{2}}.",
    }
    solved["Prove that $x^2 \\ge 0$ for every real $x$."] = "A square is not negative."
    rows = [
        {"source": "olympiads", "problem": problem, "solution": solution}
        | {"messages": [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]}
        for problem, solution in solved.items()
    ]
    for name, part in (("rows", rows), ("test", rows[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    args = ["data", "configs/data/eurus-2.yaml", "--data.source", str(tmp_path / "rows.jsonl")]
    args += ["--benchmarks", str(tmp_path / "test.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*args, "--samples", "0", "--choices", "rules", "--endpoint", ""]) == 0
    assert [row["reason"] for row in records(tmp_path / "out" / "dropped.jsonl")] == ["benchmark", "proof"]
    (kept,) = records(tmp_path / "out" / "prepared.jsonl")
    assert kept["prompt"] == "Find $x$ if $2x = 7$."
    flags = ["--verify.workers", "1", "--out", str(tmp_path / "judged.jsonl")]
    row = {"prompt": kept["prompt"], "answer": kept["answer"], "response": r"It is \boxed{3.5}."}
    (tmp_path / "said.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["verify", str(tmp_path / "said.jsonl"), *flags]) == 0
    assert records(tmp_path / "judged.jsonl")[0]["outcome"] == 1


def test_recipes__the_published_numbers():
    """arXiv 2502.01456 and the model cards."""
    for name in RL[:2]:
        config = read_config(PrimeConfig, find_config(f"configs/rl/{name}.yaml"))
        assert (config.rollout.prompts, config.rollout.responses, config.steps) == (256, 4, 592)
        assert (config.data.max_prompt_tokens, config.rollout.max_response_tokens) == (1024, 3072)
        assert (config.policy.lr, config.policy.minibatch, config.policy.clip_grad) == (5e-7, 256, 1.0)
        assert (config.prm.lr, config.prm.beta, config.prm.clip_grad) == (1e-6, 0.05, 10.0)
        assert (config.prm.loss, config.prm.update, config.advantage.estimator) == ("ce", "after", "rloo")
        assert (config.filter.low, config.filter.high, config.dtype) == (0.2, 0.8, "bfloat16")
    sft = read_config(SFTConfig, find_config("configs/sft/eurus-2-7b.yaml"))
    assert (sft.optimizer.lr, sft.optimizer.schedule, sft.optimizer.warmup) == (1e-5, "cosine", 0.1)
    assert (sft.batch, sft.epochs, sft.model) == (96, 3, "Qwen/Qwen2.5-Math-7B")
