"""The engine that a configuration asks for."""

from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from openprime.config import (
    EngineConfig,
    EvaluateConfig,
    GenerateConfig,
    PrepareConfig,
    RLConfig,
    ServerEngineConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
    vllm_samples_at,
)
from openprime.engines.server import ServerEngine
from openprime.engines.transformers import TransformersEngine
from openprime.engines.vllm import VLLMEngine, exchange_folder, start_vllm
from openprime.models.checks import check_length
from openprime.models.gguf import gguf_file
from openprime.models.hub import (
    end_tokens,
    load_model,
    most_positions,
    named_end_tokens,
    read_architecture,
)
from openprime.models.lm import LM
from openprime.models.placement import Placement
from openprime.models.sharding import sampling_model
from openprime.ranks import first
from openprime.types import Engine, UserError


def chosen(
    engine: EngineConfig, model: str, place: Placement, temperature: float
) -> TransformersEngineConfig | VLLMEngineConfig | ServerEngineConfig:
    """What samples: `auto` is vLLM where it is installed, there is a GPU, and it can sample this; said on a GPU."""
    if engine.kind != "auto":
        return engine
    if place.device.type != "cuda":
        return TransformersEngineConfig()
    faults = {
        "vLLM is not installed": find_spec("vllm") is None,
        "vLLM reads no GGUF file": bool(gguf_file(model)),
        f"vLLM does not sample at a temperature of {temperature}": not vllm_samples_at(temperature),
    }
    why = next((fault for fault, is_one in faults.items() if is_one), "")
    if first():
        said = f"the trainer's own model, more slowly, for {why}" if why else "vLLM, which shares the GPU"
        print(f"note: engine.kind=auto: samples come from {said}", flush=True)
    return TransformersEngineConfig() if why else VLLMEngineConfig()


def make_engine(
    config: RLConfig | GenerateConfig | EvaluateConfig | PrepareConfig,
    tokenizer: PreTrainedTokenizerBase,
    sequences: int,
    longest: int,
    policy: LM | None = None,
) -> Engine:
    """An engine that samples from `config.model`.

    Args: sequences: decoded at a time. longest: prompt and response together, in tokens. policy: the model
    that is trained, if one is.
    """
    place, name = Placement.of(config), config.model
    temperature = config.rollout.temperature if isinstance(config, RLConfig) else config.temperature
    kind = chosen(config.engine, name, place, temperature)
    if kind.kind == "transformers":
        model = sampling_model(policy.model, place) if policy else load_model(name, place.device)
        check_length(model, longest, "lower max_response_tokens or data.max_prompt_tokens")
        engine = TransformersEngine(model, place, tokenizer, end_tokens(model, tokenizer), sequences)
        if policy is None or model is policy.model:
            engine.try_out()  # a copy of a model in shares has no weights yet
        return engine
    if gguf_file(name):
        raise UserError(
            f"{name}: engine.kind={kind.kind} reads a model's folder, not a GGUF file: set engine.kind=transformers, "
            "or name the model/ that a run has made of it"
        )
    ends, longest = named_end_tokens(name, tokenizer), min(longest, most_positions(name))
    if kind.kind == "server":
        out = Path(config.out)
        folder = Path(kind.shared_folder) / out.name if kind.shared_folder else out / "weights"
        vocabulary = read_architecture(name).get_text_config().vocab_size
        return ServerEngine(
            kind, name, tokenizer, ends, vocabulary, sequences, longest, folder, place.bfloat16
        )
    trained = sum(p.numel() for p in policy.model.parameters()) if policy else 0
    return VLLMEngine(
        lambda: start_vllm(name, place, kind, sequences, longest, sleeps=policy is not None),
        tokenizer,
        ends,
        kind.timeout,
        policy.tensors if policy else None,
        exchange_folder((2 if place.bfloat16 else 4) * trained, Path(config.out)),
    )
