"""A language model with its circumstances; the micro-batches in which it takes a batch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from openprime.config import LoRAOptimizerConfig, OptimizerConfig, PromptFormat
from openprime.models.attention import chooses_tokens, packs
from openprime.models.checks import first_line, plain_logprobs, tolerance, trial_place, trial_rows
from openprime.models.hub import compute_device, save_model, save_settings
from openprime.models.logprobs import (
    Layout,
    candidate_logprobs,
    lay_out,
    likeliest_logprobs,
    sent,
    token_logprobs,
)
from openprime.models.lora import add_adapter, made_up, merged_model, merged_tensors, using_adapter
from openprime.models.placement import Placement
from openprime.models.sharding import load_trained
from openprime.ranks import all_sum, on_first, rank, world
from openprime.types import Batch, RunError, UserError

CPU_TOKENS = 2048
"""Tokens of a micro-batch on a CPU: what larger ones hold leaves its cache, and they are slower."""
GROUPS_PER_RANK = 4
"""From so many groups a rank on, groups are dealt whole: their rows share the work on their prompt."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of a batch that goes through a model at a time."""

    rows: Tensor  # [b]: of the batch; none where a rank only keeps step with others, and the row below counts nothing
    batch: Batch
    layout: Layout
    last: bool
    """Of those of its batch, and then on every rank."""


@dataclass(frozen=True, slots=True)
class LM:
    """A causal language model and what its log-probabilities depend on beside the tokens."""

    model: PreTrainedModel
    place: Placement = Placement()  # noqa: RUF009
    adapter: str = ""
    """The adapter that is on when this model computes; the model may carry others. Empty: all are off."""
    temperature: float = 1.0
    """Logits are divided by it."""
    tokens_per_microbatch: int = 16384
    """Tokens in one forward pass; bounds memory, changes no result."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return compute_device(self.model)

    def active(self) -> AbstractContextManager:
        """With this model's adapter on: around forward and backward passes."""
        return using_adapter(self.model, self.adapter)

    def micro_batches(self, batch: Batch, whole: bool = False) -> Iterator[MicroBatch]:
        """This rank's part of a batch in micro-batches; with `whole` groups stay in one.

        What the host has to know of the batch it reads before the first one: a GPU that is asked for something must
        finish all it was given, while the next micro-batch could be made ready.
        """
        padded = isinstance(self.model, FSDPModule) and not packs(self.model)
        cuts = micro_batches(batch.lengths, self.tokens_per_microbatch, batch.group, whole, padded)
        ids, mask, lengths = batch.token_ids.cpu(), batch.response_mask.cpu(), batch.lengths.cpu()
        on_host = torch.cat(cuts).cpu().split([len(rows) for rows in cuts])
        for number, (rows, own) in enumerate(zip(cuts, on_host, strict=True), 1):
            chosen = own if len(own) else lengths.argmin()[None]
            width = int(lengths[chosen].max())
            with self.place.autocast():
                layout = lay_out(
                    self.model, ids[chosen, :width], mask[chosen, :width], batch.token_ids.device
                )
            micro = batch.select(rows if len(own) else sent(chosen, rows.device), width)
            yield MicroBatch(rows, micro, layout, last=number == len(cuts))

    def forward(self, micro: Batch, layout: Layout | None = None) -> Tensor:
        """Log-probabilities of a micro-batch's response tokens [b, t], differentiable, within `active()`."""
        with self.place.autocast():
            return token_logprobs(self.model, micro.token_ids, micro.response_mask, self.temperature, layout)

    def forward_candidates(self, micro: Batch, layout: Layout | None = None) -> Tensor:
        """Log-probabilities of the candidates of a micro-batch's response tokens [b, t, 1 + k], as `forward`."""
        assert micro.candidates is not None
        ids, mask = micro.token_ids, micro.response_mask
        with self.place.autocast():
            return candidate_logprobs(self.model, ids, mask, micro.candidates, self.temperature, layout)

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities of the response tokens [B, T], without gradient.

        In micro-batches; each rank computes a part of the same batch, and all get the whole.
        """
        return self._of_whole(batch, lambda *micro: (self.forward(*micro),))[0]

    def candidate_logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities of the batch's candidates [B, T, 1 + k], as `logprobs`."""
        return self._of_whole(batch, lambda *micro: (self.forward_candidates(*micro),))[0]

    def likeliest(self, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
        """Candidates and their log-probabilities, both [B, T, 1 + k]: each response token, then the likeliest ones.

        k is `count`, or the vocabulary's size where that is less. As `logprobs`, in one forward pass.
        """

        def forward(micro: Batch, layout: Layout) -> tuple[Tensor, Tensor]:
            ids, mask = micro.token_ids, micro.response_mask
            with self.place.autocast():
                return likeliest_logprobs(self.model, ids, mask, count, self.temperature, layout)

        ids, logprobs = self._of_whole(batch, forward)
        return ids, logprobs

    @torch.no_grad()
    def _of_whole(self, batch: Batch, forward: Callable[[Batch, Layout], tuple[Tensor, ...]]) -> list[Tensor]:
        """What a forward pass gives of micro-batches, each [b, t, ...], of a batch, [B, T, ...]."""
        found: list[Tensor] = []
        with self.active():
            for micro in self.micro_batches(batch):
                parts = forward(micro.batch, micro.layout)
                found = found or [part.new_zeros(*batch.token_ids.shape, *part.shape[2:]) for part in parts]
                for whole, part in zip(found, parts, strict=True):
                    whole[micro.rows, : part.shape[1]] = part[
                        : len(micro.rows)
                    ]  # in the batch's order (trap 7)
        return [all_sum(whole) for whole in found]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, weight) as in a model without adapters, its own merged in, one at a time."""
        return merged_tensors(self.model, self.adapter)

    def save(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, form: PromptFormat | None = None
    ) -> None:
        """Write it as a Hugging Face model, its adapter merged in; `form` is how it was asked in training."""
        save_model(merged_model(self.model, self.adapter), tokenizer, folder, form)

    def try_save(self, tokenizer: PreTrainedTokenizerBase, form: PromptFormat | None = None) -> None:
        """Raise UserError where `save` would fail, or write another model: said before a run, not after it.

        Writes all but the weights into a temporary folder. An adapter is given values, and the model with it merged in
        is compared with it on a few tokens (in one process; it takes as much memory as the export does).
        """
        try:
            with TemporaryDirectory() as folder:
                on_first(lambda: save_settings(self.model, tokenizer, Path(folder), form))
        except Exception as error:  # not our code: anything may come
            raise UserError(
                f"this model could not be exported after training: {first_line(error)}"
            ) from error
        if not self.adapter or isinstance(self.model, FSDPModule):
            return
        row = trial_rows(self.model)[-1]
        with self.active():
            before = plain_logprobs(self.model, row)
            with made_up(self.model, self.adapter):
                own = plain_logprobs(self.model, row)
                merged = plain_logprobs(merged_model(self.model, self.adapter), row)
        gap, moved = float((merged - own).abs().max()), float((own - before).abs().max())
        if gap > 0.01 * moved + 1e-3:
            raise UserError(
                f"lora: the exported model would not be the trained one: with the adapter merged in, log-probabilities "
                f"differ by {gap:.2g} nats (the adapter itself changes them by {moved:.2g}): set lora.targets to "
                "attention's layers, such as q_proj and v_proj, or lora.rank=0"
            )


@torch.no_grad()
def check_scoring(name: str, lm: LM) -> None:
    """Raise UserError where log-probabilities of a batch of rows are not those of each row alone; every rank calls it.

    So it is with what sees tokens on the right. A few tokens are tried.
    """
    unfit = f"{name}: a {lm.model.config.model_type} model cannot be used: "
    rows = trial_rows(lm.model)
    lengths = torch.tensor([len(row) for row in rows], device=lm.device)
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(
        lm.device
    )  # [B, T]
    places = torch.arange(ids.shape[1], device=lm.device)
    mask = (places >= 3) & (places < lengths[:, None])
    nothing = torch.zeros(ids.shape, device=lm.device)
    batch = Batch(ids, mask, lengths, nothing[:, 0], torch.tensor([0, 1, 1], device=lm.device), nothing, mask)
    place = trial_place(lm.model, lm.place)
    try:
        found = replace(lm, temperature=1.0, place=place).logprobs(batch)[mask]
        with lm.active(), place.autocast():
            plain = torch.cat([plain_logprobs(lm.model, row)[2:] for row in rows])
        if place.bfloat16 != lm.place.bfloat16:
            lm.logprobs(batch)  # some cannot be used in bfloat16
        chooses = chooses_tokens(lm.model)
    except RunError:
        raise
    except Exception as error:  # not our code: anything may come
        raise UserError(unfit + first_line(error)) from error
    if not plain.isfinite().all():
        raise UserError(f"{name}: its log-probabilities are not finite: copy the model's files again")
    gap = float((found - plain).abs().mean())
    if gap > tolerance(place):
        raise UserError(
            f"{unfit}tokens that come later change the log-probabilities of those before them, by {gap:.2g} nats on "
            "average"
        )
    if chooses:
        raise UserError(
            f"{unfit}its layers choose the tokens that they attend to, and where two are alike rounding decides: "
            "sampler and trainer would not choose the same"
        )


class Loader:
    """Loads the models of a run; one whose own weights nothing trains is loaded once, whoever uses it."""

    def __init__(self, place: Placement) -> None:
        self.place = place
        self.frozen: dict[str, PreTrainedModel] = {}
        self.notes = place.notes
        """What a user should know of the models that were loaded."""

    def trained(
        self, name: str, adapter: str, config: OptimizerConfig, temperature: float = 1.0, depth: float = 1.0
    ) -> LM:
        """A model to train: whole, or with `lora.rank` an `adapter` on a base that others may use too.

        `depth`: the share of a whole model's blocks, the last ones, that learn.
        """
        if not (isinstance(config, LoRAOptimizerConfig) and config.lora.rank):
            lm = LM(load_trained(name, self.place, depth).eval(), self.place, temperature=temperature)
            check_scoring(name, lm)
            return lm
        model = self.reference(name).model
        self.notes += [note for note in add_adapter(model, adapter, config.lora) if note not in self.notes]
        return LM(model, self.place, adapter, temperature)

    def reference(self, name: str, tokens_per_microbatch: int = 16384) -> LM:
        """A model to read only."""
        fresh = name not in self.frozen
        if fresh:
            self.frozen[name] = load_trained(name, self.place).requires_grad_(False).eval()
        lm = LM(self.frozen[name], self.place, tokens_per_microbatch=tokens_per_microbatch)
        if fresh:
            check_scoring(name, lm)
        return lm


def micro_batches(
    lengths: Tensor, tokens: int, group: Tensor | None = None, whole: bool = False, padded: bool = False
) -> list[Tensor]:
    """This rank's part of a batch, which is the same on every rank, as `cut` does it; alone all of it.

    Every rank gets as many micro-batches, since sharded weights are gathered by all together: some may be
    empty. Groups stay on one rank where they are `whole`, and where there are enough to share them out evenly.
    """
    if world() == 1:
        return cut(lengths, tokens, group, whole, padded)
    many = group is not None and len(group.unique()) >= GROUPS_PER_RANK * world()
    dealt = deal(lengths, group if whole or many else None)
    shares = [torch.tensor(rows, dtype=torch.long, device=lengths.device) for rows in dealt]
    cuts = [
        [
            rows[micro]
            for micro in cut(lengths[rows], tokens, None if group is None else group[rows], whole, padded)
        ]
        for rows in shares
    ]
    own, count = cuts[rank()], max(map(len, cuts))
    return own + [shares[0][:0]] * (count - len(own))


def deal(lengths: Tensor, together: Tensor | None = None) -> list[list[int]]:
    """Rows of each rank, about as many tokens for every one; the same answer on every rank.

    Args: lengths [B]; together [B]: rows with the same number go to the same rank. A rank may get none.
    """
    units: dict[int, list[int]] = {}
    for row, unit in enumerate(range(len(lengths)) if together is None else together.tolist()):
        units.setdefault(unit, []).append(row)
    sizes = lengths.tolist()
    shares: list[list[int]] = [[] for _ in range(world())]
    tokens = [0] * world()
    for rows in sorted(units.values(), key=lambda rows: -sum(sizes[row] for row in rows)):
        least = tokens.index(min(tokens))
        shares[least] += rows
        tokens[least] += sum(sizes[row] for row in rows)
    return [sorted(rows) for rows in shares]


def cut(
    lengths: Tensor, tokens: int, group: Tensor | None = None, whole: bool = False, padded: bool = False
) -> list[Tensor]:
    """Rows of micro-batches of at most `tokens` tokens, longest first.

    Args: lengths [B]; group [B]: rows with the same number follow one another, so that they share their prompt.
    With `whole` they stay in one micro-batch. What is longer than the budget by itself gets a micro-batch of
    its own. Every row is in exactly one micro-batch. On a CPU the budget is at most CPU_TOKENS. `padded`: rows of a
    micro-batch are padded to its longest one, and share no prompts.
    """
    if lengths.device.type == "cpu":
        tokens = min(tokens, CPU_TOKENS)
    sizes = lengths.tolist()
    groups: dict[int, list[int]] = {}
    for row, unit in enumerate(range(len(sizes)) if group is None else group.tolist()):
        groups.setdefault(unit, []).append(row)
    for rows in groups.values():
        rows.sort(key=lambda row: -sizes[row])
    ordered = sorted(groups.values(), key=lambda rows: -sizes[rows[0]])
    units = ordered if whole else [[row] for rows in ordered for row in rows]
    if padded and not whole:
        units.sort(key=lambda rows: -sizes[rows[0]])
    batches: list[list[int]] = []
    held = 0
    for rows in units:
        size = sum(sizes[row] for row in rows)
        if padded and batches:  # the longest row of all comes first
            held = sizes[batches[-1][0]] * len(batches[-1])
            size = sizes[batches[-1][0]] * len(rows)
        if not batches or held + size > tokens:
            batches.append([])
            held = 0
        batches[-1] += rows
        held += size
    return [torch.tensor(rows, device=lengths.device) for rows in batches]
