"""Products by oneDNN: against float64, and in a model."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from openprime.models import products
from openprime.models.hub import load_model
from openprime.models.placement import Placement
from openprime.models.products import Linear, linear, matmul, packed_products, use_onednn
from openprime.models.sharding import load_trained, materialise
from support.tiny_zoo import make


@pytest.fixture(autouse=True)
def _all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a weight is."""
    monkeypatch.setattr(products, "LARGE", 1)


def kinds(model: nn.Module) -> set[type]:
    """Of a model's linear layers."""
    return {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)}


def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every product that oneDNN makes."""
    calls: list[int] = []
    own = products._product

    def count(*args):
        calls.append(1)
        return own(*args)

    monkeypatch.setattr(products, "_product", count)
    return calls


@pytest.mark.parametrize("shape", [(4, 7), (3, 5, 7), (1, 1, 7), (2, 0, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_linear__value_and_gradients_are_those_of_float64(
    shape: tuple[int, ...], bias: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch
):
    calls = used(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    x, weight, added = (torch.randn(*s, generator=generator) for s in (shape, (11, 7), (11,)))
    weights = [weight, added] if bias else [weight]
    inputs = [x, *weights]
    exact = [t.double().requires_grad_(t is x or not frozen) for t in inputs]
    found = [t.clone().requires_grad_(t is x or not frozen) for t in inputs]
    expected, got = nn.functional.linear(*exact), linear(*found)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear(*found), got, rtol=1e-5, atol=1e-5)
    gradient = torch.randn(expected.shape, generator=generator)
    expected.backward(gradient.double())
    got.backward(gradient)
    for one, other in zip(exact, found, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert other.grad is not None
            torch.testing.assert_close(other.grad.double(), one.grad, rtol=1e-5, atol=1e-5)
    assert len(calls) == (0 if 0 in shape else 3 if frozen else 4)


def test_linear__a_gradient_without_memory_of_its_own():
    """That of a sum is one number, expanded."""
    x, weight = torch.randn(8, 7), torch.randn(11, 7, requires_grad=True)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(11, 7))


@pytest.mark.parametrize("turned", [True, False])
def test_matmul__is_that_of_float64(turned: bool):
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    if turned:
        a, b = a.t().contiguous().t(), b.t().contiguous().t()
    torch.testing.assert_close(matmul(a, b).double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


def test_linear__other_precisions_and_small_weights_multiply_as_torch_does(monkeypatch: pytest.MonkeyPatch):
    calls = used(monkeypatch)
    x, weight = torch.randn(4, 7), torch.randn(11, 7)
    assert torch.equal(linear(x.double(), weight.double()), nn.functional.linear(x.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(products, "LARGE", 78)
    assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    assert not calls


def test_use_onednn__a_model_computes_and_trains_as_before(monkeypatch: pytest.MonkeyPatch):
    calls = used(monkeypatch)
    plain = make("qwen2")
    model = copy.deepcopy(plain)
    use_onednn(model)
    assert kinds(model) == {Linear}
    ids = torch.arange(3, 11)[None]
    for one in (plain, model):
        one(ids, labels=ids).loss.backward()
    assert calls
    gradients = dict(model.named_parameters())
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(gradients[name].grad, weight.grad, rtol=1e-4, atol=1e-6)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert type(copy.deepcopy(model).lm_head) is Linear


def test_use_onednn__every_model_that_is_loaded_on_a_cpu(tmp_path: Path):
    """Also one that is read in shares, and the whole copy that an engine samples from; not one elsewhere."""
    make("qwen2").save_pretrained(tmp_path)
    with torch.device("meta"):
        elsewhere = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    use_onednn(elsewhere)
    assert kinds(elsewhere) == {nn.Linear}
    materialise(elsewhere, torch.device("cpu"))
    for model in (elsewhere, load_model(str(tmp_path)), load_trained(str(tmp_path), Placement())):
        assert kinds(model) == {Linear}


@pytest.mark.parametrize("shape", [(3, 2), (products.MANY + 5, 2), (0, 2)])
def test_packed_products__are_those_of_the_layers(shape: tuple[int, int]):
    """With a bias and without, of a block and of the head: against float64 of the same factors."""
    model = make("qwen2")
    torch.nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    for layer in (model.model.layers[0].self_attn.q_proj, model.model.layers[0].mlp.up_proj, model.lm_head):
        narrow = layer is not model.lm_head
        x = torch.randn(*shape, layer.in_features, generator=torch.Generator().manual_seed(0))
        rounded = lambda t, narrow=narrow: t.bfloat16().double() if narrow else t.double()  # noqa: E731
        bias = 0.0 if layer.bias is None else rounded(layer.bias)
        exact = rounded(x) @ rounded(layer.weight).T + bias
        with torch.no_grad(), packed_products(model):
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                found = layer(x)
            with torch.autocast("cpu", torch.bfloat16, enabled=not narrow):
                other = layer(x)  # in another precision than was prepared: the layer's own
        assert found.shape == exact.shape
        assert found.dtype == (torch.bfloat16 if narrow else torch.float32)
        assert other.dtype == (torch.float32 if narrow else torch.bfloat16)
        size = 2**-8 if narrow else 1e-5
        torch.testing.assert_close(found.double(), exact, rtol=size, atol=size)
    assert not [layer for layer in model.modules() if "forward" in layer.__dict__]
