"""Models in GGUF files, the format of llama.cpp: transformers reads them and makes plain weights of quantised ones."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from openprime.types import UserError

GPT2_SPLITS = {"gpt-2", "phi-2", "mpt", "olmo"}
"""Names in a file for the splitting of text into words that is GPT-2's."""
DIGIT_SPLITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""The same, with every digit by itself (llama.cpp, src/llama-vocab.cpp)."""


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model's name stands for: its path, or a folder with one and no config.json; else None.

    Raises UserError where there are several, and where packages are missing that read it.
    """
    path = Path(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"{name}: no such file")
        found = [path]
    elif path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob("*.gguf"))
    else:
        return None
    if len(found) > 1:
        raise UserError(f"{name}: {len(found)} GGUF files: name one of them, such as {found[0]}")
    if found and not (find_spec("gguf") and find_spec("accelerate")):
        raise UserError(
            f"{found[0]}: the packages that read GGUF files are missing: pip install 'openprime[gguf]'"
        )
    return found[0] if found else None


def source(name: str) -> tuple[str, dict[str, Any]]:
    """(what to name, options) for transformers' `from_pretrained` of a model, a GGUF file or any other."""
    path = gguf_file(name)
    return (name, {}) if path is None else (str(path.parent), {"gguf_file": path.name})


def complete(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration that is made from a GGUF file's header, with what a config.json has besides."""
    config.architectures = [
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, f"{config.model_type} in a GGUF file")
    ]
    return config


def split_as_named(name: str, path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer split text as its file says where transformers does not, so that tokens are the model's own.

    Raises UserError for a way that neither knows: transformers would take GPT-2's.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    from transformers.integrations.gguf.reader import read_gguf_metadata

    header, _ = read_gguf_metadata(str(path))
    way = header.get("tokenizer.ggml.pre")
    if header.get("tokenizer.ggml.model") != "gpt2" or way is None:
        return
    if way in DIGIT_SPLITS:
        backend: Any = tokenizer
        backend.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif way not in GGUF_PRE_TOKENIZER_SPLITS and way not in GPT2_SPLITS:
        raise UserError(
            f"{name}: its text is split by {way!r}, which is not known here: use the safetensors model that the file "
            "was made from"
        )


def weights_options() -> dict[str, Any]:
    """Options of `from_pretrained` for plain weights in the place of quantised ones."""
    from transformers import GgufConfig  # from 5.17 on, as the extra has it

    return {"quantization_config": GgufConfig(dequantize=True)}


def count_weights(path: Path) -> int:
    """Weights in a GGUF file, by its header."""
    from transformers.integrations.gguf.reader import GgufHeader

    return sum(math.prod(tensor.shape) for tensor in GgufHeader.from_file(str(path)).tensors)


def check_whole(name: str, stored: int, model: PreTrainedModel) -> None:
    """Raise UserError where a file has not as many weights as the model that was made of it.

    Transformers leaves out what it does not know, such as factors of a rotation: the model would be another one.
    """
    held = sum(parameter.numel() for parameter in model.parameters())
    if stored != held:
        raise UserError(
            f"{name}: the file has {stored:,} weights, the {model.config.model_type} model of its header {held:,}: "
            "transformers cannot read it whole; use the safetensors model that it was made from"
        )
