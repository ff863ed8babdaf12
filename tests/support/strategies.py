"""Random ragged batches, and the two shapes they come in: lists of responses and padded blocks."""

import random
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from openprime.types import Batch

property_test = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
"""The profile of every property test here."""

GRANULARITIES = ("token", "step", "response")
ESTIMATORS = (("rloo", "exact"), ("rloo", "released"), ("grpo", "exact"), ("reinforce", "exact"))
OUTCOMES = ("right", "wrong", "mixed", "soft")


@dataclass(frozen=True)
class Case:
    """The outline of a batch: who answers which prompt, and where the responses stand."""

    group: list[int]
    prompts: list[int]
    """Columns in front of each response."""
    lengths: list[int]
    outcomes: list[float]
    ends: list[list[bool]]
    """Step ends, one for each response token."""
    width: int
    seed: int

    def __len__(self) -> int:
        return len(self.group)

    def values(self, name: str, scale: float = 1.0) -> list[list[float]]:
        """Random numbers for the response tokens, float32 without rounding."""
        rng = random.Random(f"{self.seed} {name}")
        return [[round(rng.gauss(0, scale) * 1024) / 1024 for _ in range(length)] for length in self.lengths]

    def scores(self, name: str = "scores") -> list[float]:
        """Random numbers for the responses, coarse enough for ties."""
        rng = random.Random(f"{self.seed} {name}")
        return [round(rng.gauss(0, 2) * 4) / 4 for _ in self.lengths]

    def block(self, rows: list[list[float]], dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, T] with the given response tokens and large garbage everywhere else."""
        rng = random.Random(self.seed)
        out = torch.tensor(
            [[rng.uniform(-1e4, 1e4) for _ in range(self.width)] for _ in self.group], dtype=dtype
        )
        for b, row in enumerate(rows):
            out[b, self.prompts[b] : self.prompts[b] + len(row)] = torch.tensor(row, dtype=dtype)
        return out

    def clean(self, rows: list[list[float]], dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, T] with the given response tokens and 0 everywhere else."""
        return self.block(rows, dtype).where(self.mask, 0)

    @property
    def mask(self) -> Tensor:
        """[B, T] bool, the response tokens."""
        column = torch.arange(self.width)
        first = torch.tensor(self.prompts)[:, None]
        return (column >= first) & (column < first + torch.tensor(self.lengths)[:, None])

    @property
    def step_end(self) -> Tensor:
        """[B, T] bool, with step ends off the mask as well."""
        return self.block([[float(end) for end in row] for row in self.ends]) > 0.5

    def positions(self, rows: list[list[bool]]) -> Tensor:
        """[B, T] bool from lists, False off the mask."""
        return self.clean([[float(stand) for stand in row] for row in rows]) > 0.5

    def batch(self, **columns: Tensor) -> Batch:
        """A batch of this outline, its tokens all 0, with further columns."""
        zeros = torch.zeros(len(self), self.width)
        known = {
            "token_ids": zeros.long(),
            "response_mask": self.mask,
            "lengths": torch.tensor([p + n for p, n in zip(self.prompts, self.lengths, strict=True)]),
            "outcome": self.outcome_tensor,
            "group": self.group_tensor,
            "logprobs": zeros,
            "step_end": self.step_end,
        }
        return Batch(**(known | columns))

    @property
    def group_tensor(self) -> Tensor:
        """[B] int64."""
        return torch.tensor(self.group)

    @property
    def outcome_tensor(self) -> Tensor:
        """[B] float32."""
        return torch.tensor(self.outcomes, dtype=torch.float32)

    def check(self, block: Tensor, expected: list[list[float]], tolerance: float = 1e-5) -> None:
        """A block holds the expected response tokens, and exactly 0 everywhere else."""
        assert block.shape == (len(self), self.width)
        assert (block[~self.mask] == 0).all(), "something stands off the mask"
        wanted = self.clean(expected, torch.float64)
        torch.testing.assert_close(
            block.double(), wanted, rtol=tolerance, atol=tolerance * max(1.0, float(wanted.abs().max()))
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """1 to 4 groups of up to 16 responses of 1 to 12 tokens, rows in any order."""
    sizes = draw(st.lists(st.integers(2, 16), min_size=1, max_size=4))
    kinds = [draw(st.sampled_from(OUTCOMES)) for _ in sizes]
    longest, prompt, spare = draw(st.integers(1, 12)), draw(st.integers(0, 4)), draw(st.integers(0, 3))
    return build(sizes, kinds, longest, prompt, spare, draw(st.integers(0, 2**32 - 1)))


def build(sizes: list[int], kinds: list[str], longest: int, prompt: int, spare: int, seed: int) -> Case:
    """A case of the given outline; everything else follows from the seed."""
    rng = random.Random(seed)
    group = [g for g, size in enumerate(sizes) for _ in range(size)]
    rng.shuffle(group)
    prompts = [rng.randint(0, prompt) for _ in group]
    lengths = [rng.randint(1, longest) for _ in group]
    draws = {
        "right": lambda: 1.0,
        "wrong": lambda: 0.0,
        "mixed": lambda: float(rng.random() < 0.5),
        "soft": lambda: rng.randint(0, 8) / 8,
    }
    return Case(
        group=group,
        prompts=prompts,
        lengths=lengths,
        outcomes=[draws[kinds[g]]() for g in group],
        ends=[[rng.random() < 0.3 for _ in range(length)] for length in lengths],
        width=max(p + n for p, n in zip(prompts, lengths, strict=True)) + spare,
        seed=seed,
    )
