"""Models in shares: FSDP2 over the ranks of a run, each of which reads, keeps and trains its share of the weights."""

import copy
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from openprime.models.checks import check_finite, check_weights, first_line
from openprime.models.gguf import gguf_file
from openprime.models.hub import load_model, persistent_buffers, read_architecture, read_generation
from openprime.models.liger import use_liger
from openprime.models.logprobs import whole_logprobs
from openprime.models.placement import Placement
from openprime.models.products import use_onednn
from openprime.ranks import together, world
from openprime.types import UserError

NAMES = (
    "several ranks read safetensors files with the parameters' own names, as save_pretrained writes them; those of "
    "mixtures of experts have others"
)


def load_trained(name: str, place: Placement, depth: float = 1.0) -> PreTrainedModel:
    """A model with float32 weights, from a folder or a hub id: in shares on several ranks, or with `place.shard`.

    `depth`: the share of its blocks that learns (`freeze_below`). On several ranks every rank reads its own share of
    the weights only, but a GGUF file whole. Raises UserError as `load_model`, `use_liger` and `freeze_below` do.
    """
    whole = world() == 1 and not place.shard
    if whole or gguf_file(name):
        model = load_model(name, "cpu" if place.cpu_offload and not whole else place.device)
        if place.liger:
            use_liger(name, model)
        freeze_below(name, model, depth)
        shard(model, place)
        return model
    config = read_architecture(name)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # not our code: anything may come
        raise UserError(f"{name}: its config.json cannot be used: {first_line(error)}") from error
    model.generation_config = read_generation(name, config)
    if place.liger:
        use_liger(name, model)
    freeze_below(name, model, depth)
    shard(model, place)
    materialise(model, torch.device("cpu") if place.cpu_offload else place.device)
    folder = name
    if not Path(name).is_dir():
        # On every rank: machines have caches of their own. Those of one machine wait for the first one's files.
        folder = together(lambda: snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    wanted = dict(model.named_parameters()) | persistent_buffers(model)
    try:
        # Reads the slices of a safetensors file that a rank's shares need.
        stored = HuggingFaceStorageReader(folder).read_metadata().state_dict_metadata
        sizes = {key: tuple(getattr(found, "size", ())) for key, found in stored.items()}
        if not sizes:
            raise FileNotFoundError("there is no safetensors file")
        check_weights(
            name,
            model,
            wanted.keys() - sizes.keys(),
            sizes.keys() - model.state_dict().keys(),
            [(k, sizes[k], t.shape) for k, t in wanted.items() if k in sizes and sizes[k] != tuple(t.shape)],
        )
        load(wanted, storage_reader=HuggingFaceStorageReader(folder))
    except UserError as error:
        raise UserError(f"{error} ({NAMES})") from error
    except (CheckpointException, SafetensorError, RuntimeError, OSError) as error:
        raise UserError(
            f"{name}: its weights cannot be read in shares ({first_line(error)}): {NAMES}"
        ) from error
    check_finite(name, model)
    return model


def shard(model: PreTrainedModel, place: Placement) -> None:
    """Spread a model's weights over the ranks, in place; a single process keeps it as it is, without `place.shard`.

    With `place.replicas` each of as many parts of the ranks has the whole model in shares.

    Masters are float32. With bfloat16 the blocks' weights are gathered in bfloat16 for the forward and
    backward pass; embeddings, head and last norm in float32, so that logits are what they are in one
    process (trap 11). Gradients are averaged over ranks in float32.
    """
    if world() == 1 and not place.shard:
        return
    mesh = mesh_of(place.device.type, place.replicas, dist.group.WORLD)
    offload = CPUOffloadPolicy() if place.cpu_offload else OffloadPolicy()
    # Activations keep their precision: autocast decides, as it does in one process.
    narrow = torch.bfloat16 if place.bfloat16 else None
    inner = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    outer = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=inner, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=outer, offload_policy=offload, reshard_after_forward=True)
    # The head's weight is needed beside the model's own forward: gather it around both.
    setattr(model, "response_logprobs", MethodType(whole_logprobs, model))  # noqa: B010
    register_fsdp_forward_method(model, "response_logprobs")


@cache
def mesh_of(device: str, replicas: int, ranks: dist.ProcessGroup) -> DeviceMesh:
    """The ranks as FSDP2 wants them, one mesh for all models: shares; with replicas, these by the shares of each."""
    if replicas == 1:
        return init_device_mesh(device, (ranks.size(),))
    return init_device_mesh(
        device, (replicas, ranks.size() // replicas), mesh_dim_names=("replicas", "shares")
    )


def blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The transformer's blocks."""
    names = model._no_split_modules or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def freeze_below(name: str, model: PreTrainedModel, depth: float) -> None:
    """Let the last blocks of a model alone learn, a share `depth` of them, and the norm behind them; 1: everything.

    Before `shard`. Raises UserError where the blocks are not known.
    """
    if depth == 1:
        return
    own = blocks(model)
    if not own:
        raise UserError(f"{name}: nobody knows which of its layers are blocks: set distill.prm_depth=1")
    below: list[Any] = own[: len(own) - max(1, round(depth * len(own)))]
    head: Any = model.get_output_embeddings()
    for part in (model.get_input_embeddings(), head, *below):
        part.requires_grad_(False)


def materialise(model: PreTrainedModel, device: torch.device) -> None:
    """Give a model on the meta device memory for its weights, and its buffers their values."""
    model.to_empty(device=device)
    model.tie_weights()
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
    model.initialize_weights()  # what is left: buffers, such as the frequencies of rotary positions
    use_onednn(model)


def sampling_model(model: PreTrainedModel, place: Placement) -> PreTrainedModel:
    """The model that an engine samples from: the live one; of a sharded one a whole copy, still without its weights.

    With bfloat16 the copy's blocks are bfloat16, as in `shard`.
    """
    if not isinstance(model, FSDPModule):
        return model
    with torch.device("meta"):
        own = copy.deepcopy(model.config)
        whole = AutoModelForCausalLM.from_config(own, dtype=torch.float32, trust_remote_code=False)
    if place.bfloat16:
        for block in blocks(whole):
            block.to(torch.bfloat16)
    materialise(whole, place.device)
    for name, buffer in persistent_buffers(model).items():
        whole.get_buffer(name).copy_(buffer)
    whole.generation_config = model.generation_config
    return whole.requires_grad_(False).eval()
