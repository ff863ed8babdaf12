"""Devices by their names; what a command's settings ask for."""

import json
from pathlib import Path

import pytest
import torch

from openprime.cli import main
from openprime.config import PrimeConfig, ScoreConfig
from openprime.models.lm import Loader
from openprime.models.placement import SLOW, Placement, pick_device
from openprime.types import UserError
from support.ranks import become
from support.tiny_prm import save_prm


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
    ("ranks", "copies", "fits"), [(4, 2, True), (4, 4, True), (6, 4, False), (1, 2, False)]
)
def test_placement_of__copies_share_the_ranks_evenly(
    monkeypatch: pytest.MonkeyPatch, ranks: int, copies: int, fits: bool
):
    become(monkeypatch, 0, ranks)
    config = PrimeConfig.model_validate({"parallel": {"replicas": copies}})
    if fits:
        assert Placement.of(config).replicas == copies
    else:
        with pytest.raises(UserError, match=f"parallel.replicas={copies}: {ranks} ranks"):
            Placement.of(config)


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


@pytest.mark.parametrize("command", ["generate", "evaluate", "score", "ask", "data"])
def test_placement_notes__are_said_by_commands_that_do_not_train(
    command: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "What is 2 + 3?", "answer": "5", "response": "5", "outcome": 1}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    save_prm(model, Path("prm"))
    few = "--max-response-tokens 4"
    words = {
        "generate": f"{model} --data.source rows.jsonl --responses 2 --verify.workers 1 {few} --out o",
        "evaluate": f"{model} --benchmark clock --limit 2 --verify.workers 1 {few} --out o",
        "score": "rows.jsonl --prm prm --out o",
        "ask": f"{model} hello {few}",
        "data": f"--data.source rows.jsonl --samples 1 --model {model} --workers 1 --verify.workers 1 {few} --out o",
    }[command]
    main([command, *words.split(), "--dtype", "bfloat16"])
    said = capsys.readouterr()
    assert f"note: {SLOW}" in " ".join((said.out + said.err).split())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_placement_autocast__products_have_its_precision(bfloat16: bool):
    matrix = torch.ones(2, 2)
    with Placement(bfloat16=bfloat16).autocast():
        assert (matrix @ matrix).dtype == (torch.bfloat16 if bfloat16 else torch.float32)
