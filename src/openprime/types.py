"""The values that travel between the rooms of the package. Imports no torch: verifiers' workers start at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Told:
    """An error whose message says all that there is to say: a notebook shows it without its frames."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"{type(self).__name__}: {self}"]


class UserError(Told, ValueError):
    """A mistake that the user can mend: the message names the file, line or key and says what to do."""

    exit_code = 2


class RunError(Told, RuntimeError):
    """What ends a run though nobody has made a mistake; the message says how to go on."""

    exit_code = 1


class StorageError(Told, OSError):
    """A file could not be written; what was there before stays valid."""

    exit_code = 1


class NonFiniteError(RunError):
    """A loss, its gradient or a model's logits are not finite; raised before anything is done with them."""


class EngineError(RunError):
    """The engine died or hung, and again after it was started anew."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, tokenised once; its token ids are never made again from text (trap 13)."""

    id: str
    """Unique within a data set: its name and row number."""
    token_ids: tuple[int, ...]
    """The rendered prompt, chat template and generation prompt included."""
    messages: str | list[dict[str, Any]]
    """What the user wrote: plain text, or chat messages."""
    answer: str | None
    """The reference answer; None where a user's verifier needs none."""
    columns: dict[str, Any] = field(default_factory=dict)
    """All fields of the row, for user verifiers and analysis."""
    verifier: str = "math"
    """Who judges its responses: `math`, `code`, `reasoning_gym`, or a user's `module:function`."""
    tests: bytes = b""
    """Of a program: its tests, parsed once (`verifiers.cases.pack_tests`), in the place of its columns."""


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled continuation of a prompt."""

    token_ids: tuple[int, ...]
    """Sampled tokens, the end-of-sequence token included when it was sampled (trap 14)."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the distribution it was sampled from, in nats."""
    text: str
    """Decoded tokens without special tokens."""
    truncated: bool
    """True when the token limit came before an end-of-sequence token."""
    outcome: float | None = None
    """The verifier's number in [0, 1]; None before verification and where there is no verdict."""
    reason: str = ""
    """Why: right, wrong, no_answer, ..."""
    verify_seconds: float = 0.0
    """Wall-clock time of the verification."""


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt with its K responses, all sampled from the same version of the policy."""

    prompt: Prompt
    responses: tuple[Response, ...]
    policy_version: int

    @property
    def accuracy(self) -> float:
        """Mean outcome of the responses that have one."""
        outcomes = [r.outcome for r in self.responses if r.outcome is not None]
        return sum(outcomes) / len(outcomes) if outcomes else float("nan")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one response."""

    outcome: float | None
    """In [0, 1]; None where the fault is not the response's (it is then left out)."""
    reason: str
    """right, wrong, partial, no_answer, rejected, timeout, crash, or no_verdict (not the response's fault)."""
    seconds: float = 0.0
    """Wall-clock time of the judgement."""
    note: str = ""
    """The fault, where there is no outcome and it is known."""


Metrics = dict[str, float]
"""Name, such as `policy/loss`, -> value."""

Verifier = Callable[[Prompt, Sequence[str]], list[Verdict]]
"""Judges the responses to one prompt; runs in a worker process of the pool, one verdict a response."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine samples."""

    responses: int
    """K, responses to each prompt."""
    max_tokens: int
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy decoding."""


class Engine(Protocol):
    """What samples responses."""

    remote: bool
    """It samples elsewhere: of several ranks the first one alone asks it, for all."""

    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new policy weights: what is sampled from now on is sampled from them and bears `version`."""
        ...

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

        Responses depend on the weights, `sampling`, `seed`, the prompts and their places, counted from `first`,
        not on what is sampled beside them. `check` is called now and then and may raise to interrupt. `finished`
        gets each group when its last response ends, in this thread.

        Raises NonFiniteError where logits are not finite, EngineError
        where the engine does not come back.
        """
        ...

    def sleep(self) -> None:
        """Free GPU memory until the next `load`, where the engine shares a GPU with the trainer."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts and responses as one right-padded block, with all that a loss needs.

    Padding stands only on the right of causal sequences, so no token ever sees it and no attention
    mask is needed. Row b, position t: token_ids[b, t] follows token_ids[b, :t]. Columns that are None have not been
    computed yet; none changes its meaning once it is there.
    """

    token_ids: Tensor  # [B, T] int64
    response_mask: Tensor  # [B, T] bool: response tokens, end of sequence included, padding never
    lengths: Tensor  # [B] int64: prompt and response tokens
    outcome: Tensor  # [B] float32
    group: Tensor  # [B] int64: which prompt a row answers, 0..G-1
    logprobs: Tensor  # [B, T] float32: the sampler's log-probabilities on response positions, 0 elsewhere
    step_end: Tensor  # [B, T] bool: the last token of each step of a response
    labels: Tensor | None = None  # [B, T] float32: label of the step that ends here, in [0, 1]
    ref_logprobs: Tensor | None = None  # [B, T] float32: of the PRM's reference model
    rewards: Tensor | None = None  # [B, T] float32: process reward of each token, PRIME eq. 3
    old_logprobs: Tensor | None = None  # [B, T] float32: of the old policy in the clipped loss, PRIME eq. 6
    importance: Tensor | None = None  # [B, T] float32: truncated min(p_trainer / p_sampler, C); None: 1
    advantages: Tensor | None = None  # [B, T] float32: PRIME eq. 5
    weights: Tensor | None = None  # [B, T] float32: of each token in the policy's loss
    candidates: Tensor | None = None  # [B, T, 1 + k] int64: the token itself, then the policy's k likeliest
    targets: Tensor | None = None  # [B, T, k + 1] float32: tilted reference of the k and the rest
    group_outcome: Tensor | None = None  # [B] float32: mean outcome of the row's whole group
    returns: Tensor | None = None  # [B, T] float32: of process rewards, PRIME eq. 5 without its weight

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    def select(self, rows: Tensor, width: int = 0) -> Batch:
        """The given rows, cut to the longest of them, in every column; `width`: its length, where that is known."""
        width = width or int(self.lengths[rows].max())

        def cut(column: Tensor | None) -> Any:
            if column is None:
                return None
            return column[rows] if column.dim() == 1 else column[rows, :width]

        return Batch(*(cut(getattr(self, name)) for name in Batch.__slots__))

    def shortest(self) -> Batch:
        """The shortest row alone."""
        return self.select(self.lengths.argmin()[None])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""

        def move(column: Tensor | None) -> Any:
            return None if column is None else column.to(device)

        return Batch(*(move(getattr(self, name)) for name in Batch.__slots__))
