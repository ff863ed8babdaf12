"""What only a CUDA device shows: the same numbers as on the CPU, within precision; and the memory that was planned."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from openprime.cli import main
from openprime.config import LoRAConfig, LoRAOptimizerConfig, OptimizerConfig, SFTConfig
from openprime.engines.transformers import TransformersEngine
from openprime.models.lora import add_adapter
from openprime.models.tiny import build_tokenizer
from openprime.plan.memory import Machine, memory_of, read_shape
from openprime.prime.learner import Learner
from openprime.prime.losses import sft_loss
from openprime.types import Batch, Prompt, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCABULARY = 2048


def build(hidden: int = 256, layers: int = 4, seed: int = 0) -> PreTrainedModel:
    """A Qwen2 model with random weights, on the CPU."""
    torch.manual_seed(seed)
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


def batch_of(rows: int, width: int, device: str) -> Batch:
    """Random tokens; prompts of 8, ragged responses."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(width // 2, width + 1, (rows,), generator=generator)
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
    ).to(torch.device(device))


def updated(device: str, bfloat16: bool, rank: int = 0) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Log-probabilities, gradient norm and weights of an SFT step, back on the CPU."""
    model = build()
    if rank:
        add_adapter(model, "sft", LoRAConfig(rank=rank))
    model.to(device)  # pyright: ignore[reportArgumentType]
    learner = Learner(model, OptimizerConfig(lr=1e-3), 1, bfloat16, adapter="sft" if rank else "")
    batch = batch_of(8, 96, device)
    loss = lambda logprobs, micro, rows: sft_loss(logprobs, micro.response_mask)  # noqa: E731
    done = learner.update(batch, loss, int(batch.response_mask.sum()))
    weights = torch.cat([p.detach().flatten().cpu() for p in learner.trained.values()])
    return done.logprobs.cpu(), done.grad_norm, weights


@pytest.mark.parametrize("rank", [0, 8])
def test_float32_is_the_cpus_float32(rank: int):
    (ours, norm, _), (theirs, expected, _) = updated("cuda", False, rank), updated("cpu", False, rank)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    assert norm == pytest.approx(expected, rel=1e-3)


def test_bfloat16_is_float32_within_its_precision():
    (ours, norm, _), (theirs, expected, _) = updated("cuda", True), updated("cpu", False)
    gap = (ours - theirs).abs()
    assert float(gap.mean()) < 0.02
    assert float(gap.max()) < 0.3
    assert norm == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_trap_12_sampler_and_trainer_agree(bfloat16: bool):
    model = build().to("cuda")  # pyright: ignore[reportArgumentType]
    tokenizer = build_tokenizer(["a b c\n"] * 9, 300)
    engine = TransformersEngine(model, tokenizer, frozenset({VOCABULARY - 1}), 64, bfloat16)
    prompts = [Prompt(str(i), tuple(range(5, 9 + i)), "", None) for i in range(4)]
    groups = engine.generate(prompts, Sampling(4, 48, 1.0), seed=0)
    again = engine.generate(prompts, Sampling(4, 48, 1.0), seed=0)
    assert [r.token_ids for g in groups for r in g.responses] == [
        r.token_ids for g in again for r in g.responses
    ]
    learner = Learner(model, OptimizerConfig(), 1, bfloat16)
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([*group.prompt.token_ids, *response.token_ids], device="cuda")[None]
            mask = torch.zeros_like(ids, dtype=torch.bool)
            mask[:, len(group.prompt.token_ids) :] = True
            nothing = torch.zeros(ids.shape, device="cuda")
            one = torch.tensor([ids.shape[1]], device="cuda")
            batch = Batch(ids, mask, one, nothing[:, 0], one * 0, nothing, mask)
            gap = (learner.logprobs(batch)[mask].cpu() - torch.tensor(response.logprobs)).abs()
            assert float(gap.max()) < (0.3 if bfloat16 else 1e-3)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_peak_memory_is_the_planned_one(bfloat16: bool, recompute: bool, tmp_path: Path):
    model = build(hidden=1024, layers=8)
    model.config.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model.to("cuda")  # pyright: ignore[reportArgumentType]
    optimizer = LoRAOptimizerConfig(tokens_per_microbatch=8192, gradient_checkpointing=recompute)
    learner, batch = Learner(model, optimizer, 9, bfloat16), batch_of(32, 512, "cuda")
    full = torch.full_like(batch.lengths, 512)
    whole = Batch(
        batch.token_ids, torch.ones_like(batch.response_mask), full, batch.outcome, batch.group,
        batch.logprobs, batch.step_end,
    )  # fmt: skip
    whole.response_mask[:, :8] = False
    loss = lambda logprobs, micro, rows: sft_loss(logprobs, micro.response_mask)  # noqa: E731
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        learner.update(whole, loss, int(whole.response_mask.sum()))
    measured = torch.cuda.max_memory_allocated() - before
    config = SFTConfig(
        batch=32, max_tokens=512, optimizer=optimizer, dtype="bfloat16" if bfloat16 else "float32"
    )
    assert memory_of(config, Machine(), shape, shape).peak == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("rank", [0, 8])
def test_prime_runs_and_resumes_on_the_device(rank: int, tmp_path: Path):
    sft = ["sft", "configs/sft/tiny.yaml", "--data.limit", "400", "--data.horizon", "2", "--epochs", "2"]
    sft += ["--eval-data.horizon", "2", "--eval-data.limit", "8", "--eval.max-response-tokens", "16"]
    assert main([*sft, "--device", "cuda", "--out", str(tmp_path / "sft")]) == 0
    args = ["rl", "configs/rl/tiny.yaml", "--model", str(tmp_path / "sft" / "model"), "--device", "cuda"]
    args += [
        "--data.horizon",
        "2",
        "--eval-data.horizon",
        "2",
        "--eval-data.limit",
        "8",
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
    rows = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["policy/mismatch_mean"] < 0.05 for row in rows[1:])
    assert (tmp_path / "rl" / "prm" / "model.safetensors").is_file()
