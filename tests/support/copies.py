"""Run by torchrun from test_sharding.py: two copies of a model in two shares each against a whole one."""

import sys
from collections import Counter

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openprime.config import OptimizerConfig
from openprime.models.hub import load_model, named_tensors
from openprime.models.lm import LM
from openprime.models.placement import Placement
from openprime.models.sharding import load_trained
from openprime.prime.learner import Learner
from openprime.prime.losses import sft_loss
from openprime.ranks import apart, rank
from support.tiny_lm import make_batch

PARTS = 3
"""What FSDP gathers and reduces at a time: two blocks, and the rest."""


class Calls(TorchDispatchMode):
    """Counts collective operations on tensors of more than one element, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and any(
            t.numel() > 1 for t in tree_leaves(args) if isinstance(t, torch.Tensor)
        ):
            self.counts[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Two updates, in one micro-batch a rank and in three: losses, norms, weights, and how often ranks talk."""
    dist.init_process_group("gloo")
    name, batch, place = sys.argv[1], make_batch(group=(0,) * 24, outcomes=(1,) * 24), Placement(replicas=2)
    for tokens, count in ((4096, 1), (20, 3)):
        config = OptimizerConfig(lr=0.01, clip_grad=0.1, tokens_per_microbatch=tokens)
        ours = Learner(LM(load_trained(name, place), place), config, 5)
        with apart():
            theirs = Learner(LM(load_model(name), Placement()), config, 5)
        for learner in (
            ours,
            theirs,
        ):  # AdamW's first step is the gradient's sign, and that of a zero is noise
            learner.optimizer.param_groups[0]["eps"] = 0.1
        micro = len(list(ours.lm.micro_batches(batch)))
        assert micro == count
        for _ in range(2):
            with Calls() as calls:
                one = ours.update(batch, lambda lp, m: sft_loss(lp, m.response_mask), 40)
            with apart():
                other = theirs.update(batch, lambda lp, m: sft_loss(lp, m.response_mask), 40)
            torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one.grad_norm, other.grad_norm, rtol=1e-5, atol=1e-5)
            assert one.grad_norm > config.clip_grad
            assert calls.counts["_reduce_scatter_base_"] == PARTS * micro
            assert calls.counts["allreduce_"] == PARTS + 1, (
                "gradients once; log-probabilities of the batch's rows"
            )
        expected = dict(theirs.lm.model.named_parameters())
        for key, tensor in named_tensors(ours.lm.model):
            torch.testing.assert_close(tensor, expected[key].detach(), rtol=0, atol=1e-5, msg=key)
        if rank() == 0:
            print("checked", flush=True)
    dist.destroy_process_group()


main()
