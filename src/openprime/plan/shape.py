"""The sizes of a model that its memory and its arithmetic follow from, read from its config.json alone."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from openprime.config import LoRAConfig
from openprime.types import UserError


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with gated feed-forward layers, such as Qwen2 or Llama."""

    parameters: int
    """All of them, tied ones once."""
    linear: tuple[tuple[str, int, int], ...]
    """(name, inputs, outputs) of every linear layer of the blocks."""
    layers: int
    width: int
    heads: int
    query: int
    """Width of all query heads together."""
    key: int
    """Width of all key heads together, and of all value heads."""
    mlp: int
    vocabulary: int
    tied: bool
    """The head is the embedding."""

    @property
    def matrices(self) -> int:
        """Weights of the blocks' linear layers."""
        return sum(inputs * outputs for _, inputs, outputs in self.linear)

    @property
    def head(self) -> int:
        """Weights of the head, and of the embedding."""
        return self.vocabulary * self.width

    def adapter(self, config: LoRAConfig) -> int:
        """Parameters of a LoRA adapter: rank (inputs + outputs) for every linear layer that gets one."""
        chosen = [(i, o) for name, i, o in self.linear if not config.targets or name in config.targets]
        return config.rank * sum(inputs + outputs for inputs, outputs in chosen)


def read_shape(name: str) -> Shape:
    """The shape of a model folder, a config.json or a hub id; its weights are neither needed nor read.

    Raises ValueError where there is no configuration of a causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: no configuration of a causal language model to read ({str(error).splitlines()[0]}): name a model "
            "folder or a config.json with --architecture (and --prm-architecture)"
        ) from error
    head = model.get_output_embeddings()
    linear = tuple(
        (path.split(".")[-1], module.in_features, module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    heads = config.num_attention_heads
    # Not every architecture has these: older ones share no key heads and split the width evenly.
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=linear,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        query=heads * head_width,
        key=(getattr(config, "num_key_value_heads", None) or heads) * head_width,
        mlp=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )
