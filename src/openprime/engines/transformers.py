"""Batched sampling with a KV cache from the trainer's own model, on CPU or GPU."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from openprime.engines.common import to_response
from openprime.models.attention import use_own_attention
from openprime.models.checks import (
    check_rows,
    first_line,
    plain_logprobs,
    tolerance,
    trial_place,
    trial_rows,
)
from openprime.models.logprobs import float32_head, has_plain_head
from openprime.models.lora import has_adapters
from openprime.models.placement import Placement
from openprime.models.products import packed_products
from openprime.types import Group, NonFiniteError, Prompt, RunError, Sampling, UserError

COMPACT_AT = 0.9
"""Finished rows leave the batch when fewer than this share of its rows is still alive."""


GROW_BY = 128
"""Positions that the cache makes room for at a time."""

BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed first in sampling."""


@dataclass(slots=True)
class _Row:
    """One sequence being decoded."""

    prompt: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class _GrowingLayer(DynamicLayer):
    """A cache layer written in place: a new tensor for every token costs more than a small model itself."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, t, D] and return all of them.

        Within autocast they are kept in the precision in which attention multiplies: rotation makes float32 keys, and
        all of them would be cast anew for every token.
        """
        past = self.get_seq_length()
        if torch.is_autocast_enabled(device := key_states.device.type):
            narrow = torch.get_autocast_dtype(device)
            key_states, value_states = key_states.to(narrow), value_states.to(narrow)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.stores = [key_states[:, :, :0], value_states[:, :, :0]]
        end = past + key_states.shape[-2]
        views = []
        held_all: Any = (self.keys, self.values)
        for i, (held, new) in enumerate(zip(held_all, (key_states, value_states), strict=True)):
            store = self.stores[i]
            # Rows that left or were repeated made `held` a tensor of its own, without room to grow.
            if store.shape[-2] < end or store.data_ptr() != held.data_ptr():
                store = new.new_empty(*new.shape[:2], end + GROW_BY, new.shape[-1])
                store[:, :, :past] = held if past else new[:, :, :0]
                self.stores[i] = store
            store[:, :, past:end] = new
            views.append(store[:, :, :end])
        self.keys, self.values = views
        return views[0], views[1]


@contextlib.contextmanager
def casts_kept(model: PreTrainedModel) -> Iterator[None]:
    """Let autocast keep its copies of frozen weights, which it does only of weights that require gradients.

    The base below an adapter would be cast anew for every token. Not for passes that make gradients.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


class _UnfitError(ValueError):
    """Tokens cannot be sampled from a model in the way that was tried."""


class TransformersEngine:
    """Samples from a live model: its weights are the trainer's, so `load` only counts versions."""

    remote = False

    def __init__(
        self,
        model: PreTrainedModel,
        place: Placement,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        sequences: int = 256,
    ) -> None:
        """`sequences`: decoded at a time."""
        self.model, self.place, self.tokenizer, self.sequences = model, place, tokenizer, sequences
        self.end_tokens = end_tokens
        self.version = 0
        self.pads: bool | None = None
        """True where prompts of several lengths are decoded together, padded on the left; None: not tried yet."""
        self.cache_name = _cache_name(model)
        use_own_attention(model)

    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new policy weights. Weights that are already the engine's own storage are not copied.

        Only the trainer's own model has adapters, and its policy's is the active one: then nothing is merged.
        """
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in () if has_adapters(self.model) else named_tensors:
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.version = version

    def sleep(self) -> None:
        """Nothing of its own to give back."""

    def try_out(self, remedy: str = "set engine.kind=vllm or server where vLLM knows it") -> None:
        """See whether sampled tokens have the log-probabilities of the model's own forward pass over each row alone.

        Where they have not with padding (a state that padding changes), only prompts of one length are decoded
        together. Raises UserError for a model that cannot be sampled from; `remedy` says what to do. Once, with the
        weights in place.
        """
        said = "it takes no cache"
        for pads in (True, False) if self.cache_name else ():
            try:
                self._try(pads)
                self.pads = pads
                return
            except _UnfitError as error:
                said = str(error)
        raise UserError(
            f"a {self.model.config.model_type} model cannot be sampled from with engine.kind=transformers ({said}): "
            + remedy
        )

    @torch.no_grad()
    def _try(self, pads: bool) -> None:
        """Raise _UnfitError where the log-probabilities of a few sampled tokens are not the model's own."""
        first, _, last = (Prompt("", tuple(row), "", None) for row in trial_rows(self.model))
        where, gaps, was_training = trial_place(self.model, self.place), [], self.model.training
        self.model.eval()
        try:
            with where.autocast():
                for batch in [[first, last]] if pads else [[first], [last]]:
                    uniforms = torch.linspace(0.1, 0.9, 6 * len(batch)).view(-1, 3)
                    for place, rows in self._decode(batch, uniforms, Sampling(2, 3), frozenset()):
                        for row in rows:
                            own = plain_logprobs(self.model, [*batch[place].token_ids, *row.tokens])[-3:]
                            gaps.append((own.cpu() - torch.tensor(row.logprobs)).abs())
        except RunError:
            raise
        except Exception as error:  # not our code: anything may come
            raise _UnfitError(first_line(error)) from error
        finally:
            self.model.train(was_training)
        if (gap := float(torch.cat(gaps).mean())) > tolerance(where):
            raise _UnfitError(f"its cache changes log-probabilities by {gap:.2g} nats on average")

    def generate(
        self,
        prompts: list[Prompt],
        sampling: Sampling,
        seed: int,
        check: Callable[[], None] | None = None,
        finished: Callable[[Group], None] | None = None,
        first: int = 0,
    ) -> list[Group]:
        """Sample `sampling.responses` responses to each prompt; groups in the order of the prompts.

        The same seed gives the same samples however many sequences are decoded at a time: every
        response has its own random numbers, drawn from (seed, place of the prompt in the call). A rank that
        samples a part of the prompts says at which place its `first` one stands.
        `check` is called after each batch of sequences and may raise to interrupt. `finished` gets each
        group when its last response ends, while others are still being sampled.
        """
        groups: list[Group | None] = [None] * len(prompts)
        was_training = self.model.training
        self.model.eval()
        if self.pads is None:
            self.try_out()
        asked = ((prompt.token_ids,) for prompt in prompts)
        check_rows(
            self.model, self.tokenizer, asked, "the prompts", "lower max_response_tokens", sampling.max_tokens
        )
        per_batch = max(1, self.sequences // sampling.responses)
        # Not inference_mode, in which autocast would cast all weights again for every token.
        narrow = self.place.bfloat16
        products = packed_products(self.model) if narrow else contextlib.nullcontext()
        with casts_kept(self.model), products, torch.no_grad(), self.place.autocast():
            for chosen in _batches([len(p.token_ids) for p in prompts], per_batch, not self.pads):
                uniforms = torch.stack([_uniforms(seed, first + i, sampling) for i in chosen])
                # [P, K, max_tokens]
                batch = [prompts[i] for i in chosen]
                for place, rows in self._decode(batch, uniforms.flatten(0, 1), sampling, self.end_tokens):
                    i = chosen[place]
                    own = (self.tokenizer, self.end_tokens)
                    responses = (to_response(row.tokens, row.logprobs, *own) for row in rows)
                    group = Group(prompts[i], tuple(responses), self.version)
                    groups[i] = group
                    if finished is not None:
                        finished(group)
                if check is not None:
                    check()
        self.model.train(was_training)
        return [group for group in groups if group is not None]

    def _decode(
        self, prompts: list[Prompt], uniforms: Tensor, sampling: Sampling, end_tokens: frozenset[int]
    ) -> Iterator[tuple[int, list[_Row]]]:
        """Decode all prompts of one batch together; uniforms [P * K, max_tokens].

        Yields a prompt's place in the batch and its rows when the last of them has ended.
        """
        device = self.model.device
        width = max(len(p.token_ids) for p in prompts)
        ids = torch.tensor(
            [[0] * (width - len(p.token_ids)) + list(p.token_ids) for p in prompts], device=device
        )
        mask = torch.tensor(
            [[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts], device=device
        )
        padded = not bool(mask.all())
        cache: Any = DynamicCache(config=self.model.config)
        cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(ids, cache, mask if padded else None, positions)  # [P, V]
        # One prefill a prompt, shared by its K responses.
        k = sampling.responses
        if k > 1:
            cache.reorder_cache(torch.arange(len(prompts), device=device).repeat_interleave(k))
            logits, mask = logits.repeat_interleave(k, 0), mask.repeat_interleave(k, 0)
        rows = [_Row(i // k) for i in range(len(prompts) * k)]
        position = positions[:, -1].repeat_interleave(k, 0)
        uniforms = uniforms.to(device)
        alive = list(range(len(rows)))  # rows still in the batch, in batch order
        done = [False] * len(rows)
        missing = [k] * len(prompts)  # responses of each prompt that have not ended
        for t in range(sampling.max_tokens):
            tokens, logprobs = sample(logits, uniforms[:, t], sampling.temperature)
            if not bool(logprobs.isfinite().all()):
                raise NonFiniteError("the policy's logits are not finite")
            ids_now, logprobs_now = tokens.tolist(), logprobs.tolist()
            for b, i in enumerate(alive):
                if not done[i]:
                    rows[i].tokens.append(ids_now[b])
                    rows[i].logprobs.append(logprobs_now[b])
                    done[i] = ids_now[b] in end_tokens or t + 1 == sampling.max_tokens
                    missing[i // k] -= done[i]
                    if done[i] and not missing[i // k]:
                        yield i // k, rows[i // k * k : (i // k + 1) * k]
            left = [b for b, i in enumerate(alive) if not done[i]]
            if not left:
                break
            if len(left) < COMPACT_AT * len(alive):
                keep = torch.tensor(left, device=device)
                cache.reorder_cache(keep)
                tokens, mask, position, uniforms = tokens[keep], mask[keep], position[keep], uniforms[keep]
                alive = [alive[b] for b in left]
            position = position + 1
            if padded:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = self._forward(tokens[:, None], cache, mask if padded else None, position[:, None])

    def _forward(self, ids: Tensor, cache: DynamicCache, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Float32 logits of the last position, [B, V]; extends the cache."""
        inputs = {
            "input_ids": ids,
            self.cache_name: cache,
            "attention_mask": mask,
            "position_ids": positions,
        }
        if not has_plain_head(self.model):
            with float32_head(self.model):
                return self.model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        out = self.model.base_model(**inputs, use_cache=True)
        head: Any = self.model.get_output_embeddings()
        with float32_head(self.model):
            return head(out.last_hidden_state[:, -1])


def _cache_name(model: PreTrainedModel) -> str:
    """What a model calls the cache that it is handed; '' where it takes none."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in taken), "")


def _batches(lengths: Sequence[int], size: int, alike: bool) -> list[list[int]]:
    """Places of prompts that are decoded together, shortest first for less padding; `alike`: of one length only."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    runs = [list(run) for _, run in groupby(order, key=lambda i: lengths[i])] if alike else [order]
    return [run[start : start + size] for run in runs for start in range(0, len(run), size)]


def sample(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample by inverting the cumulative distribution of softmax(logits / temperature).

    Args: logits [B, V] float32; uniforms [B] in [0, 1); temperature 0 takes the likeliest token.
    Returns (tokens [B], their log-probabilities [B] under the distribution sampled from; for greedy
    decoding under softmax(logits)).
    """
    if temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
        return tokens[:, 0], torch.log_softmax(logits, -1).gather(-1, tokens)[:, 0]
    logits = logits / temperature if temperature != 1 else logits
    largest = logits.amax(-1, keepdim=True)
    weights = torch.nn.functional.pad((logits - largest).exp_(), (0, -logits.shape[-1] % BLOCK))
    weights = weights.unflatten(-1, (-1, BLOCK))  # [B, V / BLOCK, BLOCK]
    # Cumulative sums in float64 of whole blocks, then within the one that holds the point.
    blocks = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    total = blocks[:, -1:]
    point = (1 - uniforms.double())[:, None] * total  # in (0, total]
    block = torch.searchsorted(blocks, point).clamp(max=blocks.shape[-1] - 1)
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)), 0.0)
    within = weights.take_along_dim(block[:, :, None], 1)[:, 0].double().cumsum(-1)
    # At most the last sum: never a token of probability 0, whatever the rounding of the sums.
    place = torch.searchsorted(within, torch.minimum(point - before, within[:, -1:]))
    tokens = (block * BLOCK + place).clamp(max=logits.shape[-1] - 1)
    logprobs = logits.gather(-1, tokens) - largest - total.log().float()
    return tokens[:, 0], logprobs[:, 0]


def _uniforms(seed: int, place: int, sampling: Sampling) -> Tensor:
    """The random numbers of one prompt's responses, [K, max_tokens]."""
    shape = (sampling.responses, sampling.max_tokens)
    # Not torch's generator: it takes 32 bits of a seed only.
    return torch.from_numpy(np.random.default_rng([seed, place]).random(shape))
