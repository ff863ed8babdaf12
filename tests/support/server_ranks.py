"""Run by torchrun: two ranks with one server, which the first rank talks to; weights are written by it alone."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from openprime.config import ServerEngineConfig
from openprime.engines.server import RefusedError, ServerEngine
from openprime.prime.rollouts import sample_and_verify
from openprime.ranks import on_first, rank
from openprime.types import Prompt, Sampling, StorageError
from openprime.verifiers.pool import Pool
from support.fake_server import END, Fake
from support.vllm_models import TOKENIZER

distributed.init_process_group("gloo")
server = Fake() if rank() == 0 else None
folder = Path(sys.argv[1])
config = ServerEngineConfig(urls=(on_first(lambda: server.url if server else ""),))
engine = ServerEngine(config, "model", TOKENIZER, frozenset({END}), len(TOKENIZER), 8, 512, folder)
gathered: list[int] = []


def tensors(version: int) -> Iterator[tuple[str, Tensor]]:
    """As sharded weights are gathered: by all ranks together."""
    gathered.clear()
    for i in range(3):
        tensor = torch.full((2,), float(version))
        distributed.broadcast(tensor, 0)
        gathered.append(i)
        yield f"w{i}", tensor


class Right(Pool):
    """A pool that judges on the first rank alone."""

    def submit(self, prompt, responses):
        assert rank() == 0
        return super().submit(prompt, responses)


pool = Right()
prompts = [Prompt(f"p{i}", (10 + i,), "", "1") for i in range(5)]
for version in (1, 2):
    engine.load(tensors(version), version)
    assert gathered == [0, 1, 2]
    seconds = {"rollout": 0.0, "verify": 0.0}
    groups = sample_and_verify(engine, pool, prompts, Sampling(2, 5), 0, None, seconds)
    assert [group.prompt for group in groups] == prompts
    assert [group.responses[0].token_ids[0] for group in groups] == [13 + i for i in range(5)]
    assert {group.policy_version for group in groups} == {version}
    assert {r.outcome for group in groups for r in group.responses} == {0.0}
    assert seconds["rollout"] > 0
    if server:
        assert server.taken[-1] == engine.source.path
        assert server.version == engine.source.tag
        assert len(server.asked) == 5 * version
assert on_first(lambda: engine.source.path) == engine.source.path

# Errors of the first rank are all ranks', with the other one where it should be.
if server:
    server.broken = lambda answer: iter([b"HTTP/1.1 400 Bad\r\nContent-Length: 4\r\n\r\nlong"])
with pytest.raises(RefusedError, match="refused: long") as refused:
    sample_and_verify(engine, pool, prompts, Sampling(2, 5), 0)
assert refused.value.status == 400
file = folder / "file"
if server:
    file.touch()
engine.folder = file
with pytest.raises(StorageError, match=r"new weights could not be written .*Not a directory"):
    engine.load(tensors(3), 3)
assert gathered == [0, 1, 2]
assert on_first(lambda: 7) == 7  # they are still together
pool.close()
if server:
    server.stop()
distributed.destroy_process_group()
