"""Work of a pass by hand; a card's peak by its name."""

import pytest
import torch

from openprime.models import shape
from openprime.models.logprobs import token_logprobs
from openprime.models.shape import DONE, measured_tflops, peak_tflops
from support.tiny_lm import VOCABULARY, make_model


@pytest.mark.parametrize(
    ("trained", "frozen", "times"), [(False, False, 1), (True, False, 3), (True, True, 2)]
)
def test_count_pass__is_what_the_rows_of_a_batch_need(trained: bool, frozen: bool, times: int):
    """Two rows with one prompt of 3 tokens, which is read once, and responses of 4 and 2."""
    model = make_model()  # width 16, feed-forward 24, two heads of 8 that share one key head, two blocks
    model.requires_grad_(not frozen)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 0, 0]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]).bool()
    begun = DONE.flops
    with torch.set_grad_enabled(trained):
        token_logprobs(model, ids, mask)
    matrices = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24)
    read = 3 + 3 + 1  # nothing is predicted from the last token of a row
    forward = 2 * read * matrices + 2 * 2 * 16 * (6**2 + 4**2) + 2 * 6 * 16 * VOCABULARY
    assert DONE.flops - begun == times * forward


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA H200", 989),
    ],
)
def test_peak_tflops__by_the_cards_name(name: str, tflops: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda"))[0] == tflops


def test_peak_tflops__of_a_card_that_is_not_known_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T1000")
    monkeypatch.setattr(shape, "measured_tflops", lambda device, rows: 2.5)
    assert peak_tflops(torch.device("cuda")) == (2.5, "measured: 8192 rows squared on NVIDIA T1000")
    assert peak_tflops(torch.device("cpu")) == (0.0, "")
    assert 1e-6 < measured_tflops(torch.device("cpu"), 64, 1) < 1e3
