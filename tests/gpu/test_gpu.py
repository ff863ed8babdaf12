"""What only a CUDA device shows: the same numbers as on the CPU, within precision; and the memory that was planned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from openprime.cli import main
from openprime.config import LoRAConfig, LoRAOptimizerConfig, SFTConfig
from openprime.data.collate import collate
from openprime.engines.transformers import TransformersEngine
from openprime.models.lm import LM
from openprime.models.lora import add_adapter
from openprime.models.placement import Placement
from openprime.models.tiny import build_tokenizer
from openprime.plan.memory import Machine, memory_of, read_shape
from openprime.prime.learner import Learner
from openprime.prime.losses import sft_loss
from openprime.types import Batch, Prompt, Sampling
from support.tiny_runs import records

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
VOCABULARY = 2048


def build(hidden: int = 256, layers: int = 4) -> PreTrainedModel:
    """A Qwen2 model with random weights, on the CPU."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        tie_word_embeddings=True,
        eos_token_id=VOCABULARY - 1,
        architectures=["Qwen2ForCausalLM"],
    )
    model = Qwen2ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=VOCABULARY - 1)
    return model


def batch_of(rows: int, width: int, shortest: int) -> Batch:
    """Random tokens; prompts of 8, responses that end between `shortest` and `width`."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, width + 1, (rows,), generator=generator)
    places = torch.arange(width)[None]
    mask = (places >= 8) & (places < lengths[:, None])
    return Batch(
        token_ids=torch.randint(VOCABULARY - 1, (rows, width), generator=generator),
        response_mask=mask,
        lengths=lengths,
        outcome=torch.arange(rows) % 2.0,
        group=torch.arange(rows) // 4,
        logprobs=torch.zeros(rows, width),
        step_end=torch.zeros_like(mask),
    )


def loss(logprobs: Tensor, micro: Batch) -> Tensor:
    return sft_loss(logprobs, micro.response_mask)


def updated(device: str, bfloat16: bool, rank: int = 0) -> tuple[Tensor, float]:
    """Log-probabilities and gradient norm of an SFT step, back on the CPU."""
    model, adapter, place = build(), "sft" if rank else "", Placement(torch.device(device), bfloat16)
    if rank:
        add_adapter(model, "sft", LoRAConfig(rank=rank))
    model.to(place.device)  # pyright: ignore[reportArgumentType]
    learner = Learner(LM(model, place, adapter), LoRAOptimizerConfig(lr=1e-3), 1)
    batch = batch_of(8, 96, 48).to(place.device)
    done = learner.update(batch, loss, int(batch.response_mask.sum()))
    return done.logprobs.cpu(), done.grad_norm


@pytest.mark.parametrize("rank", [0, 8])
def test_learner__float32_is_the_cpus_float32(rank: int):
    (ours, norm), (theirs, expected) = updated("cuda", False, rank), updated("cpu", False, rank)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    assert norm == pytest.approx(expected, rel=1e-3)


def test_learner__bfloat16_is_float32_within_its_precision():
    (ours, norm), (theirs, expected) = updated("cuda", True), updated("cpu", False)
    gap = (ours - theirs).abs()
    assert float(gap.mean()) < 0.02
    assert float(gap.max()) < 0.3
    assert norm == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_transformers_engine__trap_12_sampler_and_trainer_agree(bfloat16: bool):
    model, place = build().to(CUDA), Placement(CUDA, bfloat16)  # pyright: ignore[reportArgumentType]
    tokenizer = build_tokenizer(["a b c\n"] * 9, 300)
    engine = TransformersEngine(model, place, tokenizer, frozenset({VOCABULARY - 1}), 64)
    prompts = [Prompt(str(i), tuple(range(5, 9 + i)), "", None) for i in range(4)]
    groups, again = (engine.generate(prompts, Sampling(4, 48, 1.0), seed=0) for _ in range(2))
    assert [[r.token_ids for r in g.responses] for g in groups] == [
        [r.token_ids for r in g.responses] for g in again
    ]
    judged = [replace(g, responses=tuple(replace(r, outcome=1.0) for r in g.responses)) for g in groups]
    batch = collate(judged, frozenset(), 0).to(CUDA)
    assert len(batch) == 16
    gap = (LM(model, place).logprobs(batch) - batch.logprobs).abs()
    assert float(gap.max()) < (0.3 if bfloat16 else 1e-3)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_memory_of__is_the_peak_that_is_measured(bfloat16: bool, recompute: bool, tmp_path: Path):
    model = build(hidden=1024, layers=8)
    model.config.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model.to(CUDA)  # pyright: ignore[reportArgumentType]
    optimizer = LoRAOptimizerConfig(tokens_per_microbatch=8192, gradient_checkpointing=recompute)
    learner = Learner(LM(model, Placement(CUDA, bfloat16)), optimizer, 9)
    batch = batch_of(32, 512, 512).to(CUDA)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        learner.update(batch, loss, int(batch.response_mask.sum()))
    measured = torch.cuda.max_memory_allocated() - before
    dtype = "bfloat16" if bfloat16 else "float32"
    config = SFTConfig(batch=32, max_tokens=512, optimizer=optimizer, dtype=dtype)
    assert memory_of(config, Machine(), shape, shape).peak == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("rank", [0, 8])
def test_rl__runs_and_resumes_on_the_device(rank: int, tmp_path: Path):
    task = ["--data.horizon", "2", "--eval-data.horizon", "2", "--eval-data.limit", "8", "--device", "cuda"]
    sft = ["sft", "configs/sft/tiny.yaml", *task, "--data.limit", "400", "--epochs", "2"]
    assert main([*sft, "--eval.max-response-tokens", "16", "--out", str(tmp_path / "sft")]) == 0
    args = [
        "rl",
        "configs/rl/tiny.yaml",
        *task,
        "--model",
        str(tmp_path / "sft" / "model"),
        "--dtype",
        "bfloat16",
    ]
    args += [
        "--rollout.prompts",
        "4",
        "--filter.low",
        "0.05",
        "--filter.high",
        "0.95",
        "--filter.max-draws",
        "99",
    ]
    args += ["--policy.lora.rank", str(rank), "--prm.lora.rank", str(rank), "--out", str(tmp_path / "rl")]
    assert main([*args, "--steps", "2", "--save-every", "1"]) == 0
    assert main([*args, "--steps", "3", "--save-every", "1", "--resume"]) == 0
    rows = records(tmp_path / "rl" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["policy/mismatch_mean"] < 0.05 for row in rows[1:])
    assert (tmp_path / "rl" / "prm" / "model.safetensors").is_file()
