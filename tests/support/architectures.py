"""Architectures with random weights, each against plain transformers: log-probabilities, samples, exports.

`benchmarks/architectures.py` prints what is found here as docs/architectures.md.
"""

import math
import random
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from openprime.config import LoRAConfig, PlanConfig
from openprime.engines.transformers import TransformersEngine
from openprime.models.checks import positions
from openprime.models.hub import load_model
from openprime.models.lm import LM, check_scoring
from openprime.models.lora import add_adapter, trained_parameters
from openprime.models.placement import Placement
from openprime.models.tiny import build_tokenizer
from openprime.plan.command import make_plan
from openprime.types import Batch, Group, Prompt, Response, Sampling, UserError

CONFIG = Path(__file__).parents[2] / "configs" / "rl" / "tiny.yaml"
VOCABULARY = 60
EXACT = 1e-4
"""Largest difference in nats that counts as none; all is float32."""
LONGEST = 24
"""Tokens of a row: some windows, and chunks of state-space layers, are 6 and 8."""
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
WINDOW = {"sliding_window": 6}
MIXED = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "n_group": 1,
    "topk_group": 1,
}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 16, "n_shared_experts": 1, "num_shared_experts": 1}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}
DEEPSEEK = SHARED | LATENT | {"first_k_dense_replace": 1}
INDEXED = DEEPSEEK | {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 6}
STATE = {"state_size": 8, "time_step_rank": 4, "head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 8}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_d_ssm": 64,
}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
NARROW = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    """Rotary positions of a kind."""
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind} | more}


LONGROPE = {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4, "factor": 2.0}
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama, tied": ("llama", {"tie_word_embeddings": True}),
    "Llama 3.1, its rotation": (
        "llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "Llama, YaRN": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "Llama, dynamic NTK": ("llama", rope("dynamic", factor=2.0)),
    "Llama 4, text": (
        "llama4_text",
        EXPERTS
        | {
            "attention_chunk_size": 6,
            "no_rope_layers": [1, 0],
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 1,
        },
    ),
    "Mistral": ("mistral", WINDOW),
    "Ministral": ("ministral", WINDOW),
    "Mixtral": ("mixtral", EXPERTS),
    "Qwen2, Qwen2.5": ("qwen2", {}),
    "Qwen2, sliding": ("qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "Qwen2-MoE": ("qwen2_moe", SHARED),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS),
    "Qwen3-Next": ("qwen3_next", SHARED | DELTA),
    "Qwen3.5, text": ("qwen3_5_text", DELTA),
    "Gemma": ("gemma", {}),
    "Gemma 2": (
        "gemma2",
        WINDOW | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    ),
    "Gemma 3, text": ("gemma3_text", MIXED | {"query_pre_attn_scalar": 8}),
    "Phi": ("phi", {}),
    "Phi-3": ("phi3", WINDOW),
    "Phi-3, LongRoPE": ("phi3", {"original_max_position_embeddings": 32} | rope("longrope", **LONGROPE)),
    "GPT-2": ("gpt2", NARROW),
    "GPT-J": ("gptj", NARROW | {"rotary_dim": 4}),
    "GPT-NeoX": ("gpt_neox", {}),
    "gpt-oss": ("gpt_oss", EXPERTS | MIXED | rope("default")),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "BLOOM": ("bloom", {}),
    "Falcon": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48}),
    "Falcon, ALiBi": ("falcon", {"alibi": True, "ffn_hidden_size": 48}),
    "MPT": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "StableLM": ("stablelm", {}),
    "StarCoder2": ("starcoder2", WINDOW),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "Cohere": ("cohere", {"logit_scale": 2.5}),
    "Cohere 2": ("cohere2", WINDOW),
    "Granite": ("granite", {"logits_scaling": 0.5, "attention_multiplier": 0.3}),
    "GraniteMoE": ("granitemoe", EXPERTS),
    "SmolLM3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "Nemotron": ("nemotron", {}),
    "DeepSeek-V2": ("deepseek_v2", DEEPSEEK),
    "DeepSeek-V3": ("deepseek_v3", DEEPSEEK),
    "GLM": ("glm", {}),
    "GLM-4": ("glm4", {}),
    "Ernie 4.5": ("ernie4_5", {}),
    "EXAONE 4": ("exaone4", MIXED),
    "Helium": ("helium", {}),
    "Mamba": ("mamba", STATE),
    "Mamba 2": ("mamba2", STATE),
    "Jamba": (
        "jamba",
        EXPERTS
        | {
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "Bamba": ("bamba", MAMBA | {"attn_layer_indices": [1]}),
    "Falcon-H1": ("falcon_h1", MAMBA),
    "RecurrentGemma": (
        "recurrent_gemma",
        {"lru_width": 32, "attention_window_size": 6, "block_types": ["recurrent", "attention"]},
    ),
    "DeepSeek-V3.2": ("deepseek_v32", INDEXED),
    "BERT": ("bert", {}),
    # From here on in the slow part of the test.
    "Llama, linear": ("llama", rope("linear", factor=2.0)),
    "Ministral 3": (
        "ministral3",
        rope("yarn", factor=4.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.1),
    ),
    "Qwen3.5-MoE, text": ("qwen3_5_moe_text", SHARED | DELTA),
    "Gemma 3n, text": (
        "gemma3n_text",
        MIXED
        | {
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "intermediate_size": [48, 48],
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "Gemma 4, text": (
        "gemma4_text",
        MIXED
        | {
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "global_head_dim": 8,
        },
    ),
    "VaultGemma": ("vaultgemma", WINDOW | {"attn_logit_softcapping": 1.0}),
    "Phi-3.5-MoE": (
        "phimoe",
        EXPERTS
        | rope(
            "longrope", **LONGROPE, short_mscale=1.2, long_mscale=1.3, original_max_position_embeddings=32
        ),
    ),
    "GPT": ("openai-gpt", NARROW),
    "GPT-Neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 6}),
    "GPT-BigCode": ("gpt_bigcode", NARROW),
    "CodeGen": ("codegen", NARROW | {"rotary_dim": 4}),
    "CTRL": ("ctrl", NARROW | {"dff": 48}),
    "XGLM": ("xglm", {"d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 2}),
    "BioGPT": ("biogpt", {}),
    "Persimmon": ("persimmon", {}),
    "OLMo 3": ("olmo3", WINDOW),
    "OLMoE": ("olmoe", EXPERTS),
    "FlexOlmo": ("flex_olmo", EXPERTS),
    "OLMo hybrid": ("olmo_hybrid", DELTA),
    "Cohere 2 MoE": ("cohere2_moe", EXPERTS | WINDOW),
    "GraniteMoE, shared experts": ("granitemoeshared", EXPERTS | {"shared_intermediate_size": 16}),
    "GraniteMoE hybrid": (
        "granitemoehybrid",
        EXPERTS | MAMBA | {"shared_intermediate_size": 16, "layer_types": ["mamba", "attention"]},
    ),
    "Granite, sliding": ("granite_swa", MIXED),
    "DBRX": (
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
            "ffn_config": {
                "ffn_hidden_size": 16,
                "moe_num_experts": 4,
                "moe_top_k": 2,
                "hidden_size": 32,
            },
        },
    ),
    "GLM-4.5": ("glm4_moe", DEEPSEEK | {"head_dim": 8}),
    "GLM-5": ("glm_moe_dsa", INDEXED),
    "Ernie 4.5 MoE": (
        "ernie4_5_moe",
        EXPERTS | {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    ),
    "EXAONE MoE": ("exaone_moe", SHARED | MIXED),
    "Hunyuan": ("hunyuan_v1_dense", {}),
    "Hunyuan MoE": ("hunyuan_v1_moe", EXPERTS | {"moe_topk": 2}),
    "Seed-OSS": ("seed_oss", {}),
    "MiniCPM3": ("minicpm3", LATENT | {"dim_model_base": 16}),
    "MiniMax": (
        "minimax",
        EXPERTS | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    ),
    "MiniMax M2": ("minimax_m2", EXPERTS),
    "MiMo-V2-Flash": (
        "mimo_v2_flash",
        EXPERTS
        | MIXED
        | {
            "v_head_dim": 8,
            "swa_v_head_dim": 8,
            "swa_head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
        },
    ),
    "dots.llm1": ("dots1", DEEPSEEK | {"head_dim": 8, "layer_types": ["full_attention"] * 2}),
    "Youtu": ("youtu", DEEPSEEK),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}),
    "LFM2-MoE": (
        "lfm2_moe",
        EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    "Falcon-Mamba": ("falcon_mamba", STATE),
    "Nemotron-H": (
        "nemotron_h",
        EXPERTS
        | {
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "ssm_state_size": 8,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "attention"],
        },
    ),
    "Zamba2": (
        "zamba2",
        {
            "layers_block_type": ["mamba", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "chunk_size": 8,
            "num_mem_blocks": 1,
            "use_shared_attention_adapter": False,
            "adapter_rank": 4,
            "attention_head_dim": 16,
        },
    ),
    "RWKV": ("rwkv", {"attention_hidden_size": 32}),
    "xLSTM": ("xlstm", {"num_heads": 4, "num_blocks": 2}),
    "Arcee": ("arcee", {}),
    "Apertus": ("apertus", {}),
    "BitNet": ("bitnet", {}),
    "DiffLlama": ("diffllama", {}),
    "Doge": ("doge", {}),
    "CWM": ("cwm", MIXED),
    "Jais 2": ("jais2", {}),
    "NanoChat": ("nanochat", {}),
}
"""Name -> (model_type, what its configuration has beside COMMON)."""
FIRST_SLOW = "Llama, linear"
NAMES = list(ZOO)
DEFAULT, SLOW = NAMES[: NAMES.index(FIRST_SLOW)], NAMES[NAMES.index(FIRST_SLOW) :]


def make(name: str, eager: bool = False) -> PreTrainedModel:
    """The model of this name, in evaluation mode."""
    kind, changes = ZOO[name]
    sizes = COMMON | changes
    for other, key in (("falcon", "head_dim"), ("mpt", "max_position_embeddings")):
        if kind == other:
            del sizes[key]
    torch.manual_seed(0)
    options = {"attn_implementation": "eager"} if eager else {}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), **options).eval()


def plain_model(name: str) -> PreTrainedModel:
    """The model as transformers itself has it: with `eager` attention where `sdpa` leaves out a soft cap."""
    return make(name, eager="attn_logit_softcapping" in ZOO[name][1])


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """Of other models; only its files and its end token are looked at."""
    return build_tokenizer(["a b c"] * 5, 280)


@dataclass(frozen=True, slots=True)
class Found:
    """What a model does here beside plain transformers: a difference in nats, or why it is refused."""

    scoring: float | str
    """log-probabilities of ragged rows, some of which share a prompt."""
    sampling: float | str
    """Those that a sampler returned with its tokens, in batches that shrink."""
    exported: float | str
    """Those of the model that was saved and loaded again."""
    lora: float | str
    """Those of the merged and exported model, against the adapter's."""
    plan: float | str
    """Share of the parameters by which `openprime plan` counts others than the model has."""
    notes: list[str]
    """What gets no adapter."""
    padded: bool
    """Prompts of several lengths are decoded together."""
    limit: int | None
    """Positions of a table, or up to which rotation depends on nothing but the position."""


def measure(name: str) -> Found:
    """Try one architecture."""
    model, lm = make(name), LM(make(name))
    limit, plan = positions(model)[0], planned(model)
    notes: list[str] = []
    try:
        check_scoring(name, lm)
        scoring: float | str = score(name, lm)
    except UserError as error:
        said = reason(error)
        return Found(said, said, said, said, plan, notes, False, limit)
    engine = TransformersEngine(model, Placement(), tokenizer(), frozenset(range(3, VOCABULARY, 20)), 64)
    try:
        sampling: float | str = sample(name, engine)
    except UserError as error:
        sampling = reason(error)
    try:
        lora: float | str = export(name, notes, adapter="policy")
    except UserError as error:
        lora = reason(error)
    return Found(scoring, sampling, export(name, notes), lora, plan, notes, bool(engine.pads), limit)


def planned(model: PreTrainedModel) -> float | str:
    """What a plan of a run with this model makes of its config.json alone."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        try:
            found = make_plan(PlanConfig(config=str(CONFIG), architecture=folder))
        except UserError as error:
            return f"plan: {error}"
    return abs(found["models"]["policy"]["parameters"] / model.num_parameters() - 1)


def reason(error: UserError) -> str:
    """What a message says, without the model's name and what to do."""
    said = str(error)
    if "cannot be used: " in said:
        return said.partition("cannot be used: ")[2]
    if "sampled from" in said:
        return "sampling: " + said.partition("(")[2].rpartition("): ")[0].split("`")[0].strip()
    return "LoRA: no linear layers" if "none; set lora.rank=0" in said else said


def rows_of(seed: str) -> list[tuple[list[int], list[int]]]:
    """Prompts of four lengths with two responses each."""
    rng = random.Random(seed)
    rows = []
    for length in (3, 9, 1, 14):
        prompt = [rng.randrange(VOCABULARY) for _ in range(length)]
        for _ in range(2):
            count = rng.randint(1, LONGEST - length)
            rows.append((prompt, [rng.randrange(VOCABULARY) for _ in range(count)]))
    return rows


def batch_of(rows: list[tuple[list[int], list[int]]]) -> Batch:
    """Rows as a batch, padded with token 3."""
    lengths = [len(prompt) + len(response) for prompt, response in rows]
    ids = torch.full((len(rows), max(lengths)), 3)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        ids[row, : lengths[row]] = torch.tensor([*prompt, *response])
        mask[row, len(prompt) : lengths[row]] = True
    nothing = torch.zeros(ids.shape)
    group = torch.arange(len(rows)) // 2
    return Batch(ids, mask, torch.tensor(lengths), nothing[:, 0], group, nothing, mask)


@torch.no_grad()
def plain(model: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    """log p of a response's tokens [T], by one forward pass over the row alone."""
    ids = torch.tensor([[*prompt, *response]])
    table = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    return table[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None])[:, 0]


def score(name: str, lm: LM) -> float:
    """Largest difference of `LM.logprobs`."""
    rows, reference = rows_of(name), plain_model(name)
    batch = batch_of(rows)
    found = lm.logprobs(batch)
    return max(
        float((found[b][batch.response_mask[b]] - plain(reference, *row)).abs().max())
        for b, row in enumerate(rows)
    )


def sample(name: str, engine: TransformersEngine) -> float:
    """Largest difference of the log-probabilities of an engine's samples."""
    rng, reference = random.Random(name), plain_model(name)
    prompts = [
        Prompt(str(i), tuple(rng.randrange(VOCABULARY) for _ in range(length)), "", None)
        for i, length in enumerate((3, 9, 1, 14, 9))
    ]
    groups = engine.generate(prompts, Sampling(3, LONGEST - 14), seed=0)
    return max(gap(reference, group, response) for group in groups for response in group.responses)


def gap(model: PreTrainedModel, group: Group, response: Response) -> float:
    """Of one response."""
    own = plain(model, list(group.prompt.token_ids), list(response.token_ids))
    return float((torch.tensor(response.logprobs) - own).abs().max())


def export(name: str, notes: list[str], adapter: str = "") -> float:
    """Largest difference between a model, with an adapter of random values if one is named, and its export."""
    model = make(name)
    if adapter:
        notes += add_adapter(model, adapter, LoRAConfig(rank=2, alpha=4.0))
    lm = LM(model, adapter=adapter)
    lm.try_save(tokenizer())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(model, adapter).values() if adapter else ():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    batch = batch_of(rows_of(name))
    with tempfile.TemporaryDirectory() as folder:
        lm.save(Path(folder), tokenizer())
        again = LM(load_model(folder).eval())
    return float((lm.logprobs(batch) - again.logprobs(batch)).abs().max())


HEAD = """# Architectures

Small models with random weights, float32 on a CPU, against plain transformers one row at a time: `yes` is a largest
difference of 1e-4 nats or less.

- log-probabilities: those of ragged rows that share prompts (`models/lm.py::LM.logprobs`);
- sampling: what `engines/transformers.py::TransformersEngine` returns with its tokens, for prompts of several lengths,
  three responses to each, in batches that shrink as responses end;
- LoRA: an adapter of random values against the model that is exported with it;
- plan: `openprime plan` reads the configuration and counts the parameters that the model has, to 1 %.

Every model is exported and loaded again as well. Rows are longer than sliding windows and the chunks of state-space
layers. The table is the output of `python benchmarks/architectures.py`; `tests/models/test_architectures.py` checks it.

"""
TAIL = """
An architecture that is not here is tried in the same way on a few tokens before any work begins, and refused with one
line where it differs (`models/lm.py::check_scoring`, `engines/transformers.py::TransformersEngine.try_out`). What
short rows do not show ends a run at its first batch (`policy.mismatch_limit`).

- **Limit of positions**: a table of learned or precomputed positions ends at max_position_embeddings. Longer rows are
  refused.
- **Limit of rotation**: beyond its original positions (LongRoPE) or max_position_embeddings (dynamic NTK), the rotation
  of every token depends on the longest row of a batch, so that sampler and trainer would differ. Longer rows are
  refused. Other rotations go on as they were.
- **Prompts of one length together**: padding would change the model's state, so prompts of different lengths are
  decoded one length after the other, which is slower.
- **No adapter**: LoRA adapts linear layers. Routed experts that are one tensor, convolutions, and layers whose weight
  is taken without calling them get none, and a run says so before it begins.
- **Steps below time_step_min**: transformers raises them in its form for whole rows, and not in its form for one token.
- Mixtures of experts are loaded by one process: several ranks read files with the parameters' own names, and those of
  experts have others, which is said.

Refused whatever the architecture, in one line that says what to do: quantised weights (GPTQ, AWQ, bitsandbytes, FP8,
MXFP4), adapters that are not merged, multimodal models (name a checkpoint of their text part), encoders and
encoder-decoders, models with Python code of their own (`trust_remote_code` is off everywhere), weights with missing,
renamed or misshapen tensors, and weights that are not finite.
"""
ONE_FORM = "steps of the state below time_step_min differ"
"""Of what transformers computes in two ways."""


def page(found: dict[str, Found]) -> str:
    """docs/architectures.md."""
    heading = "| architecture | `model_type` | log-probabilities | sampling | LoRA | plan | |"
    return (
        "\n".join([HEAD + heading, "| --- " * 7 + "|", *(line(*item) for item in found.items())])
        + "\n"
        + TAIL
    )


def line(name: str, row: Found) -> str:
    """An architecture's line of the table."""
    why: list[str] = []
    cells = [cell(value, why) for value in (row.scoring, row.sampling, row.lora)]
    cells.append(cell(row.plan if isinstance(row.plan, str) or row.plan > 0.01 else 0.0, why))
    if cells[1] == "yes" and not row.padded:
        why.append("prompts of one length together")
    if row.limit and cells[0] == "yes":
        why.append(f"limit of {'rotation' if 'rope_parameters' in ZOO[name][1] else 'positions'}")
    why += [f"no adapter: {note.partition('(')[2].rstrip(')')}" for note in row.notes]
    return f"| {name} | `{ZOO[name][0]}` | {' | '.join(cells)} | {'; '.join(dict.fromkeys(why))} |"


def cell(value: float | str, why: list[str]) -> str:
    """yes, a difference, or refused; `why` gets the reason."""
    if isinstance(value, str):
        why.append(value)
        return "refused"
    if value > EXACT:
        why.append(ONE_FORM)
    return "yes" if value <= EXACT else f"within {10.0 ** math.ceil(math.log10(value)):g}"
