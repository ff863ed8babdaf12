"""Run by torchrun from test_sharding.py: models in shares against whole ones, of many architectures."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from openprime.engines.transformers import TransformersEngine
from openprime.models.hub import load_model, load_tokenizer, named_tensors, save_model
from openprime.models.logprobs import token_logprobs
from openprime.models.placement import Placement
from openprime.models.sharding import load_trained, sampling_model
from openprime.ranks import all_sum, rank, world
from openprime.types import Prompt, Sampling
from support import tiny_zoo

PLACE = Placement()


def check(name: str, folder: Path, tokenizer) -> None:
    """One architecture: what is loaded, computed, differentiated, sampled and saved."""
    whole = load_model(str(folder / "whole")).eval()
    parts = load_trained(str(folder / "whole"), PLACE).eval()
    assert isinstance(parts, FSDPModule)
    expected = dict(whole.named_parameters())
    assert list(expected) == [key for key, _ in parts.named_parameters()]
    for key, parameter in parts.named_parameters():
        assert isinstance(parameter, DTensor), key
        assert parameter.to_local().numel() < parameter.numel() or parameter.shape[0] == 1, key
    copies = load_trained(str(folder / "whole"), Placement(replicas=world()))  # one on every rank
    assert all(parameter.to_local().shape == parameter.shape for parameter in copies.parameters())
    for key, tensor in (*named_tensors(parts), *named_tensors(copies)):
        assert torch.equal(tensor, expected[key]), key
    # Every rank its own rows, in one sum over all of them; the second rank has a row less.
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, tiny_zoo.VOCABULARY, (2 * world(), 9), generator=generator)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, 3:] = True
    weights = torch.randn(ids.shape, generator=generator)
    (token_logprobs(whole, ids, mask) * weights).sum().backward()
    own = slice(2 * rank(), 2 * rank() + 2)
    with torch.no_grad():
        found = token_logprobs(parts, ids[own], mask[own])
        torch.testing.assert_close(found, token_logprobs(whole, ids, mask)[own], rtol=1e-4, atol=1e-5)
    (token_logprobs(parts, ids[own], mask[own]) * weights[own]).sum().backward()
    for key, parameter in parts.named_parameters():
        assert isinstance(parameter.grad, DTensor), key
        torch.testing.assert_close(
            parameter.grad.full_tensor() * world(), expected[key].grad, rtol=1e-3, atol=1e-4, msg=key
        )
    # A copy to sample from, before and after other weights come in.
    copy = sampling_model(parts, PLACE)
    engines = [TransformersEngine(model, PLACE, tokenizer, frozenset({1})) for model in (copy, whole)]
    prompts = [Prompt(str(i), tuple(ids[i].tolist()), "", None) for i in range(2)]
    for factor in (1.0, 0.5):
        with torch.no_grad():
            for parameter in [*parts.parameters(), *whole.parameters()]:
                parameter.mul_(factor)
        engines[0].load(named_tensors(parts), 1)
        ours, theirs = (engine.generate(prompts, Sampling(3, 6), 5) for engine in engines)
        for group, other in zip(ours, theirs, strict=True):
            assert [r.token_ids for r in group.responses] == [r.token_ids for r in other.responses], name
    # What is saved is what transformers would save.
    save_model(parts, tokenizer, folder / "saved")
    all_sum(torch.zeros(1))
    saved, again = load_file(folder / "saved" / "model.safetensors"), load_model(str(folder / "saved"))
    assert saved.keys() == load_file(folder / "whole" / "model.safetensors").keys()
    for (key, tensor), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(tensor, other), key


def main() -> None:
    """All architectures of the zoo."""
    torch.distributed.init_process_group("gloo")
    tokenizer = load_tokenizer(sys.argv[2])
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        check(folder.name, folder, tokenizer)
        if rank() == 0:
            print(f"checked {folder.name}", flush=True)
    torch.distributed.destroy_process_group()


main()
