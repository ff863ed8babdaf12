"""Run by torchrun: every rank has a server of its own and samples prompts of its own."""

import sys
from pathlib import Path

import torch
from torch import distributed

from openprime.config import ServerEngineConfig
from openprime.engines.server import ServerEngine
from openprime.types import Prompt, Sampling
from support.fake_server import END, Fake
from support.vllm_models import TOKENIZER

distributed.init_process_group("gloo")
rank, ranks = distributed.get_rank(), distributed.get_world_size()
server = Fake()
urls: list[str] = [""] * ranks
distributed.all_gather_object(urls, server.url)
folder = Path(sys.argv[1])
config = ServerEngineConfig(urls=tuple(urls))
engine = ServerEngine(config, "model", TOKENIZER, frozenset({END}), len(TOKENIZER), 8, 512, folder)
for version in (1, 2):
    gathered = []

    def tensors(version=version, gathered=gathered):
        for i in range(3):  # as sharded weights are gathered: by all ranks together
            tensor = torch.full((2,), float(version))
            distributed.broadcast(tensor, 0)
            gathered.append(i)
            yield f"w{i}", tensor

    engine.load(tensors(), version)
    assert gathered == [0, 1, 2]
    prompts = [Prompt(f"{rank}-{i}", (10 * rank + i,), "", None) for i in range(3 + 4 * rank)]
    groups = engine.generate(prompts, Sampling(2, 5), 0)
    assert [group.responses[0].token_ids[0] for group in groups] == [3 + p.token_ids[0] for p in prompts]
    assert {group.policy_version for group in groups} == {version}
    assert server.taken[-1] == engine.source.path
    assert server.version == engine.source.tag
assert len(server.asked) == 2 * (3 + 4 * rank)  # its own prompts, and no others
paths: list[str] = [""] * ranks
distributed.all_gather_object(paths, engine.source.path)
assert len(set(paths)) == 1
distributed.barrier()
server.stop()
distributed.destroy_process_group()
