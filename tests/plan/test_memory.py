"""Budgets against what PyTorch itself keeps, counts and holds; and against sums made by hand."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from openprime.config import LoRAConfig, OfflinePRMConfig, OptimizerConfig, RLConfig, SFTConfig
from openprime.models.logprobs import token_logprobs
from openprime.plan.memory import (
    GiB,
    Layout,
    Part,
    flops_of_row,
    kept_per_block,
    memory_of,
    micro_batch_tokens,
    parts_of,
    work_of,
)
from openprime.plan.shape import Shape, read_shape

MODELS = Path(__file__).parents[2] / "configs" / "models"
SIZES = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build(layers: int, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES, num_hidden_layers=layers, tie_word_embeddings=tied)
    return Qwen2ForCausalLM(config).eval()


def shape_of(model: PreTrainedModel, folder: Path) -> Shape:
    model.config.save_pretrained(folder)
    return read_shape(str(folder))


# Shapes


@pytest.mark.parametrize(
    ("name", "parameters", "tied"),
    [("qwen2.5-math-7b", 7_615_616_512, False), ("qwen2.5-0.5b", 494_032_768, True)],
)
def test_shapes_of_published_models(name: str, parameters: int, tied: bool):
    """7,615,616,512 and 494,032,768 are what their safetensors files hold."""
    shape = read_shape(str(MODELS / name))
    assert (shape.parameters, shape.tied) == (parameters, tied)
    assert shape == read_shape(str(MODELS / name / "config.json"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_shape_counts_the_parameters_of_the_model(tied: bool, tmp_path: Path):
    model = build(3, tied)
    shape = shape_of(model, tmp_path)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    blocks = [p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2]
    assert shape.matrices == sum(blocks)
    assert shape.head == model.get_output_embeddings().weight.numel()
    assert (shape.layers, shape.query, shape.key, shape.mlp) == (3, 256, 128, 640)


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
def test_a_shape_counts_the_parameters_of_an_adapter(targets: tuple[str, ...], tmp_path: Path):
    pytest.importorskip("peft")
    from openprime.models.lora import add_adapter, trained_parameters

    model, config = build(2), LoRAConfig(rank=3, targets=targets)
    shape = shape_of(model, tmp_path)
    add_adapter(model, "policy", config)
    assert shape.adapter(config) == sum(p.numel() for p in trained_parameters(model, "policy").values())


def test_a_folder_without_a_model_says_what_to_name(tmp_path: Path):
    with pytest.raises(ValueError, match=r"name a model folder or a config\.json"):
        read_shape(str(tmp_path))


# What a forward pass keeps


def kept_by(model: PreTrainedModel, bfloat16: bool) -> int:
    """Bytes of the tensors that autograd keeps, each storage once, parameters and copies of them left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    ids = torch.randint(96, (3, 80), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    token_logprobs(model, ids, mask, 1.0, bfloat16)  # what is found once is found
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tuple(tensor.shape) not in sizes:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # else its address might be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(model, ids, mask, 1.0, bfloat16)
    return sum(kept.values())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
def test_what_a_block_keeps_is_what_autograd_keeps(rank: int, bfloat16: bool, tmp_path: Path):
    """The difference of models of two and four blocks, in bytes a token and block."""
    found, lora = [], LoRAConfig(rank=rank)
    for layers in (2, 4):
        model = build(layers)
        shape = shape_of(model, tmp_path)
        if rank:
            pytest.importorskip("peft")
            from openprime.models.lora import add_adapter

            add_adapter(model, "policy", lora)
        found.append(kept_by(model, bfloat16))
    measured = (found[1] - found[0]) / 2 / (3 * 79)  # nothing is predicted from the last token
    assert kept_per_block(shape, bfloat16, lora if rank else None) == pytest.approx(measured, rel=0.01)


# FLOPs


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_flops_of_an_update_are_those_that_are_counted(rank: int, recompute: bool, tmp_path: Path):
    model, lora = build(2, tied=False), LoRAConfig(rank=rank)
    shape = shape_of(model, tmp_path)
    if rank:
        pytest.importorskip("peft")
        from openprime.models.lora import add_adapter

        add_adapter(model, "policy", lora)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    ids = torch.randint(96, (1, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 8:] = True
    token_logprobs(model, ids, mask)
    with FlopCounterMode(display=False) as counter:
        token_logprobs(model, ids, mask).sum().backward()
    optimizer = OptimizerConfig(gradient_checkpointing=recompute, lora=lora)
    ours = flops_of_row(Part("model", shape, lora, True, optimizer), SFTConfig(), 8, 16)
    # Adapters are small; below the first block with one, which is half of this model, no gradient is needed.
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05 if rank else 0.02)


def test_a_rollout_step_is_the_sum_of_its_passes(tmp_path: Path):
    shape = shape_of(build(2), tmp_path)
    config = RLConfig.model_validate({"rollout": {"prompts": 6, "responses": 4}})
    models = parts_of(config, shape, shape)
    work = work_of(config, models, prompt=10, response=30, pass_rate=0.5)
    assert work.sampled_tokens == 12 * 4 * 30
    assert work.trained_tokens == 24 * 40
    assert work.training_flops == 24 * sum(flops_of_row(part, config, 10, 30) for part in models)
    reference = flops_of_row(models[2], config, 10, 30)
    assert flops_of_row(models[0], config, 10, 30) > 3 * reference
    before = config.model_copy(update={"prm": config.prm.model_copy(update={"update": "before"})})
    again = work_of(before, models, 10, 30, 0.5).training_flops - work.training_flops
    assert again == pytest.approx(24 * 2 * reference)
    one = work_of(config, models, 10, 30, pass_rate=1.0)
    assert work.sampling_flops == 2 * one.sampling_flops


# Memory


def rl(**settings) -> RLConfig:
    return RLConfig.model_validate({"model": "m", "out": "o", "data": {"source": "task:clock"}} | settings)


def test_weights_and_optimiser_are_shared_out_over_ranks(tmp_path: Path):
    shape = shape_of(build(2), tmp_path)
    p = shape.parameters
    for ranks in (1, 2, 8):
        budget = memory_of(rl(), Layout(ranks=ranks), shape, shape)
        shared = {"weights": 3 * 4 * p / ranks, "optimiser": 2 * 8 * p / ranks}
        copy = {"engine": 4 * (shape.matrices + shape.head * (1 if shape.tied else 2))} if ranks > 1 else {}
        assert budget.resident == shared | copy, "on several ranks the engine has a whole policy of its own"
        for phase in ("sampling", "reference", "prm", "policy"):
            assert budget.phases[phase]["weights"] == 3 * 4 * p / ranks
    control = memory_of(rl(advantage={"process_weight": 0}), Layout(), shape, shape)
    assert control.resident == {"weights": 4 * p, "optimiser": 8 * p}
    assert set(control.phases) == {"sampling", "policy"}
    as_reference = memory_of(rl(prm={"reference": "policy"}), Layout(), shape, shape)
    assert as_reference.resident["weights"] == 2 * 4 * p


def test_adapters_on_one_base_hold_it_once(tmp_path: Path):
    shape = shape_of(build(2), tmp_path)
    p, a = shape.parameters, shape.adapter(LoRAConfig(rank=4))
    on, off = {"lora": {"rank": 4}}, {}
    for policy, prm, weights, trained in (
        (on, on, p + 2 * a, 2 * a),
        (on, off, 2 * p + a, p + a),
        (off, on, 2 * p + a, p + a),
        (off, off, 3 * p, 2 * p),
    ):
        budget = memory_of(rl(policy=policy, prm=prm), Layout(), shape, shape)
        assert budget.resident == {"weights": 4 * weights, "optimiser": 8 * trained}
    other = memory_of(rl(policy=on, prm=on | {"model": "other"}), Layout(), shape, shape)
    assert other.resident["weights"] == 4 * (2 * p + 2 * a)


def test_stages_of_one_model_and_of_a_prm_with_its_reference(tmp_path: Path):
    shape = shape_of(build(2), tmp_path)
    p = shape.parameters
    assert memory_of(SFTConfig(), Layout(), shape, shape).resident == {"weights": 4 * p, "optimiser": 8 * p}
    assert memory_of(OfflinePRMConfig(), Layout(), shape, shape).resident["weights"] == 8 * p
    lora = OfflinePRMConfig.model_validate({"optimizer": {"lora": {"rank": 2}}})
    a = shape.adapter(LoRAConfig(rank=2))
    assert memory_of(lora, Layout(), shape, shape).resident == {"weights": 4 * (p + a), "optimiser": 8 * a}


def test_offloading_moves_what_waits_to_the_host(tmp_path: Path):
    shape = shape_of(build(2), tmp_path)
    there = memory_of(rl(), Layout(ranks=4), shape, shape)
    away = memory_of(rl(), Layout(ranks=4, cpu_offload=True), shape, shape)
    assert {name for name, size in away.resident.items() if size} == {"engine"}, "it samples while they wait"
    assert away.peak < there.peak
    # Weights of three models; gradients and two moments of two of them.
    assert away.host["offloaded"] == (3 * 4 + 2 * 12) * shape.parameters
    assert there.host["offloaded"] == 0


def test_ranks_share_the_base_and_each_has_the_adapters(tmp_path: Path):
    shape = shape_of(build(2), tmp_path)
    p, a = shape.parameters, shape.adapter(LoRAConfig(rank=2))
    on = {"lora": {"rank": 2}}
    budget = memory_of(rl(policy=on, prm=on), Layout(ranks=4, engine="server"), shape, shape)
    assert budget.resident == {"weights": 4 * (p / 4 + 2 * a), "optimiser": 8 * 2 * a}
    assert budget.phases["policy"]["gradients"] == 4 * a
    mixed = memory_of(rl(policy=on), Layout(ranks=4, engine="server"), shape, shape)
    assert mixed.resident == {"weights": 4 * (2 * p / 4 + a), "optimiser": 8 * (p / 4 + a)}


def test_engines_differ_in_sampling_alone(tmp_path: Path):
    shape = shape_of(build(2), tmp_path)
    budgets = {
        engine: memory_of(rl(), Layout(engine=engine, memory=GiB, engine_share=0.25), shape, shape).phases
        for engine in ("transformers", "vllm", "server")
    }
    assert budgets["vllm"]["sampling"]["engine"] == 0.25 * GiB
    assert set(budgets["server"]["sampling"]) == {"weights", "optimiser"}
    cache = budgets["transformers"]["sampling"]["cache"]
    # 256 sequences of 4096 positions, two blocks, keys and values of 128 numbers; one of the four moves at a time.
    assert cache == pytest.approx(256 * 4096 * 2 * 2 * 128 * 4 * 1.25)
    for engine in budgets:
        assert budgets[engine]["policy"] == budgets["server"]["policy"]


def test_settings_that_save_memory_do(tmp_path: Path):
    shape = shape_of(build(4), tmp_path)

    def activations(layout: Layout = Layout(), **policy) -> float:  # noqa: B008
        config = rl(policy=policy, rollout={"max_response_tokens": 64}, data={"max_prompt_tokens": 64})
        return memory_of(config, layout, shape, shape).phases["policy"]["activations"]

    assert activations(gradient_checkpointing=True) < 0.5 * activations()
    assert activations(tokens_per_microbatch=8192) == pytest.approx(activations() / 2)
    assert activations(Layout(token_limit=2048)) == pytest.approx(activations() / 8)


def test_a_micro_batch_holds_whole_sequences():
    config = OptimizerConfig(tokens_per_microbatch=1000)
    assert micro_batch_tokens(config, 300, Layout()) == 900
    assert micro_batch_tokens(config, 3000, Layout()) == 3000
    assert micro_batch_tokens(config, 300, Layout(token_limit=700)) == 600
