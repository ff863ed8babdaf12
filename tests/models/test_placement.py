"""Devices by their names; what a command's settings ask for."""

import pytest
import torch

from openprime.config import PrimeConfig, ScoreConfig
from openprime.models.lm import Loader
from openprime.models.placement import SLOW, Placement, pick_device
from openprime.types import UserError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch):
    """(is it there, does it have bfloat16) -> as PyTorch sees it."""

    def there(there: bool, bfloat16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)

    return there


def test_pick_device__by_name(cuda, monkeypatch: pytest.MonkeyPatch):
    cuda(False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="no CUDA device"):
        pick_device("cuda")
    with pytest.raises(UserError, match="device=gpu: no such device: set auto, cpu or cuda"):
        pick_device("gpu")
    cuda(True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 3)  # each rank has its own
    assert pick_device("cpu") == torch.device("cpu")


def test_placement_of__settings(cuda):
    cuda(True)
    config = PrimeConfig.model_validate({"dtype": "bfloat16", "parallel": {"cpu_offload": True}})
    assert Placement.of(config) == Placement(torch.device("cuda"), bfloat16=True, cpu_offload=True)
    assert (
        Placement.of(ScoreConfig(device="cpu")) == Placement() == Placement(torch.device("cpu"), False, False)
    )


@pytest.mark.parametrize(
    ("device", "supported", "dtype", "bfloat16"),
    [
        ("cuda", True, "auto", True),
        ("cuda", False, "auto", False),  # an old card, on which it is slow
        ("cuda", True, "float32", False),
        ("cuda", False, "bfloat16", True),
        ("cpu", True, "auto", False),
        ("cpu", True, "bfloat16", True),
    ],
)
def test_placement_of__the_default_precision_is_that_of_the_device(
    cuda, device: str, supported: bool, dtype: str, bfloat16: bool
):
    cuda(True, supported)
    assert ScoreConfig().dtype == "auto"
    assert Placement.of(ScoreConfig.model_validate({"device": device, "dtype": dtype})).bfloat16 == bfloat16


@pytest.mark.parametrize(
    ("device", "bfloat16", "has", "said"),
    [
        ("cpu", True, False, True),
        ("cpu", True, True, False),
        ("cpu", False, False, False),
        ("cuda", True, False, False),
    ],
)
def test_placement_notes__bfloat16_on_a_cpu_without_it(
    monkeypatch: pytest.MonkeyPatch, device: str, bfloat16: bool, has: bool, said: bool
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    place = Placement(torch.device(device), bfloat16=bfloat16)
    assert (place.notes, Loader(place).notes) == (said * [SLOW], said * [SLOW])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_placement_autocast__products_have_its_precision(bfloat16: bool):
    matrix = torch.ones(2, 2)
    with Placement(bfloat16=bfloat16).autocast():
        assert (matrix @ matrix).dtype == (torch.bfloat16 if bfloat16 else torch.float32)
