"""What step_time.py measures: one system at one shape, in a process of its own."""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RATE = 1e-6
SFT_ROWS = 128


@dataclass(frozen=True, slots=True)
class Shape:
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
    prompt_tokens: tuple[int, int] = (16, 32)

    def work(self) -> float:
        """Multiplications of a PRIME step: sampling, a reference forward, PRM and policy forward and backward."""
        head = self.hidden // self.heads * self.key_value_heads
        block = 2 * self.hidden * (self.hidden + head) + 3 * self.hidden * self.mlp
        body, logits = self.layers * block, self.hidden * self.vocabulary
        rows, prompt = self.prompts * self.responses, sum(self.prompt_tokens) / 2
        # Two products over half of the positions.
        attention = self.layers * self.hidden * (prompt + self.new_tokens)
        passes = 1 + 1 + 3 + 3  # a backward pass is two products for one of the forward pass
        tokens = self.prompts * prompt + rows * self.new_tokens  # a prompt once for its responses
        return passes * (tokens * body + rows * self.new_tokens * (logits + attention))


SHAPES = {
    "tiny": Shape(256, 4, 4, 2, 768, 512, 32, 4, 96),  # 3.28M parameters
    "mid": Shape(512, 8, 8, 2, 2048, 32_000, 8, 4, 128),  # 46.8M parameters
}


def alternate(prompts, completions, **columns) -> list[float]:
    """The verifier of both sides."""
    return [float(i % 2) for i in range(len(completions))]


# What both sides read


def make_files(folder: Path, shape: Shape, seed: int = 0) -> None:
    """`rl` and `sft` models (the same weights), `prompts.jsonl` and `demonstrations.jsonl`."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(shape.vocabulary)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=config.eos_token_id)
    model.save_pretrained(folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    draw = random.Random(seed)
    prompts = [text_of(draw, tokenizer, draw.randint(*shape.prompt_tokens)) for _ in range(shape.prompts)]
    write_rows(folder / "prompts.jsonl", [{"prompt": p, "answer": "1"} for p in prompts])
    answers = [text_of(draw, tokenizer, draw.randint(64, 126)) for _ in range(SFT_ROWS)]
    rows = [{"prompt": prompts[i % len(prompts)], "completion": a} for i, a in enumerate(answers)]
    write_rows(folder / "demonstrations.jsonl", rows)
    tokenizer.add_special_tokens({"eos_token": "<never>"})  # its id is the first that the model does not have
    assert tokenizer.eos_token_id == shape.vocabulary
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / "rl")
    tokenizer.save_pretrained(folder / "rl")


def make_tokenizer(size: int):
    """A byte-level BPE tokenizer of exactly `size` tokens, merges made up."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens, merges = list(letters), []
    for left in tokens:  # grows while it is read
        for right in letters[: min(len(letters), size - 2 - len(tokens))]:
            tokens.append(left + right)
            merges.append((left, right))
        if len(tokens) >= size - 2:
            break
    vocabulary = {token: i for i, token in enumerate([*tokens, "<pad>", "<end>"])}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, unk_token=None, pad_token="<pad>", eos_token="<end>"
    )


def text_of(draw: random.Random, tokenizer, tokens: int) -> str:
    """Words of letters, of about so many tokens."""
    text = ""
    while len(tokenizer.encode(text)) < tokens:
        text += " " + "".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 3)))
    return text.strip()


def write_rows(path: Path, rows: list[dict]) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# One system


class Meter:
    """Wall and CPU seconds of the parts of a step; stands in for a run's clock."""

    def __init__(self) -> None:
        self.steps: list[dict[str, list[float]]] = []
        self.parts: dict[str, list[float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count a block towards `name`."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        held = self.parts.setdefault(name, [0.0, 0.0])
        held[0] += time.perf_counter() - wall
        held[1] += cpu_seconds() - cpu

    @contextmanager
    def step(self) -> Iterator[None]:
        """A whole step."""
        self.parts = {}
        with self.phase("step"):
            yield
        self.steps.append(self.parts)

    def result(self, tokens: int, before: int) -> dict:
        """[wall, CPU] seconds of every part of every step but the first, and the peak of memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = {"peak_mib": peak / 1024, "peak_over_start_mib": (peak - before) / 1024}
        return {"steps": self.steps[1:], "tokens": tokens} | memory


def cpu_seconds() -> float:
    """CPU seconds of this process and its children, dead or alive."""
    total = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    stats = [Path(f"/proc/{child}/stat") for child in children(os.getpid())]
    for stat in stats:
        if stat.exists():
            user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def children(process: int) -> list[str]:
    """Child processes, down to the last."""
    path = Path(f"/proc/{process}/task/{process}/children")
    own = path.read_text().split() if path.exists() else []
    return own + [child for parent in own for child in children(int(parent))]


def run_ours(system: str, folder: Path, shape: Shape, precision: str, steps: int) -> dict:
    """RL steps of `openprime rl`, made of its own pieces."""
    from openprime.config import (
        DataConfig,
        OutcomeConfig,
        PolicyConfig,
        PrimeConfig,
        PRMConfig,
        RolloutConfig,
        VerifyConfig,
    )
    from openprime.prime.build import build
    from openprime.ranks import gather
    from openprime.run.launch import joined
    from openprime.verifiers.pool import Pool

    rows = shape.prompts * shape.responses
    prm = PRMConfig(reference="policy" if "policy as reference" in system else "frozen")
    settings, own = (PrimeConfig, {"prm": prm}) if system.startswith("PRIME") else (OutcomeConfig, {})
    config = settings(
        model=str(folder / "rl"),
        steps=steps,
        data=DataConfig(
            source=str(folder / "prompts.jsonl"), verifier="step_work:alternate", chat_template="none"
        ),
        eval_data=DataConfig(),
        rollout=RolloutConfig(
            prompts=shape.prompts, responses=shape.responses, max_response_tokens=shape.new_tokens
        ),
        policy=PolicyConfig(lr=RATE, minibatch=rows),
        out=str(folder / f"run-{os.environ.get('MASTER_PORT', os.getpid())}"),
        dtype=precision,  # pyright: ignore[reportArgumentType]
        verify=VerifyConfig(workers=1),
        **own,
    )
    meter = Meter()
    with joined(config), Pool(config.verify) as pool:
        run, policy, method, engine, rollouts, *_ = build(config, pool)
        run.clock.phase = meter.phase  # the method's clock is the run's
        engine.load(policy.lm.tensors(), 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for step in range(steps):
            with meter.step():
                with meter.phase("rollout"):
                    groups = rollouts.collect(step, lambda: None)
                batch, _ = method.step(policy, rollouts.batch(groups))
                engine.load(policy.lm.tensors(), step)
        meter.steps = [all_ranks(steps) for steps in zip(*gather(meter.steps), strict=True)]
    tokens = int(batch.response_mask.sum())
    assert tokens == rows * shape.new_tokens, "a response ended early"
    return meter.result(tokens, before)


def all_ranks(step: tuple[dict[str, list[float]], ...]) -> dict[str, list[float]]:
    """One step as the ranks saw it: the longest time, and the CPU seconds of all."""
    return {
        name: [max(part[name][0] for part in step), sum(part[name][1] for part in step)] for name in step[0]
    }


def run_trl(system: str, folder: Path, shape: Shape, precision: str, steps: int, rows_at_once: int) -> dict:
    """Steps of TRL's GRPOTrainer or RLOOTrainer, timed from outside."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    grpo, tuned = "GRPO" in system, "tuned" in system
    make_config, make_trainer = (GRPOConfig, GRPOTrainer) if grpo else (RLOOConfig, RLOOTrainer)
    rows = shape.prompts * shape.responses
    rows_at_once = min(rows, rows_at_once)
    config = make_config(
        max_steps=steps,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=rows // rows_at_once,
        num_generations=shape.responses,
        max_completion_length=shape.new_tokens,
        shuffle_dataset=False,
        **trl_settings(folder, precision, tuned),
        **({"beta": 0.0} if tuned else {}),
    )
    trainer = make_trainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "rl", dtype=torch.float32),
        reward_funcs=alternate,
        args=config,
        train_dataset=load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "rl"),
    )
    meter, sampled = Meter(), []
    generate, score = trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies

    def timed_generate(*args, **kwargs):
        with meter.phase("rollout"):
            found = generate(*args, **kwargs)
        sampled.append(sum(map(len, found if isinstance(found, list) else found[0])))
        return found

    def timed_score(*args, **kwargs):
        if torch.is_grad_enabled():
            return score(*args, **kwargs)
        with meter.phase("reference"):
            return score(*args, **kwargs)

    trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies = timed_generate, timed_score
    before = watch(trainer, meter)
    assert sampled == [rows * shape.new_tokens] * steps, f"a response ended early: {sampled}"
    return meter.result(sampled[-1], before)


def run_sft(folder: Path, precision: str, steps: int) -> dict:
    """Optimiser steps of `openprime sft`, made of its own pieces."""
    from openprime.config import DataConfig, OptimizerConfig
    from openprime.data.collate import collate_demonstrations
    from openprime.data.readers import read_demonstrations
    from openprime.models.hub import load_model, load_tokenizer
    from openprime.models.lm import LM
    from openprime.models.placement import Placement
    from openprime.prime.learner import Learner
    from openprime.prime.losses import sft_loss

    model, tokenizer = load_model(str(folder / "sft")), load_tokenizer(str(folder / "sft"))
    source = DataConfig(source=str(folder / "demonstrations.jsonl"), chat_template="none")
    data = read_demonstrations(source, tokenizer, 4096)
    lm, meter = LM(model, Placement(bfloat16=precision == "bfloat16")), Meter()
    learner = Learner(lm, OptimizerConfig(lr=RATE), steps)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(steps):
        with meter.step():
            batch = collate_demonstrations(data.rows, 0)
            loss = lambda logprobs, micro: sft_loss(logprobs, micro.response_mask)  # noqa: E731
            learner.update(batch, loss, int(batch.response_mask.sum()))
    return meter.result(int(batch.lengths.sum()), before)


def run_trl_sft(system: str, folder: Path, precision: str, steps: int, rows_at_once: int) -> dict:
    """Optimiser steps of TRL's SFTTrainer on the same demonstrations."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows_at_once = min(SFT_ROWS, rows_at_once)
    config = SFTConfig(
        max_steps=steps,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=SFT_ROWS // rows_at_once,
        **trl_settings(folder, precision, "tuned" in system),
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "sft", dtype=torch.float32),
        args=config,
        train_dataset=load_dataset("json", data_files=str(folder / "demonstrations.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "sft"),
    )
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    meter = Meter()
    return meter.result(tokens, watch(trainer, meter))


def trl_settings(folder: Path, precision: str, tuned: bool) -> dict:
    """What TRL's three trainers share."""
    return {
        "output_dir": str(folder / "trl"),
        "learning_rate": RATE,
        "bf16": precision == "bfloat16",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
    } | ({"gradient_checkpointing": False} if tuned else {})


def watch(trainer, meter: Meter) -> int:
    """Train with every optimiser step measured; the process's peak memory before it began."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs) -> None:
            self.timer = meter.step()
            self.timer.__enter__()

        def on_step_end(self, *args, **kwargs) -> None:
            self.timer.__exit__(None, None, None)

    trainer.add_callback(Watch())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.train()
    return before


def main() -> None:
    """Measure one system, described by JSON on the command line, and print what was found as JSON."""
    task = json.loads(sys.argv[1])
    import torch

    torch.set_num_threads(task["threads"])
    system, folder, shape = task["system"], Path(task["folder"]), Shape(**task["shape"])
    precision, steps = task["precision"], task["steps"] + 1
    if system == "files":
        make_files(folder, shape)
        result: dict = {}
    elif system == "SFT":
        result = run_sft(folder, precision, steps)
    elif system.startswith("TRL SFT"):
        result = run_trl_sft(system, folder, precision, steps, task["trl_rows"])
    elif system.startswith("TRL"):
        result = run_trl(system, folder, shape, precision, steps, task["trl_rows"])
    else:
        result = run_ours(system, folder, shape, precision, steps)
    if os.environ.get("RANK", "0") == "0":
        print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
