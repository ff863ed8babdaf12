"""Budgets against what PyTorch itself keeps, counts and holds; and against sums made by hand."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from openprime.config import (
    LoRAConfig,
    LoRAOptimizerConfig,
    OfflinePRMConfig,
    PrimeConfig,
    RLConfig,
    SFTConfig,
    build,
    merge,
)
from openprime.models.logprobs import token_logprobs
from openprime.models.placement import Placement
from openprime.plan.memory import (
    Budget,
    GiB,
    Machine,
    Part,
    Shape,
    flops_of_row,
    kept_per_block,
    memory_of,
    micro_batch_tokens,
    parts_of,
    read_shape,
    work_of,
)
from openprime.types import UserError

MODELS = Path(__file__).parents[2] / "configs" / "models"


def make_model(layers: int, tied: bool = True) -> PreTrainedModel:
    """A small Qwen2."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 256, "intermediate_size": 640}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(
        Qwen2Config(**sizes, **heads, num_hidden_layers=layers, tie_word_embeddings=tied)
    ).eval()


def shape_of(model: PreTrainedModel, folder: Path) -> Shape:
    """The shape that is read from its configuration."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return read_shape(str(folder))


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    """Two blocks."""
    return shape_of(make_model(2), tmp_path_factory.mktemp("shape"))


def adapted(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """The model, with an adapter where there is a rank."""
    if rank:
        pytest.importorskip("peft")
        from openprime.models.lora import add_adapter

        add_adapter(model, "policy", LoRAConfig(rank=rank))
    return model


def budget(shape: Shape, machine: Machine = Machine(), **settings) -> Budget:  # noqa: B008
    """Of a run of `openprime rl`."""
    return memory_of(build(RLConfig, {"dtype": "float32"} | settings), machine, shape, shape)


# Shapes


@pytest.mark.parametrize(
    ("name", "parameters", "tied"),
    [("qwen2.5-math-7b", 7_615_616_512, False), ("qwen2.5-0.5b", 494_032_768, True)],
)
def test_read_shape__of_published_models(name: str, parameters: int, tied: bool):
    """7,615,616,512 and 494,032,768 are what their safetensors files hold."""
    shape = read_shape(str(MODELS / name))
    assert (shape.parameters, shape.tied) == (parameters, tied)
    assert shape == read_shape(str(MODELS / name / "config.json"))


@pytest.mark.parametrize("tied", [True, False])
def test_read_shape__counts_the_parameters_of_the_model(tied: bool, tmp_path: Path):
    model = make_model(3, tied)
    shape = shape_of(model, tmp_path)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    blocks = [p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2]
    assert shape.matrices == sum(blocks)
    assert shape.head == model.get_output_embeddings().weight.numel()
    assert (shape.layers, shape.query, shape.key, shape.mlp) == (3, 256, 128, 640)


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
def test_shape_adapter__counts_its_parameters(targets: tuple[str, ...], tmp_path: Path):
    pytest.importorskip("peft")
    from openprime.models.lora import add_adapter, trained_parameters

    model, config = make_model(2), LoRAConfig(rank=3, targets=targets)
    shape = shape_of(model, tmp_path)
    add_adapter(model, "policy", config)
    assert shape.adapter(config) == sum(p.numel() for p in trained_parameters(model, "policy").values())


def configured(kind: str, folder: Path, architecture: str, **changes) -> str:
    """A folder with a model's configuration alone."""
    config = AutoConfig.for_model(kind, **changes)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return str(folder)


def test_read_shape__routed_experts_are_all_there_and_few_of_them_compute(tmp_path: Path):
    """Qwen3-30B-A3B: 128 experts of 3 x 2048 x 768 in 48 blocks, of which a token passes 8."""
    sizes = {
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    }
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    name = configured(
        "qwen3_moe", tmp_path, "Qwen3MoeForCausalLM", **sizes, **experts, head_dim=128, vocab_size=151_936
    )
    shape = read_shape(name)
    assert shape.parameters == 30_532_122_624  # as its safetensors files hold
    assert shape.idle == 48 * 120 * 3 * 2048 * 768
    attention = 2 * 2048 * (32 + 4) * 128
    assert shape.used == 48 * (attention + 8 * 3 * 2048 * 768 + 2048 * 128)
    assert shape.mlp == max(8 * 768, 6144)


@pytest.mark.parametrize(
    ("kind", "architecture", "query", "mlp", "tied"),
    [
        ("gpt2", "GPT2LMHeadModel", 768, 4 * 768, True),  # no linear layers
        ("mamba", "MambaForCausalLM", 0, 2 * 768, True),  # no heads
        ("rwkv", "RwkvForCausalLM", 0, 4 * 4096, False),
        ("gemma3n_text", "Gemma3nForCausalLM", 8 * 256, 16384, True),  # a width for each layer
        ("gemma4_text", "Gemma4ForCausalLM", 8 * 512, 9216, True),  # heads of two widths
    ],
)
def test_read_shape__of_models_unlike_llama(
    kind: str, architecture: str, query: int, mlp: int, tied: bool, tmp_path: Path
):
    """Their default configurations, as they are on the hub: what they lack is not taken for granted."""
    shape = read_shape(configured(kind, tmp_path, architecture))
    assert (shape.query, shape.mlp, shape.tied) == (query, mlp, tied)
    found = budget(shape)
    assert all(size >= 0 for phase in found.phases.values() for size in phase.values())
    run = build(RLConfig, {})
    assert work_of(run, parts_of(run, shape, shape), 100, 100, 0.5)["training_flops"] > 0


@pytest.mark.parametrize(
    ("kind", "architecture", "said"),
    [
        (
            "gemma3",
            "Gemma3ForConditionalGeneration",
            "a multimodal model.* text part alone .model_type gemma3_text",
        ),
        ("llama4", "Llama4ForConditionalGeneration", "a multimodal model.*llama4_text"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "a multimodal model.*qwen2_5_vl_text"),
        ("t5", "T5ForConditionalGeneration", "not a causal language model"),
        ("nemotron", "NemotronForCausalLM", "no model can be made of its config.json"),  # without key heads
    ],
)
def test_read_shape__what_cannot_be_used_is_refused_in_a_line(
    kind: str, architecture: str, said: str, tmp_path: Path
):
    with pytest.raises(UserError, match=said) as error:
        read_shape(configured(kind, tmp_path, architecture))
    assert "\n" not in str(error.value)


def test_read_shape__a_folder_without_a_model_says_what_to_name(tmp_path: Path):
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
    place = Placement(torch.device("cpu"), bfloat16)
    with place.autocast():
        token_logprobs(model, ids, mask)  # what is found once is found
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tuple(tensor.shape) not in sizes:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # else its address might be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), place.autocast():
        token_logprobs(model, ids, mask)
    return sum(kept.values())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
def test_kept_per_block__is_what_autograd_keeps(shape: Shape, rank: int, bfloat16: bool):
    """The difference of models of two and four blocks, in bytes a token and block."""
    two, four = (kept_by(adapted(make_model(layers), rank), bfloat16) for layers in (2, 4))
    measured = (four - two) / 2 / (3 * 79)  # nothing is predicted from the last token
    lora = LoRAConfig(rank=rank) if rank else None
    assert kept_per_block(shape, bfloat16, lora, gpu=False) == pytest.approx(measured, rel=0.01)


# FLOPs


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_flops_of_row__are_those_that_are_counted(rank: int, recompute: bool, tmp_path: Path):
    model = make_model(2, tied=False)
    shape = shape_of(model, tmp_path)
    adapted(model, rank)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    ids = torch.randint(96, (1, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 8:] = True
    token_logprobs(model, ids, mask)
    with FlopCounterMode(display=False) as counter:
        token_logprobs(model, ids, mask).sum().backward()
    optimizer = LoRAOptimizerConfig(gradient_checkpointing=recompute, lora=LoRAConfig(rank=rank))
    ours = flops_of_row(Part("model", shape, optimizer), SFTConfig(), 8, 16)
    # Adapters are small; below the first block with one, which is half of this model, no gradient is needed.
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05 if rank else 0.02)


def test_work_of__a_rollout_step_is_the_sum_of_its_passes(shape: Shape):
    config = PrimeConfig.model_validate({"rollout": {"prompts": 6, "responses": 4}})
    models = parts_of(config, shape, shape)
    work = work_of(config, models, prompt=10, response=30, pass_rate=0.5)
    assert work["sampled_tokens"] == 12 * 4 * 30
    assert work["trained_tokens"] == 24 * 40
    assert work["training_flops"] == 24 * sum(flops_of_row(part, config, 10, 30) for part in models)
    reference = flops_of_row(models[2], config, 10, 30)
    assert flops_of_row(models[0], config, 10, 30) > 3 * reference
    before = config.model_copy(update={"prm": config.prm.model_copy(update={"update": "before"})})
    again = work_of(before, models, 10, 30, 0.5)["training_flops"] - work["training_flops"]
    assert again == pytest.approx(24 * 2 * reference)
    one = work_of(config, models, 10, 30, pass_rate=1.0)
    assert work["sampling_flops"] == 2 * one["sampling_flops"]


def test_work_of__distillation_trains_its_prm_for_several_epochs(shape: Shape):
    def flops(epochs: int) -> float:
        config = build(RLConfig, {"algorithm": "distill", "distill": {"prm_epochs": epochs}})
        return flops_of_row(parts_of(config, shape, shape)[1], config, 10, 30)

    assert flops(3) - flops(2) == pytest.approx(flops(2) - flops(1))
    assert flops(9) > 4 * flops(1)


def test_work_of__distillation_passes_every_batch_that_it_learns_from_again(shape: Shape):
    def flops(replay: int) -> list[float]:
        config = build(RLConfig, {"algorithm": "distill", "distill": {"replay": replay}})
        return [flops_of_row(part, config, 10, 30) for part in parts_of(config, shape, shape)]

    assert flops(3) == pytest.approx([4 * one for one in flops(0)])


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_flops_of_row__a_prm_of_the_last_blocks_has_no_backward_pass_below_them(shape: Shape, depth: float):
    config = build(RLConfig, {"algorithm": "distill", "distill": {"prm_depth": depth, "prm_epochs": 1}})
    part = parts_of(config, shape, shape)[1]
    length, response = 39, 30
    packed = 10 / config.rollout.responses + 29  # a prompt once for all its responses
    blocks = 2 * packed * shape.used + 2 * shape.layers * shape.query * length**2
    head = response * 2 * shape.head
    # A pass to score, and one forward and backward; the head forms its logits again, and its weights may be frozen.
    expected = (2 + 2 * depth) * blocks + (1 + (4 if depth == 1 else 3)) * head
    assert flops_of_row(part, config, 10, 30) == pytest.approx(expected)


# Memory


def test_memory_of__distillation_of_the_last_blocks_trains_and_keeps_these_alone(shape: Shape):
    config = build(RLConfig, {"algorithm": "distill", "distill": {"prm_depth": 0.5}})
    found, own = memory_of(config, Machine(), shape, shape), shape.matrices / 2
    assert found.resident == {
        "weights": pytest.approx(4 * (2 * shape.parameters + own), rel=0.01),
        "optimiser": pytest.approx(8 * (shape.parameters + own), rel=0.01),
    }
    half, whole = (
        memory_of(one, Machine(), shape, shape).phases["prm"]
        for one in (config, build(RLConfig, {"algorithm": "distill"}))
    )
    assert half["gradients"] < whole["gradients"]
    assert whole["logits"] - half["logits"] == 4 * shape.head  # the gradient of the head's weights
    tokens = micro_batch_tokens(
        config.prm, config.data.max_prompt_tokens + config.rollout.max_response_tokens
    )
    per_block = kept_per_block(shape, True, None, True)
    assert whole["activations"] - half["activations"] == pytest.approx(tokens * shape.layers / 2 * per_block)


def test_memory_of__weights_and_optimiser_are_shared_out_over_ranks(shape: Shape):
    p = shape.parameters
    for ranks in (1, 2, 8):
        found = budget(shape, Machine(ranks))
        shared = {"weights": 3 * 4 * p / ranks, "optimiser": 2 * 8 * p / ranks}
        copy = {"engine": 4 * (shape.matrices + shape.head)} if ranks > 1 else {}  # the head is tied
        assert found.resident == shared | copy, "on several ranks the engine has a whole policy of its own"
        for phase in ("sampling", "reference", "prm", "policy"):
            assert found.phases[phase]["weights"] == 3 * 4 * p / ranks


@pytest.mark.parametrize(
    ("config", "models", "trained"),
    [
        (build(RLConfig, {}), 3, 2),
        (build(RLConfig, {"algorithm": "distill"}), 3, 2),
        (build(RLConfig, {"algorithm": "outcome"}), 1, 1),
        (build(RLConfig, {"prm": {"reference": "policy"}}), 2, 2),
        (build(RLConfig, {"prm": {"update": "never", "model": "m"}}), 3, 1),
        (SFTConfig(), 1, 1),
        (OfflinePRMConfig(), 2, 1),
    ],
)
def test_memory_of__every_model_of_a_run_is_held(shape: Shape, config, models: int, trained: int):
    found = memory_of(config, Machine(), shape, shape)
    assert found.resident == {
        "weights": 4 * models * shape.parameters,
        "optimiser": 8 * trained * shape.parameters,
    }
    expected = {"sampling", "policy", "prm", "reference"} if isinstance(config, RLConfig) else {"training"}
    assert len(found.phases) == models + isinstance(config, RLConfig)
    assert set(found.phases) <= expected | {"prm", "reference"}


@pytest.mark.parametrize(("candidates", "replay", "kept"), [(32, 0, 33), (10**6, 0, 1 + 96), (32, 2, 3 * 33)])
def test_memory_of__distillation_holds_candidates_and_not_the_vocabulary(
    shape: Shape, candidates: int, replay: int, kept: int
):
    """Ids in 8 bytes, and five numbers of 4; 2 x 3 responses of at most 40 + 60 tokens a batch, on every rank."""
    settings = {
        "algorithm": "distill",
        "rollout": {"prompts": 2, "responses": 3, "max_response_tokens": 60},
        "data": {"max_prompt_tokens": 40},
        "distill": {"candidates": candidates, "replay": replay},
    }
    for ranks in (1, 4):
        found = memory_of(build(RLConfig, settings), Machine(ranks), shape, shape)
        phases = found.phases
        assert all(
            phases[name]["candidates"] == 6 * 100 * kept * 28 for name in ("reference", "prm", "policy")
        )
        assert "candidates" not in phases["sampling"]


def test_memory_of__distillation_with_adapters_has_one_base(shape: Shape):
    pytest.importorskip("peft")
    config = build(RLConfig, {"algorithm": "distill", "policy": {"lora": {"rank": 2}}})
    found = memory_of(config, Machine(), shape, shape)
    adapters = 2 * shape.adapter(config.policy.lora)
    assert found.resident["weights"] == 4 * (shape.parameters + adapters)
    assert found.resident["optimiser"] == 8 * adapters


@pytest.mark.parametrize(
    ("on", "weights", "trained"),
    [
        (("policy", "prm"), (1, 2), (0, 2)),  # (models, adapters)
        (("policy",), (2, 1), (1, 1)),
        (("prm",), (2, 1), (1, 1)),
        ((), (3, 0), (2, 0)),
    ],
)
@pytest.mark.parametrize("ranks", [1, 4])
def test_memory_of__adapters_share_a_base_and_every_rank_has_them(
    shape: Shape, on: tuple, weights: tuple, trained: tuple, ranks: int
):
    a = shape.adapter(LoRAConfig(rank=4))
    settings = {name: {"lora": {"rank": 4}} for name in on} | {"engine": {"kind": "server"}}
    found = budget(shape, Machine(ranks), **settings)
    (whole, adapters), (whole_trained, trained_adapters) = weights, trained
    p = shape.parameters / ranks
    assert found.resident == {
        "weights": 4 * (whole * p + adapters * a),
        "optimiser": 8 * (whole_trained * p + trained_adapters * a),
    }
    assert found.phases["policy"]["gradients"] == 4 * (a if "policy" in on else p)


def test_memory_of__adapters_on_other_bases_and_of_an_offline_prm(shape: Shape):
    p, a, on = shape.parameters, shape.adapter(LoRAConfig(rank=4)), {"lora": {"rank": 4}}
    other = budget(shape, policy=on, prm=on | {"model": "other"})
    assert other.resident["weights"] == 4 * (2 * p + 2 * a)
    offline = memory_of(
        OfflinePRMConfig.model_validate({"dtype": "float32", "optimizer": on}), Machine(), shape, shape
    )
    assert offline.resident == {"weights": 4 * (p + a), "optimiser": 8 * a}


def test_memory_of__offloading_moves_what_waits_to_the_host(shape: Shape):
    there = budget(shape, Machine(ranks=4))
    away = budget(shape, Machine(ranks=4), parallel={"cpu_offload": True})
    assert {name for name, size in away.resident.items() if size} == {"engine"}, "it samples while they wait"
    assert away.peak < there.peak
    # Weights of three models; gradients and two moments of two of them.
    assert away.host["offloaded"] == (3 * 4 + 2 * 12) * shape.parameters
    assert there.host["offloaded"] == 0


def test_memory_of__engines_differ_in_sampling_alone(shape: Shape):
    def phases(**engine: object) -> dict:
        return budget(shape, Machine(memory=GiB), engine=engine).phases

    own, vllm, server = phases(), phases(kind="vllm", gpu_memory=0.25), phases(kind="server")
    assert vllm["sampling"]["engine"] == 0.25 * GiB
    assert set(server["sampling"]) == {"weights", "optimiser"}
    # 256 sequences of 4096 positions, two blocks, keys and values of 128 numbers; one of the four moves at a time.
    assert own["sampling"]["cache"] == pytest.approx(256 * 4096 * 2 * 2 * 128 * 4 * 1.25)
    assert own["policy"] == vllm["policy"] == server["policy"]


def test_memory_of__settings_that_save_memory_do(tmp_path: Path):
    shape = shape_of(make_model(4), tmp_path)
    short = {"rollout": {"max_response_tokens": 64}, "data": {"max_prompt_tokens": 64}}

    def activations(**settings) -> float:
        return budget(shape, **merge(short, settings)).phases["policy"]["activations"]

    assert activations(policy={"gradient_checkpointing": True}) < 0.5 * activations()
    assert activations(policy={"tokens_per_microbatch": 8192}) == pytest.approx(activations() / 2)
    assert activations(device="cpu") == pytest.approx(activations() / 8)  # 2,048 tokens at most


def test_micro_batch_tokens__are_those_of_whole_sequences():
    config = LoRAOptimizerConfig(tokens_per_microbatch=5000)
    assert micro_batch_tokens(config, 300) == 4800
    assert micro_batch_tokens(config, 8000) == 8000
    assert micro_batch_tokens(config, 300, "cpu") == 1800
