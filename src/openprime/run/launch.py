"""Several ranks, as torchrun starts them: how they meet, what must be alike, and what ends a run that lost one."""

import contextlib
import hashlib
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from openprime import __version__
from openprime.config import FolderConfig, RunConfig, VerifyConfig
from openprime.models.placement import pick_device
from openprime.ranks import (
    LostRankError,
    first,
    gather,
    is_lost_connection,
    on_first,
    rank,
    world,
)
from openprime.run.folder import flatten
from openprime.types import Prompt, UserError

LONGEST_WAIT = timedelta(hours=2)
"""For another rank that is alive, such as one with longer responses to sample."""
BEAT, SILENCE = 3.0, 40.0
"""Seconds between two signs of life, and without any until a rank counts as lost."""
VISIBLE = 20.0
"""Seconds for a new file to be seen on other machines."""


@contextmanager
def joined(config: RunConfig) -> Iterator[None]:
    """Join the ranks that torchrun started, and leave them; a process on its own goes on as it is.

    Raises UserError where the ranks differ in their settings or software, or do not share `config.out`.
    A rank that dies or hangs ends all the others within a minute. Ranks that torchrun has started again
    resume.
    """
    alone, parallel = int(os.environ.get("WORLD_SIZE", 1)) == 1, config.parallel
    if alone and parallel.save_in_background:
        raise UserError(
            "parallel.save_in_background has an effect only with several ranks: start with torchrun"
        )
    if alone and not parallel.shard:
        if parallel.cpu_offload:
            raise UserError(
                "parallel.cpu_offload has an effect only with several ranks: start with torchrun, or set "
                "parallel.shard=true"
            )
        yield
        return
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    elif parallel.cpu_offload:
        raise UserError(
            "parallel.cpu_offload keeps a GPU's memory free, but the device is a CPU: leave it out"
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if alone:
        store: Any = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
        return
    meeting, number, size = next(rendezvous("env://"))
    store: Any = PrefixStore(meet(meeting, number, size), meeting)
    store.set_timeout(LONGEST_WAIT)
    dist.init_process_group(
        backend,
        store=PrefixStore("work", store),
        rank=number,
        world_size=size,
        timeout=LONGEST_WAIT,
    )
    # With a connection of its own: the other one may be waiting.
    watch = Watch(PrefixStore("watch", store.clone()), number, size, way_back(config))
    watch.start()
    try:
        if max(gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))):
            config.resume = True
        refuse_differences(config, device.type)
        yield
        gather("done")
    except RuntimeError as error:
        if isinstance(error, LostRankError) or is_lost_connection(error):
            raise LostRankError(
                f"rank {rank()} lost another rank: the run ends. {way_back(config)}"
            ) from error
        raise
    finally:
        watch.stop()
    dist.destroy_process_group()


def meet(store: Any, number: int, size: int) -> str:
    """A name that the ranks of this start share and no earlier start has used.

    torchrun's store outlives the ranks that it starts again: what dead ones left there must not be taken
    for an answer. So the first rank repeats its own until the others have heard it.
    """
    mine = secrets.token_hex(8)
    if number:
        store.set(f"hello/{number}", mine)
        name = store.get(f"name/{mine}").decode()  # waits for it
        store.set(f"heard/{mine}/{name}", "")
        return name
    for other in range(1, size):
        theirs = ""
        while not store.check([f"heard/{theirs}/{mine}"]):
            theirs = store.get(f"hello/{other}").decode()
            store.set(f"name/{theirs}", mine)
            time.sleep(0.02)
    return mine


def way_back(config: FolderConfig) -> str:
    """What to do after a loss, in words."""
    return f"The last checkpoint in {Path(config.out) / 'checkpoints'} is whole: go on with --resume."


class Watch(threading.Thread):
    """Says every few seconds that this rank lives; ends the process when another rank is silent.

    Communication alone does not notice: NCCL waits for a dead rank, and all wait for one that hangs.
    """

    def __init__(self, store: PrefixStore, number: int, size: int, advice: str) -> None:
        super().__init__(daemon=True, name="watch")
        self.store, self.number, self.size, self.advice = store, number, size, advice
        self._stopped = threading.Event()
        self.store.set(str(number), "0")

    def run(self) -> None:
        """Until the run ends."""
        others = [str(other) for other in range(self.size)]
        said: dict[str, bytes] = {}
        heard = dict.fromkeys(others, time.monotonic())
        beat = 0
        while not self._stopped.wait(BEAT):
            beat += 1
            try:
                self.store.set(str(self.number), str(beat))
                now = dict(zip(others, self.store.multi_get(others), strict=True))
            except dist.DistError:
                self._end("the meeting point of the ranks is gone")
                return
            for other, value in now.items():
                if value != said.get(other):
                    heard[other] = time.monotonic()
            said = now
            silent = [other for other in others if time.monotonic() - heard[other] > SILENCE]
            if silent:
                self._end(f"nothing was heard of rank {', '.join(silent)} for {SILENCE:.0f} s")

    def stop(self) -> None:
        """This rank leaves in order, or with an error of its own that it reports."""
        self._stopped.set()
        self.join()

    def _end(self, why: str) -> None:
        if not self._stopped.wait(BEAT):
            print(
                f"openprime: rank {self.number}: {why}: the run ends. {self.advice}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


def refuse_differences(config: RunConfig, device: str) -> None:
    """Raises UserError on every rank unless all have the same settings and software, and see the same folder."""
    settings = dict(flatten(json.loads(config.model_dump_json())))
    settings |= {"openprime": __version__, "torch": torch.__version__, "python": platform.python_version()}
    same_everywhere(settings | {"device": device}, "start every rank with the same command and environment")
    token = on_first(lambda: _leave_token(Path(config.out)))
    seen = gather(_sees(Path(config.out) / token))
    if first():
        (Path(config.out) / token).unlink()
    if not all(seen):
        blind = ", ".join(str(number) for number, sees in enumerate(seen) if not sees)
        raise UserError(
            f"rank {blind} does not see what rank 0 wrote into {config.out}: `out` must be on a file system that all "
            "machines share"
        )


def same_everywhere(values: dict[str, Any], advice: str) -> None:
    """Raises UserError, naming what differs, unless the values are the same on every rank."""
    found = gather(values)
    for number, theirs in enumerate(found):
        differing = [
            f"{key}: {value!r} -> {theirs.get(key)!r}"
            for key, value in found[0].items()
            if theirs.get(key) != value
        ]
        if differing:
            raise UserError(f"rank {number} differs from rank 0: {'; '.join(differing)}: {advice}")


def same_prompts(prompts: Sequence[Prompt]) -> None:
    """Raises UserError unless every rank has read the same prompts."""
    if world() > 1:
        digest = hashlib.sha256()
        for prompt in prompts:
            digest.update(repr((prompt.id, prompt.token_ids, prompt.answer)).encode())
        found = {"prompts": f"{len(prompts)}, digest {digest.hexdigest()[:12]}"}
        same_everywhere(found, "the data must be the same on every machine")


def workers(config: VerifyConfig, all_on_first: bool = False) -> int:
    """Verifier processes of this rank, which shares its machine with others; 0 is as the configuration says.

    `all_on_first`: in training the first rank verifies for all.
    """
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if beside == 1 or (all_on_first and first()):
        return 0
    return max(1, (config.workers or len(os.sched_getaffinity(0))) // beside)


def _leave_token(folder: Path) -> str:
    """Make an empty file with a name that no other has."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f".shared-{secrets.token_hex(8)}"
    (folder / name).touch()
    return name


def _sees(path: Path) -> bool:
    """Whether a file that another machine made is there; network file systems take their time."""
    end = time.monotonic() + VISIBLE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            list(path.parent.iterdir())  # asks again what a network file system remembers
    return True
