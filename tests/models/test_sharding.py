"""Models in shares on two ranks are the whole models: weights, log-probabilities, gradients, samples, files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from openprime.config import OptimizerConfig
from openprime.models.hub import named_tensors
from openprime.models.lm import LM
from openprime.models.placement import Placement
from openprime.models.sharding import load_trained
from openprime.models.tiny import build_tokenizer
from openprime.prime.learner import Learner
from openprime.prime.losses import sft_loss
from openprime.run.checkpoint import load_checkpoint, save_checkpoint
from support import tiny_zoo
from support.tiny_lm import make_batch, make_model


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("recompute", [False, True])
def test_load_trained__one_process_in_shares_makes_the_steps_of_one_that_is_whole(
    recompute: bool, alone: None, tmp_path: Path
):
    """`parallel.shard`: loss, norm and weights to the last bit; and a state that either form restores."""
    name, batch = str(tmp_path), make_batch()
    make_model().save_pretrained(name)
    found = []
    for place in (Placement(shard=True), Placement()):
        model = load_trained(name, place)
        assert isinstance(model, FSDPModule) == place.shard
        config = OptimizerConfig(lr=0.01, gradient_checkpointing=recompute, tokens_per_microbatch=30)
        learner = Learner(LM(model, place), config, 5)
        steps = [learner.update(batch, lambda lp, m: sft_loss(lp, m.response_mask), 40) for _ in range(2)]
        found.append((learner, steps))
    (sharded, ours), (whole, theirs) = found
    for one, other in zip(ours, theirs, strict=True):
        assert (one.loss, one.grad_norm) == (other.loss, other.grad_norm)
        assert torch.equal(one.logprobs, other.logprobs)
    for (key, tensor), other in zip(
        named_tensors(sharded.lm.model), whole.lm.model.parameters(), strict=True
    ):
        assert torch.equal(tensor, other), key
    save_checkpoint(tmp_path / "saved", 1, {"learner": sharded.state()}, keep=1)
    state = load_checkpoint(tmp_path / "saved" / "step-000001")["learner"]
    for learner in (sharded, whole):
        with torch.no_grad():
            for parameter in learner.lm.model.parameters():
                parameter.zero_()
        learner.restore(state)
    for (key, tensor), other in zip(
        named_tensors(sharded.lm.model), whole.lm.model.parameters(), strict=True
    ):
        assert torch.equal(tensor, other), key
        assert tensor.abs().sum() > 0


@pytest.mark.slow
def test_load_trained__models_in_shares_are_the_whole_models(tmp_path: Path):
    zoo, tokenizer = tmp_path / "zoo", tmp_path / "tokenizer"
    names = tiny_zoo.PLAIN + tiny_zoo.SCALED
    for i, name in enumerate(names):
        tiny_zoo.make(name).save_pretrained(zoo / f"{i:02} {name}" / "whole")
    build_tokenizer(["one two three"], 300).save_pretrained(tokenizer)
    said = on_ranks(2, "sharded.py", zoo, tokenizer)
    assert said.count("checked ") == len(names)


@pytest.mark.slow
def test_load_trained__copies_in_shares_are_the_whole_model_and_sum_their_gradients_once(tmp_path: Path):
    make_model().save_pretrained(tmp_path)
    assert on_ranks(4, "copies.py", tmp_path).count("checked") == 2


def on_ranks(count: int, script: str, *args: Path) -> str:
    """Run a script of tests/support on ranks, which must succeed; returns what it said."""
    here = Path(__file__).parents[1]
    paths = [str(here), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(count))
    done = subprocess.run(
        [sys.executable, *torchrun, str(here / "support" / script), *map(str, args)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
