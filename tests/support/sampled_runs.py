"""Records of runs with samples, so small that every number on a page can be said."""

import json
from pathlib import Path

import yaml

TEXTS = {1.0: ["two", " plus\n", "four", ""], 0.0: ["two", " plus\n", "FIVE", "<|im_end|>"]}
"""The tokens of the right and of the wrong response to every prompt."""


def sampled_run(folder: Path, steps: int = 3, seed: int = 0, **settings: object) -> Path:
    """A run: each step has an accuracy, and one group of a right and three wrong responses."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"steps": 8, "seed": seed} | settings))
    for step in range(1, steps + 1):
        add_step(folder, step, seed)
    return folder


def add_step(folder: Path, step: int, seed: int = 0) -> None:
    """What a further step adds to a run's files: accuracy .1 a step and .01 a seed, rewards 1/8 a step and token."""
    row = {"step": step, "rollout/rollouts": 8 * step, "rollout/accuracy": step / 10 + seed / 100}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        for outcome in (0.0, 0.0, 1.0, 0.0):
            sign = 1 if outcome else -1
            rewards = [sign * step * k / 8 for k in range(4)]
            sample = {
                "step": step,
                "group": 0,
                "prompt": [{"role": "user", "content": f"prompt of step {step}"}],
                "answer": "4",
                "outcome": outcome,
                "reason": "right" if outcome else "wrong",
                "tokens": TEXTS[outcome],
                "rewards": rewards,
                "returns": [sum(rewards[k:]) for k in range(4)],
                "advantages": [sign * 0.5] * 4,
                "logprobs": [-0.25 * k for k in range(4)],
            }
            file.write(json.dumps(sample) + "\n")
