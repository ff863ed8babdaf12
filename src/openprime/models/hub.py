"""Load and save Hugging Face causal language models."""

import contextlib
import copy
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from openprime.config import PromptFormat
from openprime.data.template import turn_ends
from openprime.models.checks import check_config, check_finite, check_weights, embeddings, first_line
from openprime.models.gguf import (
    check_whole,
    complete,
    count_weights,
    gguf_file,
    source,
    split_as_named,
    weights_options,
)
from openprime.models.products import use_onednn
from openprime.ranks import first, on_first
from openprime.types import StorageError, UserError

FORMAT_FILE = "prompt_format.json"
GENERATION_FILE = "generation_config.json"
OWN_CODE = (
    "comes with Python code of its own, which is never run here (trust_remote_code is off): use a model that "
    "transformers knows"
)
FILE_BYTES = 5 * 2**30
"""Largest safetensors file that several ranks write."""

logging.disable_progress_bar()  # "Loading weights" would break up our own progress


def load_model(name: str, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A causal language model with float32 weights, from a directory, a GGUF file or a hub id; runs no code of its own.

    Raises UserError for a path that does not exist, a model that is not a causal language model, and weights that are
    not those of its configuration or damaged.
    """
    config = read_architecture(name)
    generation, packed = read_generation(name, config), gguf_file(name)
    # What does not fit is said by check_weights.
    options: Any = {"ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float32}
    where, more = source(name)
    stored = 0
    try:
        if packed:
            options |= {**more, **weights_options(), "config": config}
            stored = count_weights(packed)
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, trust_remote_code=False, generation_config=GenerationConfig(), **options
            )
    except Exception as error:  # not our code: anything may come
        raise UserError(f"{name}: its weights cannot be read: {first_line(error)}") from error
    model, found = loaded
    if packed:
        check_whole(name, stored, model)
    check_weights(name, model, found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"])
    model.generation_config = generation
    model = model.to(device)  # pyright: ignore[reportArgumentType]
    check_finite(name, model)
    use_onednn(model)
    return model


def read_architecture(name: str) -> PreTrainedConfig:
    """The configuration of a causal language model; raises UserError as `load_model` does."""
    base = _base_of_adapter(name)
    if base is not None:
        raise UserError(
            f"{name}: an adapter of {base}, not a model: merge it into its base (peft's merge_and_unload), save that, "
            "and name its folder"
        )
    config = _read_config(name)
    check_config(name, config)
    return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, chat template included. No code of its own is run."""
    folder, (where, more) = Path(name), source(name)
    if (
        folder.is_dir()
        and not more
        and not any(any(folder.glob(kind)) for kind in ("tokenizer*", "*.model", "vocab*"))
    ):
        raise UserError(f"{name}: no tokenizer in this folder")  # some classes would make an empty one
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **more)
    except Exception as error:  # not our code: anything may come
        if "trust_remote_code" in str(error):
            raise UserError(f"{name}: its tokenizer {OWN_CODE}") from error
        raise UserError(
            f"{name}: {_not_found(name) if more else 'no tokenizer'}: {first_line(error)}"
        ) from error
    if packed := gguf_file(name):
        split_as_named(name, packed, tokenizer)
    return tokenizer


def read_generation(name: str, config: PreTrainedConfig) -> GenerationConfig:
    """A model's settings of generation, whatever they are: they are kept and exported, and only end tokens are used."""
    path = find_file(name, GENERATION_FILE)
    try:
        if path is None:
            return GenerationConfig.from_model_config(config)  # older models
    except ValueError as error:
        raise UserError(f"{name}: config.json: {first_line(error)}") from error
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = GenerationConfig()
        for key, value in values.items():  # past its own checks, which also refuse what is on the hub
            setattr(found, key, value)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected a JSON object: {first_line(error)}") from error
    return found


def _read_config(name: str) -> PreTrainedConfig:
    where, more = source(name)
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **more)
        return complete(config) if more else config
    except Exception as error:  # not our code: anything may come
        if "trust_remote_code" in str(error):
            raise UserError(f"{name}: the model {OWN_CODE}") from error
        raise UserError(f"{name}: {_not_found(name)}: {first_line(error)}") from error


def _base_of_adapter(name: str) -> str | None:
    """The base that an adapter names; None for what is no adapter. Beside a model's files it would be put on top."""
    path = find_file(name, "adapter_config.json")
    if path is None:
        return None
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    return "an unknown model"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own table of what does not fit, and without progress bars that have no switch."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    form: PromptFormat | None = None,
) -> None:
    """Write safetensors weights, configuration, tokenizer and chat template: a model others can load.

    `form` is how the model was asked in training; it is written beside them. Of a sharded model every rank
    calls it, and the first one writes.
    """
    if isinstance(model, FSDPModule):
        _save_whole(model, folder)
    elif first():
        generation, model.generation_config = model.generation_config, GenerationConfig()
        try:
            model.save_pretrained(folder)
        finally:
            model.generation_config = generation
    if first():
        save_settings(model, tokenizer, folder, form)


def save_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    form: PromptFormat | None = None,
) -> None:
    """`save_model` without the weights. Other programs stop where engines here do, at `end_tokens`."""
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        generation = copy.deepcopy(model.generation_config)
        listed, ends = generation.eos_token_id, end_tokens(model, tokenizer)
        if ends - set(listed if isinstance(listed, list) else [listed]):
            generation.eos_token_id = sorted(ends)
        # As it was read: save_pretrained refuses some that are on the hub.
        generation.to_json_file(folder / GENERATION_FILE, keys_to_pop=["compile_config"])
    tokenizer.save_pretrained(folder)
    if form is not None:
        settings = PromptFormat(**{name: getattr(form, name) for name in PromptFormat.model_fields})
        (folder / FORMAT_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_format(name: str) -> PromptFormat | None:
    """Format of a model's prompts in training, if it was trained here."""
    path = find_file(name, FORMAT_FILE)
    return PromptFormat.model_validate_json(path.read_text(encoding="utf-8")) if path else None


def find_file(name: str, file: str) -> Path | None:
    """A file of a model folder or of a hub id; None where there is none."""
    if Path(name).exists():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        found = cached_file(name, file)
    except OSError:  # no such model, no such file, no hub: loading the model says which
        return None
    return Path(found) if found else None


def same_vocabulary(
    ours: PreTrainedTokenizerBase, name: str, theirs: PreTrainedTokenizerBase, other: str
) -> None:
    """Raises UserError where two models would read the same token ids as different texts."""
    if ours.get_vocab() != theirs.get_vocab():
        raise UserError(
            f"the vocabulary of {name} ({len(ours)} tokens) differs from that of {other} ({len(theirs)} tokens): "
            "use models with the same tokenizer"
        )


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a response: those of the generation configuration, the tokenizer's own, the chat template's."""
    return _end_tokens(model.generation_config, tokenizer, embeddings(model))


def named_end_tokens(name: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """`end_tokens` of a model that is loaded elsewhere."""
    config = read_architecture(name)
    return _end_tokens(read_generation(name, config), tokenizer, config.vocab_size)


def most_positions(name: str) -> int:
    """The longest sequence that a model is made for, in tokens."""
    return getattr(read_architecture(name), "max_position_embeddings", None) or 2**31


def _end_tokens(
    generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, known: int
) -> frozenset[int]:
    """Of the `known` tokens of a model."""
    listed: Any = generation.eos_token_id if generation else None
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(isinstance(i, int) for i in ids):
        raise UserError(
            f"{GENERATION_FILE}: eos_token_id: expected a token id or a list of them, found {listed!r}"
        )
    ids = list(ids)
    if isinstance(tokenizer.eos_token_id, int):
        ids.append(tokenizer.eos_token_id)
    ids += turn_ends(tokenizer)
    if not ids:
        raise UserError(
            "neither the tokenizer nor the generation configuration names an end-of-sequence token"
        )
    if not any(0 <= i < known for i in ids):
        raise UserError(
            f"no response could ever end: the model has {known} tokens, those that end a response are {sorted(ids)}: "
            "take the tokenizer that belongs to the weights"
        )
    return frozenset(i for i in ids if 0 <= i < known)


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(name, whole weight) of a model, one after the other; every rank must take them all."""
    for name, parameter in model.named_parameters():
        yield name, parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def persistent_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors that are saved with the weights and never trained, such as the biases of some routers."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def compute_device(model: PreTrainedModel) -> torch.device:
    """Where a model computes, which is not where its weights are when these are kept in the host's memory."""
    if isinstance(model, FSDPModule) and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return model.device


def _save_whole(model: PreTrainedModel, folder: Path) -> None:
    """Write a sharded model as Hugging Face does, file by file; every rank calls it, the first one writes."""
    fixed = persistent_buffers(model)
    sizes = {n: p.numel() * p.element_size() for n, p in (*model.named_parameters(), *fixed.items())}
    files: list[list[str]] = [[]]
    size = 0
    for name, more in sizes.items():
        if size + more > FILE_BYTES and files[-1]:
            files.append([])
            size = 0
        files[-1].append(name)
        size += more
    whole = chain(named_tensors(model), fixed.items())
    index: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        one = (
            "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        tensors = {}
        for name, (other, tensor) in zip(names, whole, strict=False):
            assert name == other
            if first():
                tensors[name] = tensor.detach().cpu().contiguous()
        index |= dict.fromkeys(names, one)
        on_first(lambda tensors=tensors, path=folder / one: _write_tensors(tensors, path))
    if not first():
        return
    if len(files) > 1:
        text = json.dumps({"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise StorageError(f"{path} could not be written: {error}") from error


def _not_found(name: str) -> str:
    if gguf_file(name):
        return "damaged, or not a GGUF file of a model that transformers reads"
    if Path(name).is_dir():
        return "no readable config.json of a Hugging Face model in this folder"
    return "neither a model folder here nor a model on the hub that can be reached"
