"""This process as one of several ranks, for what needs no communication."""

import pytest
import torch.distributed as dist


def become(patch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Number `rank` of `world`, for `openprime.ranks` and for whoever asks torch."""
    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_rank", lambda: rank)
    patch.setattr(dist, "get_world_size", lambda: world)
