"""One script for a machine with CUDA: numbers against float32, a step's time, rates, model FLOP use, memory, TRL.

    python benchmarks/gpu.py [--shape 0.5B] [--lora 0] [--recompute] [--steps 4] [--gpu-tflops 989] [--json FILE]
    python benchmarks/gpu.py --device cpu --shape tiny     # the same code on a CPU

Weights are random and responses have their full length (the end token is outside of the vocabulary). The verifier costs
nothing. Every part runs in a process of its own. Times are medians over the steps but the first, with the device
synchronised at the ends of each phase. Model FLOP use counts the passes that the algorithm needs, not what
gradient checkpointing repeats, over the device's peak. Memory is what PyTorch has allocated at each phase's peak (on a
CPU the resident set), beside `openprime plan`. TRL's GRPO does the same work but for the PRM: same model, prompts,
lengths and batch, one optimiser step, KL 0, bfloat16 in autocast; it is left out where TRL is not installed.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from plan_memory import forget_peak, resident
from step_work import Shape, alternate, make_files

SHAPES = {
    "tiny": Shape(256, 4, 4, 2, 768, 4096, 4, 4, 64),
    "0.5B": Shape(896, 24, 14, 2, 4864, 151_936, 32, 8, 512, (128, 256)),
    "1.5B": Shape(1536, 28, 12, 2, 8960, 151_936, 32, 8, 512, (128, 256)),
    "7B": Shape(3584, 28, 28, 4, 18944, 152_064, 16, 8, 512, (128, 256)),
}
PHASES = ("rollout", "reference", "prm", "policy")
GiB = 2**30


class Meter:
    """Seconds and peak memory of the phases of a step; stands in for a run's clock."""

    def __init__(self, device: str, before: float) -> None:
        self.cuda, self.before = device == "cuda", before
        self.steps: list[dict[str, tuple[float, float]]] = []

    @contextmanager
    def phase(self, name: str):
        """Measure a block: (seconds, peak bytes)."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()
        begun = time.perf_counter()
        yield
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        peak = torch.cuda.max_memory_allocated() if self.cuda else resident()[1]
        self.steps[-1][name] = seconds, peak - self.before

    def medians(self) -> dict[str, dict[str, float]]:
        """Phase -> seconds and GiB."""
        kept = self.steps[1:]
        return {
            name: {
                "seconds": statistics.median(step[name][0] for step in kept),
                "gib": max(step[name][1] for step in kept) / GiB,
            }
            for name in PHASES
            if name in kept[0]
        }


def settings(folder: Path, args: argparse.Namespace):
    """The run."""
    from openprime.config import PrimeConfig

    shape = SHAPES[args.shape]
    rows = shape.prompts * shape.responses
    optimizer = {
        "tokens_per_microbatch": args.tokens,
        "gradient_checkpointing": args.recompute,
        "lora": {"rank": args.lora},
    }
    return PrimeConfig.model_validate(
        {
            "model": str(folder / "rl"),
            "out": str(folder / "run"),
            "steps": args.steps,
            "device": args.device,
            "dtype": args.dtype,
            "data": {
                "source": str(folder / "prompts.jsonl"),
                "verifier": "gpu:alternate",
                "chat_template": "none",
                "max_prompt_tokens": shape.prompt_tokens[1],
            },
            "rollout": {
                "prompts": shape.prompts,
                "responses": shape.responses,
                "max_response_tokens": shape.new_tokens,
            },
            "policy": {"minibatch": rows, **optimizer},
            "prm": optimizer,
            "verify": {"workers": 1},
            "eval": {"every": 0},
        }
    )


def correctness(folder: Path, args: argparse.Namespace) -> dict:
    """Log-probabilities and the gradient's norm of a batch, on the device in both precisions, against the CPU."""
    import torch

    from openprime.models.hub import load_model
    from openprime.models.logprobs import token_logprobs
    from openprime.models.placement import Placement

    shape = SHAPES[args.shape]
    ids = torch.randint(shape.vocabulary, (2, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, :8] = False

    def measured(device: str, bfloat16: bool) -> tuple[torch.Tensor, float]:
        model = load_model(str(folder / "rl"), device).eval()
        with Placement(torch.device(device), bfloat16).autocast():
            values = token_logprobs(model, ids.to(device), mask.to(device))
        values.sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        return values.detach().cpu()[mask], float(norm)

    exact, norm = measured("cpu", False)
    found = {}
    for bfloat16 in (False, True):
        values, own = measured(args.device, bfloat16)
        gap = (values - exact).abs()
        found["bfloat16" if bfloat16 else "float32"] = {
            "mean": float(gap.mean()),
            "largest": float(gap.max()),
            "gradient_norm": own / norm - 1,
        }
    return found


def steps(folder: Path, args: argparse.Namespace) -> dict:
    """Steps of `openprime rl`, made of its own pieces."""
    import torch

    from openprime.plan.memory import Machine, memory_of, parts_of, read_shape, work_of
    from openprime.prime.build import build
    from openprime.verifiers.pool import Pool

    config, shape = settings(folder, args), SHAPES[args.shape]
    meter = Meter(args.device, torch.cuda.memory_allocated() if args.device == "cuda" else resident()[0])
    mismatch = []
    with Pool(config.verify) as pool:
        run, policy, method, engine, rollouts, *_ = build(config, pool)
        run.clock.phase = meter.phase  # the method's clock is the run's
        for step in range(args.steps):
            meter.steps.append({})
            with meter.phase("rollout"):
                groups = rollouts.collect(step, lambda: None)
            batch, done = method.step(policy, rollouts.batch(groups).to(policy.lm.device))
            engine.load(policy.lm.tensors(), step)
            mismatch.append(done["policy/mismatch_mean"])
    rows = shape.prompts * shape.responses
    tokens = int(batch.response_mask.sum())
    assert tokens == rows * shape.new_tokens, "a response ended early"
    model = read_shape(config.model)
    plan = memory_of(config, Machine(pass_rate=1.0), model, model).phases
    found = meter.medians()
    prompt = (int(batch.lengths.sum()) - tokens) / rows
    without = config.model_copy(
        update={
            name: getattr(config, name).model_copy(update={"gradient_checkpointing": False})
            for name in ("policy", "prm")
        }
    )
    work = work_of(without, parts_of(without, model, model), prompt, shape.new_tokens, 1.0)
    training = sum(found[name]["seconds"] for name in PHASES[1:])
    peak = args.gpu_tflops * 1e12
    return {
        "phases": found,
        "planned_gib": {
            name: sum(plan["sampling" if name == "rollout" else name].values()) / GiB for name in found
        },
        "sampled_tokens_per_second": tokens / found["rollout"]["seconds"],
        "trained_tokens_per_second": int(batch.lengths.sum()) / training,
        "training_flop_use": work["training_flops"] / training / peak,
        "sampling_flop_use": work["sampling_flops"] / found["rollout"]["seconds"] / peak,
        "mismatch": max(mismatch),
    }


def trl(folder: Path, args: argparse.Namespace) -> dict:
    """Steps of TRL's GRPO on the same work."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    shape = SHAPES[args.shape]
    rows = shape.prompts * shape.responses
    at_once = max(1, min(rows, args.tokens // (shape.prompt_tokens[1] + shape.new_tokens)))
    while rows % at_once:
        at_once -= 1
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=args.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows // at_once,
        num_generations=shape.responses,
        max_completion_length=shape.new_tokens,
        shuffle_dataset=False,
        beta=0.0,
        learning_rate=1e-6,
        bf16=args.dtype == "bfloat16",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=args.recompute,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
    )
    seconds: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_, **__) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.begun)

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "rl", dtype=torch.float32),
        reward_funcs=alternate,
        args=config,
        train_dataset=load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "rl"),
        callbacks=[Watch()],
    )
    before = torch.cuda.memory_allocated() if args.device == "cuda" else resident()[0]
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident()[1] - before
    return {"step_seconds": statistics.median(seconds[1:]), "peak_gib": peak / GiB, "rows_at_once": at_once}


WORK = {"correctness": correctness, "steps": steps, "trl": trl}


def show(found: dict, args: argparse.Namespace) -> None:
    """The tables."""
    print(
        f"\n{args.shape}, {args.dtype}, {'LoRA ' + str(args.lora) if args.lora else 'all weights'}, {found['device']}"
    )
    print("\nlog-probabilities against float32 on the CPU, in nats; the gradient's norm")
    for dtype, row in found["correctness"].items():
        print(
            f"{dtype:10} mean {row['mean']:.1e}  largest {row['largest']:.1e}  norm {row['gradient_norm']:+.1%}"
        )
    own = found["steps"]
    print(f"\n{'phase':12}{'seconds':>10}{'GiB':>10}{'planned':>10}")
    for name, row in own["phases"].items():
        print(f"{name:12}{row['seconds']:10.3f}{row['gib']:10.2f}{own['planned_gib'][name]:10.2f}")
    print(f"{'step':12}{sum(row['seconds'] for row in own['phases'].values()):10.3f}")
    print(
        f"sampled {own['sampled_tokens_per_second']:,.0f} tokens/s at {own['sampling_flop_use']:.1%} of the peak, "
        f"trained {own['trained_tokens_per_second']:,.0f} at {own['training_flop_use']:.1%}; sampler against trainer "
        f"{own['mismatch']:.1e} nats on average"
    )
    if "trl" in found:
        theirs = found["trl"]
        print(
            f"TRL GRPO: {theirs['step_seconds']:.3f} s a step, {theirs['peak_gib']:.2f} GiB (no PRM, no reference)"
        )
    else:
        print("TRL is not installed: pip install trl")


def main() -> None:
    """Every part in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="0.5B")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--lora", type=int, default=0, help="rank; 0 trains all weights")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--tokens", type=int, default=16384, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--gpu-tflops", type=float, default=989.0, help="the device's peak in bfloat16")
    parser.add_argument("--json")
    parser.add_argument("--part", choices=[*WORK, "files"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "files":
        make_files(Path(args.folder), SHAPES[args.shape])
        return
    if args.part:
        print("\n" + json.dumps(WORK[args.part](Path(args.folder), args)))
        return
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device: --device cpu runs the same code on a CPU")
    found: dict = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "arguments": vars(args),
        "shape": asdict(SHAPES[args.shape]),
    }
    parts = ["files", "correctness", "steps", *(["trl"] if importlib.util.find_spec("trl") else [])]
    here = Path(__file__).resolve().parent  # where the verifier's workers find `alternate`
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", folder]
            environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=environment)
            if done.returncode:
                raise SystemExit(f"{part} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            if part != "files":
                found[part] = json.loads(done.stdout.splitlines()[-1])
    show(found, args)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
