"""`openprime plan` against measured peaks of memory on the CPU: RL steps of three sizes, all weights and LoRA.

    python benchmarks/plan_memory.py [--cases tiny 50M 0.5B] [--json FILE]

Each case runs in a process of its own: two steps of `openprime rl` on a model with random weights, made of the
command's own pieces. Memory is the resident set over what it was before the models were loaded (after a step on a
smallest model, for what libraries take once), its peak taken anew in each phase of the second step. glibc is told to
give freed blocks back at once, so that the resident set is what is in use. All responses have their full length.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

MiB = 2**20
PHASES = ("sampling", "reference", "prm", "policy")


@dataclass(frozen=True, slots=True)
class Case:
    """A model and a batch."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    mlp: int
    vocabulary: int
    prompts: int
    responses: int
    new_tokens: int
    tokens: int
    """Of a micro-batch."""
    dtype: str = "float32"
    lora: int = 0
    recompute: bool = False
    tied: bool = True


TINY = Case(256, 4, 8, 2, 768, 512, 8, 4, 224, 2048)
MIDDLE = Case(512, 8, 8, 2, 2048, 32_000, 2, 4, 96, 512)  # 46.8M parameters
HALF = Case(896, 24, 14, 2, 4864, 151_936, 1, 4, 32, 128, "bfloat16")  # 494M, the shape of Qwen2.5-0.5B
PROMPT = 32
"""Tokens of every prompt."""


def variant(case: Case, **changes) -> Case:
    """A case with some fields changed."""
    return Case(**(asdict(case) | changes))


CASES = {
    "tiny": TINY,
    "tiny, LoRA": variant(TINY, lora=8),
    "tiny, recomputed": variant(TINY, recompute=True),
    "tiny, bfloat16": variant(TINY, dtype="bfloat16"),
    "50M": MIDDLE,
    "50M, LoRA": variant(MIDDLE, lora=16),
    "50M, untied": variant(MIDDLE, tied=False),
    "50M, bfloat16": variant(MIDDLE, dtype="bfloat16"),
    "50M, bfloat16, LoRA": variant(MIDDLE, dtype="bfloat16", lora=16),
    "0.5B": HALF,
    "0.5B, LoRA": variant(HALF, lora=16, tokens=256),
}


def alternate(prompts, completions, **columns) -> list[float]:
    """A verifier of no cost: every group passes the filter."""
    return [float(i % 2) for i in range(len(completions))]


def resident() -> tuple[int, int]:
    """(resident set now, its peak since `forget_peak`), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def forget_peak() -> None:
    """Let the peak start at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def make_files(folder: Path, case: Case) -> None:
    """A model with random weights and an end token outside of its vocabulary, and prompts."""
    import random

    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from step_work import make_tokenizer, text_of, write_rows

    tokenizer = make_tokenizer(min(case.vocabulary, 4096))
    config = Qwen2Config(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=case.mlp,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.key_value_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=case.tied,
        eos_token_id=case.vocabulary,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        architectures=["Qwen2ForCausalLM"],
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=case.vocabulary)
    model.save_pretrained(folder / "model")
    draw = random.Random(0)
    prompts = []
    while len(prompts) < 4 * case.prompts:
        ids = tokenizer.encode(text_of(draw, tokenizer, PROMPT + 8))[:PROMPT]
        text = tokenizer.decode(ids)
        if len(tokenizer.encode(text)) == PROMPT:
            prompts.append(text)
    write_rows(folder / "prompts.jsonl", [{"prompt": text, "answer": "1"} for text in prompts])
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    tokenizer.save_pretrained(folder / "model")


def settings(folder: Path, case: Case, out: str) -> "PrimeConfig":  # noqa: F821
    """The run of a case."""
    from openprime.config import PrimeConfig

    optimizer = {
        "tokens_per_microbatch": case.tokens,
        "gradient_checkpointing": case.recompute,
        "lora": {"rank": case.lora},
    }
    return PrimeConfig.model_validate(
        {
            "model": str(folder / "model"),
            "out": str(folder / out),
            "steps": 2,
            "dtype": case.dtype,
            "device": "cpu",
            "data": {
                "source": str(folder / "prompts.jsonl"),
                "verifier": "plan_memory:alternate",
                "chat_template": "none",
                "max_prompt_tokens": PROMPT,
            },
            "rollout": {
                "prompts": case.prompts,
                "responses": case.responses,
                "max_response_tokens": case.new_tokens,
            },
            "policy": {"minibatch": case.prompts * case.responses, **optimizer},
            "prm": optimizer,
            "verify": {"workers": 1},
            "eval": {"every": 0},
        }
    )


def run_steps(config, steps: int) -> list[dict[str, int]]:
    """Peak of the resident set in each phase of each step, in bytes."""
    from openprime.prime.build import build
    from openprime.verifiers.pool import Pool

    found = []
    with Pool(config.verify) as pool:
        run, policy, method, _, rollouts, *_ = build(config, pool)
        for step in range(steps):
            peaks: dict[str, int] = {}
            run.clock.phase = lambda name, peaks=peaks: watched(name, peaks)
            with watched("sampling", peaks):
                groups = rollouts.collect(step, lambda: None)
            batch = rollouts.batch(groups)
            assert (batch.lengths == PROMPT + config.rollout.max_response_tokens).all()
            method.step(policy, batch)
            found.append(peaks)
    return found


@contextmanager
def watched(name: str, peaks: dict[str, int]):
    """A block whose peak goes into `peaks`."""
    forget_peak()
    yield
    peaks[name] = resident()[1]


def work(name: str, folder: Path) -> None:
    """Measure one case and print what was found as JSON."""
    import gc

    import torch

    from openprime.models import hub

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    case = CASES[name]
    small = variant(
        case, hidden=64, layers=1, heads=2, key_value_heads=1, mlp=64, vocabulary=512, new_tokens=4
    )
    for one, label in ((small, "small"), (case, "large")):
        (folder / label).mkdir()
        make_files(folder / label, one)
    # A model without an end token, so that responses have their full length: what a run refuses.
    hub._end_tokens = lambda generation, tokenizer, known: frozenset({known})
    run_steps(settings(folder / "small", small, "run"), 1)
    gc.collect()
    before, begun = resident()[0], time.perf_counter()
    config = settings(folder / "large", case, "run")
    steps = run_steps(config, 2)
    seconds = (time.perf_counter() - begun) / 2
    print("\n" + json.dumps({"before": before, "phases": steps[-1], "first": steps[0], "seconds": seconds}))


def planned(name: str, folder: Path) -> dict[str, float]:
    """Bytes that the plan says, by phase."""
    from openprime.plan.memory import Machine, memory_of, read_shape

    config = settings(folder / "large", CASES[name], "run")
    shape = read_shape(config.model)
    return memory_of(config, Machine(pass_rate=1.0), shape, shape).phases


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--json")
    parser.add_argument("--parts", action="store_true", help="show what the planned peak is made of")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        work(args.case, Path(args.folder))
        return
    environment = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_TOP_PAD_": "0",
    }
    rows, worst = {}, 0.0
    print(f"{'case':24}{'phase':12}{'planned':>10}{'measured':>10}{'error':>8}   MiB over the process before")
    for name in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--case", name, "--folder", folder]
            here = Path(__file__).resolve().parent  # where the verifier's workers find `alternate`
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            measured = json.loads(done.stdout.splitlines()[-1])
            plan = planned(name, Path(folder))
        rows[name] = {"planned": plan, **measured}
        both = {p: (sum(plan[p].values()), measured["phases"][p] - measured["before"]) for p in PHASES}
        both["peak"] = tuple(max(pair[i] for pair in both.values()) for i in (0, 1))  # pyright: ignore
        for phase, (expected, found) in both.items():
            error = expected / found - 1
            print(f"{name:24}{phase:12}{expected / MiB:10,.0f}{found / MiB:10,.0f}{error:+8.1%}", flush=True)
            if args.parts and phase in plan:
                print(" " * 36 + ", ".join(f"{k} {v / MiB:,.0f}" for k, v in plan[phase].items() if v))
            worst = max(worst, abs(error)) if phase == "peak" else worst
    print(f"largest error of a peak: {worst:.1%}")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
