"""What a model must be before work begins: what is wrong with one is said in a line, and not at the end of a run."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from openprime.models.placement import Placement
from openprime.ranks import gather
from openprime.types import UserError

LARGEST = 1e10
"""No weight is beyond it: what a flipped bit of an exponent leaves is."""
QUANTISED = ("qweight", "qzeros", "absmax", "SCB", "weight_scale", "weight_scale_inv", "weight_packed")
"""How names of quantised weights end."""
OLD_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|position_ids)$")
"""Names in old files of what is computed today."""


def check_config(name: str, config: PreTrainedConfig) -> None:
    """Raise UserError where a configuration is not that of a causal language model with plain weights."""
    causal, architectures = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()), config.architectures or []
    text = config.get_text_config()
    if text is not config:
        raise UserError(
            f"{name}: a multimodal model ({', '.join(architectures) or config.model_type}): only text models can be "
            f"used here; name a checkpoint of its text part alone (model_type {text.model_type})"
        )
    if not causal.intersection(architectures):
        raise UserError(
            f"{name}: not a causal language model (its architectures: {', '.join(architectures) or 'none given'}); "
            "use a model whose config.json names a ...ForCausalLM class"
        )
    pad, known = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if isinstance(pad, int) and isinstance(known, int) and pad >= known:
        raise UserError(
            f"{name}: config.json: pad_token_id={pad}, but vocab_size={known}: set pad_token_id to null"
        )
    quantised: Any = getattr(config, "quantization_config", None)
    if quantised:
        if not isinstance(quantised, dict):
            quantised = quantised.to_dict()
        raise UserError(
            f"{name}: its weights are quantised ({quantised.get('quant_method', 'quantization_config')}), and such "
            "weights can be neither trained nor compared: use the model that they were made from"
        )


def check_weights(
    name: str,
    model: PreTrainedModel,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]] = (),
) -> None:
    """Raise UserError where weights would keep random values, or are left out of the blocks.

    `missing` and `unexpected` are names; `mismatched` has (name, shape in the file, shape by the configuration).
    What stands in a file beside the model, such as a value head, is nobody's business.
    """
    prefixes = {match[1] for n, _ in model.named_parameters() if (match := re.match(r"(.*?\.)\d+\.", n))}
    prefixes |= {prefix.removeprefix(f"{model.base_model_prefix}.") for prefix in prefixes}
    inside = [key for key in unexpected if key.startswith(tuple(prefixes)) and not OLD_BUFFERS.search(key)]
    if not (missing or mismatched or inside):
        return
    said = [f"missing: {_listed(missing)}"] if missing else []
    said += [f"{key} is {list(own)}, by config.json {list(due)}" for key, own, due in sorted(mismatched)[:3]]
    said += [f"unexpected: {_listed(unexpected)}"] if unexpected else []
    advice = "take the config.json that belongs to the weights, or copy the model's files again"
    before = {u[: -len(m)] for m in missing for u in unexpected if u.endswith(f".{m}")}
    if any(key.endswith(QUANTISED) for key in unexpected):
        advice = "these weights are quantised: use the model that they were made from"
    elif any(".lora_" in key for key in unexpected):
        advice = (
            "these are weights of an adapter: merge it into its base (peft's merge_and_unload) and save that"
        )
    elif before:
        advice = f"the names begin with {min(before)!r}: save the model itself, not what is wrapped around it"
    elif any("embed" in key or "lm_head" in key or "wte" in key for key, _, _ in mismatched):
        advice = "set vocab_size in config.json to what the weights have"
    raise UserError(f"{name}: its weights are not those of its config.json ({'; '.join(said)}): {advice}")


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Raise UserError where weights are no numbers, or beyond any that training gives; every rank calls it."""
    wrong = [key for key, weight in model.state_dict().items() if not _sane(weight)]
    wrong = sorted({key for keys in gather(wrong) for key in keys})
    if wrong:
        raise UserError(
            f"{name}: damaged weights, not finite or above {LARGEST:g}: {_listed(wrong)}: copy the model's files again"
        )


def _sane(weight: Tensor) -> bool:
    own = weight.to_local() if isinstance(weight, DTensor) else weight
    if not own.numel() or not own.is_floating_point():
        return True
    least, most = own.detach().aminmax()  # nan where there is one
    return bool((least > -LARGEST) & (most < LARGEST))


def positions(model: PreTrainedModel) -> tuple[int | None, str]:
    """(the most tokens of a sequence, why): the rows of a table, or where rotation begins to depend on the longest row.

    None: there is no such limit. Beyond max_position_embeddings a rotation goes on as it was.
    """
    config = model.config
    most = getattr(config, "max_position_embeddings", None)
    if not most:  # MPT makes a table of its biases
        return getattr(config, "max_seq_len", None), "positions"
    for rotation in _rotations(getattr(config, "rope_parameters", None) or {}):
        if rotation["rope_type"] == "longrope":
            original = rotation.get("original_max_position_embeddings")
            first = original or getattr(config, "original_max_position_embeddings", None) or most
            return first, "of its original positions; beyond them its rotation depends on the longest row"
        if "dynamic" in rotation["rope_type"]:
            return most, "positions; beyond them its rotation depends on the longest row"
    embedded = model.get_input_embeddings()
    sizes = {
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module is not embedded
    }
    sizes |= {size for buffer in model.buffers() for size in buffer.shape}
    tables = sizes & {most, most + 1, most + 2}  # OPT and others leave the first two unused
    return (most, "positions") if tables else (None, "")


def _rotations(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of rotary positions, which may be one a kind of layer."""
    if "rope_type" in parameters:
        yield parameters
    for value in parameters.values():
        if isinstance(value, dict):
            yield from _rotations(value)


def check_length(model: PreTrainedModel, longest: int, remedy: str) -> None:
    """Raise UserError where sequences of `longest` tokens are more than a model can take; `remedy` says what to do."""
    most, why = positions(model)
    if most is not None and longest > most:
        raise UserError(
            f"prompt and response have up to {longest} tokens, but the model has {most} {why}: {remedy}"
        )


def embeddings(model: PreTrainedModel) -> int:
    """Number of tokens that a model can read and write."""
    both: tuple[Any, Any] = model.get_input_embeddings(), model.get_output_embeddings()
    return min(layer.weight.shape[0] for layer in both)


def check_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Sequence[Sequence[int]]],
    where: str,
    remedy: str,
    responses: int = 0,
) -> None:
    """Raise UserError, which begins with `where`, for token ids or lengths that a model cannot take.

    A row is one sequence in parts, such as prompt and response; `responses` more tokens may follow it. `remedy` says
    what to do about rows that are too long.
    """
    most, longest = 0, 0
    for parts in rows:
        most = max(most, *(max(part, default=0) for part in parts))
        longest = max(longest, sum(len(part) for part in parts))
    if most >= embeddings(model):
        raise UserError(
            f"{where}: token {most} ({tokenizer.convert_ids_to_tokens(most)!r}) is beyond the model's "
            f"{embeddings(model)} embeddings: take the tokenizer that belongs to the weights, or give the model more "
            f"(resize_token_embeddings({len(tokenizer)})) and train them first"
        )
    if longest:
        check_length(model, longest + responses, remedy)


def trial_place(model: PreTrainedModel, place: Placement) -> Placement:
    """Where a few tokens are tried: in float32, unless the blocks' own weights are bfloat16."""
    exact = not isinstance(model, FSDPModule) and all(p.dtype == torch.float32 for p in model.parameters())
    return replace(place, bfloat16=False) if exact else place


def tolerance(place: Placement) -> float:
    """Mean difference of log-probabilities, in nats, that rounding in the blocks' precision does not explain."""
    return 0.2 if place.bfloat16 else 1e-3


def trial_rows(model: PreTrainedModel) -> list[list[int]]:
    """Some tokens: three rows of 4, 7 and 9, of which the last two begin with the same three."""
    vocabulary = embeddings(model)
    first, second, third = (
        [(i * 7 + start) % vocabulary for i in range(n)] for start, n in ((3, 4), (5, 7), (11, 9))
    )
    return [first, second, second[:3] + third[3:]]


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, row: Sequence[int]) -> Tensor:
    """log p(token t | tokens before it) [T - 1] of a row by the model's own forward pass, without padding and cache."""
    ids = torch.tensor([list(row)], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


def first_line(error: BaseException) -> str:
    """What an error says in one line; with the name of its class where that is next to nothing."""
    lines = str(error).strip().splitlines() or [""]
    said = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {said}" if len(said.split()) < 2 else said


def _listed(names: Collection[str]) -> str:
    """Names in order, layers by their numbers, the first four of them."""
    ordered = sorted(names, key=lambda name: [(int(p) if p.isdigit() else -1, p) for p in name.split(".")])
    more = f" and {len(ordered) - 4} more" if len(ordered) > 4 else ""
    return ", ".join(ordered[:4]) + more
