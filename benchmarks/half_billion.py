"""Two PRIME steps of a model of half a billion parameters within 20 GiB, all weights and LoRA.

    python benchmarks/half_billion.py [--ways full lora] [--responses 2] [--new-tokens 16] [--model FOLDER]

`openprime rl` as it is, in a process of its own: a Qwen2 model of the shape of Qwen2.5-0.5B (24 blocks, 896 wide,
151,936 tokens, head tied) with random weights and a small tokenizer, bfloat16 matrix products, float32 weights;
reference, update of the PRM, update of the policy, checkpoint and export are all in it. A verifier of no cost calls
every second response right. Peak memory is the process's largest resident set, beside what `openprime plan` says.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "configs" / "models" / "qwen2.5-0.5b"
PROMPTS = ["Start four\n+two = ?", "Start one\n+nine = ?", "Start six\n+three = ?", "Start two\n+two = ?"]


def alternate(prompts, completions, **columns) -> list[float]:
    """Right, wrong, right, ..."""
    return [float(i % 2) for i in range(len(completions))]


def make_model(folder: Path) -> None:
    """Random weights for the configuration, and a tokenizer of our own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from openprime.models.tiny import build_tokenizer

    tokenizer = build_tokenizer(PROMPTS, 512)
    config = AutoConfig.from_pretrained(CONFIG)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def command(folder: Path, way: str, args: argparse.Namespace) -> list[str]:
    """The run of a way."""
    flags = {
        "model": args.model or folder / "model",
        "out": folder / way,
        "steps": 2,
        "device": "cpu",
        "dtype": "bfloat16",
        "data.source": folder / "prompts.jsonl",
        "data.verifier": "half_billion:alternate",
        "data.max-prompt-tokens": 64,
        "rollout.prompts": 1,
        "rollout.responses": args.responses,
        "rollout.max-response-tokens": args.new_tokens,
        "policy.minibatch": args.responses,
        "policy.lora.rank": 16 if way == "lora" else 0,
        "prm.lora.rank": 16 if way == "lora" else 0,
        "verify.workers": 1,
        "eval.every": 0,
    }
    return [
        sys.executable,
        "-m",
        "openprime",
        "rl",
        *(str(x) for k, v in flags.items() for x in (f"--{k}", v)),
    ]


def run(folder: Path, way: str, args: argparse.Namespace) -> dict:
    """Seconds, peak memory in GiB and metrics of a way."""
    begun = time.perf_counter()
    here = Path(__file__).resolve().parent  # where the verifier's workers find `alternate`
    process = subprocess.Popen(command(folder, way, args), cwd=here, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    _, status, usage = os.wait4(process.pid, 0)  # of this process alone, unlike RUSAGE_CHILDREN's largest
    if status:
        raise SystemExit(f"{way}: status {status}")
    rows = [json.loads(line) for line in (folder / way / "metrics.jsonl").read_text().splitlines()]
    checkpoint = sum(f.stat().st_size for f in (folder / way / "checkpoints").rglob("*") if f.is_file())
    shutil.rmtree(folder / way)
    return {
        "peak_gib": usage.ru_maxrss / 2**20,
        "seconds": time.perf_counter() - begun,
        "step_seconds": rows[-1]["time/step"],
        "checkpoint_gib": checkpoint / 2**30,
        "metrics": rows[-1],
    }


def planned(folder: Path, way: str, args: argparse.Namespace) -> float:
    """GiB that the plan says."""
    from openprime.config import PrimeConfig
    from openprime.plan.memory import GiB, Machine, memory_of, read_shape

    values: dict = {}
    given = command(folder, way, args)[4:]
    for key, value in zip(given[::2], given[1::2], strict=True):
        *parents, name = key.removeprefix("--").replace("-", "_").split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    shape = read_shape(str(CONFIG))
    return memory_of(PrimeConfig.model_validate(values), Machine(pass_rate=1.0), shape, shape).peak / GiB


def main() -> None:
    """Run the ways and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="*", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--responses", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--limit", type=float, default=20.0, help="GiB that a run must stay within")
    parser.add_argument("--model", help="where the model is, or is made; else in a folder that is deleted")
    parser.add_argument("--json")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = "".join(json.dumps({"prompt": prompt, "answer": "1"}) + "\n" for prompt in PROMPTS)
        (folder / "prompts.jsonl").write_text(rows)
        model = Path(args.model or folder / "model").resolve()
        making = f"import pathlib, half_billion as h; h.make_model(pathlib.Path({str(model)!r}))"
        if not model.is_dir():
            subprocess.run([sys.executable, "-c", making], check=True, cwd=Path(__file__).resolve().parent)
        for way in args.ways:
            found[way] = run(folder, way, args) | {"planned_gib": planned(folder, way, args)}
    print(f"\n{'':6}{'peak GiB':>10}{'planned':>10}{'s a step':>10}{'checkpoint GiB':>16}")
    for way, row in found.items():
        cells = (row["peak_gib"], row["planned_gib"], row["step_seconds"], row["checkpoint_gib"])
        print(f"{way:6}{cells[0]:10.2f}{cells[1]:10.2f}{cells[2]:10.1f}{cells[3]:16.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    over = [way for way, row in found.items() if row["peak_gib"] > args.limit]
    if over:
        raise SystemExit(f"over {args.limit:g} GiB: {', '.join(over)}")


if __name__ == "__main__":
    main()
