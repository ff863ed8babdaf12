"""Liger's kernels against transformers' own modules. Triton interprets them on a CPU, with TRITON_INTERPRET=1."""

import importlib
import os

import pytest
import torch
from torch import nn

from openprime.config import PrimeConfig, SFTConfig
from openprime.models.liger import KINDS, use_liger
from openprime.models.logprobs import token_logprobs
from openprime.models.placement import Placement
from openprime.types import UserError
from support.tiny_zoo import VOCABULARY, make

IDS = torch.randint(VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(1))
IDS[1, :4] = IDS[0, :4]  # a shared prompt
MASK = (torch.arange(14) >= 4) & (torch.arange(14) < torch.tensor([14, 9, 11])[:, None])


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter lacks: numbers as tensors of float32, as the compiler makes them, and libdevice's functions.

    It has no arithmetic in bfloat16 either: benchmarks/gpu.py compares that.
    """
    assert os.environ.get("TRITON_INTERPRET") == "1", "as .ci/liger sets it"
    numpy = importlib.import_module("numpy")
    tl = importlib.import_module("triton.language")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    convert = interpreter._implicit_cvt

    def with_numbers(value):
        if not isinstance(value, float):
            return convert(value)
        handle = interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", with_numbers)
    norms = importlib.import_module("liger_kernel.ops.rms_norm")
    monkeypatch.setattr(norms, "rsqrt", lambda x: tl.rsqrt(x))
    gated = importlib.import_module("liger_kernel.ops.geglu")
    monkeypatch.setattr(gated, "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)


@pytest.fixture
def own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back what Liger puts into the modules of transformers."""
    for kind in KINDS:
        module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
        for name in dir(module):
            if name == "apply_rotary_pos_emb" or name.endswith(("RMSNorm", "MLP")):
                monkeypatch.setattr(module, name, getattr(module, name))


@pytest.mark.liger
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_use_liger__values_and_gradients_are_those_of_transformers(kind: str, interpreted, own_modules):
    theirs, ours = make(kind), make(kind)
    expected = token_logprobs(theirs, IDS, MASK)
    expected.sum().backward()
    use_liger(kind, ours)
    kernels = {type(module).__name__ for module in ours.modules() if module._get_name().startswith("Liger")}
    assert len(kernels) == 2  # norms and feed-forward layers
    values = token_logprobs(ours, IDS, MASK)
    values.sum().backward()
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.liger
def test_use_liger__the_rotation_is_ligers_as_well(interpreted, own_modules):
    model = make("qwen2")
    use_liger("qwen2", model)
    modeling = importlib.import_module("transformers.models.qwen2.modeling_qwen2")
    assert modeling.apply_rotary_pos_emb.__module__.startswith("liger_kernel")
    assert isinstance(model.get_output_embeddings(), nn.Linear)


def test_use_liger__another_architecture_is_refused():
    with pytest.raises(
        UserError, match=r"^here: kernels=liger is for gemma2, granite, .*, not for a gpt2 model"
    ):
        use_liger("here", make("gpt2"))


@pytest.mark.parametrize("config", [SFTConfig, PrimeConfig])
def test_placement__liger_is_refused_on_a_cpu_and_without_its_package(
    config, monkeypatch: pytest.MonkeyPatch
):
    how = config(kernels="liger", device="cpu")
    with pytest.raises(UserError, match="kernels=liger needs a GPU, and device is cpu: set kernels=torch"):
        Placement.of(how)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    there = {"liger_kernel": None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there[name])
    how = config(kernels="liger", device="cuda")
    with pytest.raises(UserError, match=r"liger-kernel is not installed: pip install 'openprime\[liger\]'"):
        Placement.of(how)
    there["liger_kernel"] = object()
    assert Placement.of(how).liger
    assert not Placement.of(config(device="cuda")).liger
