"""Sampling on vLLM servers, here or on other machines; their user starts them, we hand them weights.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs \\
        --worker-extension-cls openprime.engines.vllm_worker.Weights
"""

import contextlib
import http.client
import json
import shutil
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, distributed
from transformers import PreTrainedTokenizerBase

from openprime.config import ServerEngineConfig
from openprime.engines.common import prompt_seed, to_response, write_weights
from openprime.types import EngineError, Group, Prompt, Sampling, UserError

COMMAND = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs "
    "--worker-extension-cls openprime.engines.vllm_worker.Weights"
)
TRIES = 3
"""Failures of servers over one prompt, after which it is the prompt's fault."""
LOOK = 2.0
"""Seconds between two looks at whether a server has come back."""


class ServerFault(RuntimeError):
    """A server that cannot be reached, does not answer in time, or answers nonsense."""


@dataclass(frozen=True, slots=True)
class Source:
    """Weights of one version, where servers find them."""

    path: str
    tag: str
    """The version's name, unlike that of any other run's weights."""
    version: int


@dataclass(eq=False, slots=True)
class Server:
    """One server."""

    url: str
    timeout: float
    tag: str = ""
    """The weights it has, as far as we know; empty: not known, or it is down."""
    running: int = 0
    """Prompts that it is working on."""
    open: set[http.client.HTTPConnection] = field(default_factory=set)

    def ask(self, method: str, path: str, body: dict | None = None, timeout: float | None = None) -> Any:
        """One request and its JSON. Raises ServerFault, and EngineError where the server refuses the request."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=timeout or self.timeout)
        self.open.add(connection)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, answer = response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerFault(f"{self.url}: {type(error).__name__} {error}") from error
        finally:
            self.open.discard(connection)
            connection.close()
        if status == 404:
            raise EngineError(f"{self.url} has no {path}: start it with `{COMMAND}`")
        if 400 <= status < 500:
            raise EngineError(f"{self.url}{path} refused: {answer[:500]}")
        if status != 200:
            raise ServerFault(f"{self.url}{path}: status {status}: {answer[:500]}")
        try:
            return json.loads(answer) if answer else None
        except ValueError as error:
            raise ServerFault(f"{self.url}{path}: no JSON: {answer[:100]!r}") from error

    def take(self, source: Source) -> None:
        """Have it take weights over and forget what it cached of older ones. Nothing may be running on it."""
        self.ask("POST", "/collective_rpc", {"method": "take_weights", "args": [source.path]})
        if not self.ask("POST", "/reset_prefix_cache")["success"]:
            raise ServerFault(f"{self.url}: its prefix cache could not be reset; does somebody else use it?")
        self.ask("POST", "/update_weight_version", {"new_version": source.tag})
        self.tag = source.tag

    def complete(
        self, prompt: Prompt, sampling: Sampling, seed: int, ends: list[int], source: Source
    ) -> list[dict]:
        """Its `choices` for one prompt, all of them sampled whole and from the weights of `source`."""
        body = {
            "prompt": list(prompt.token_ids),
            "n": sampling.responses,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": seed,
            # A model's own generation configuration would fill in what is not said here.
            **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            "stop_token_ids": ends,
            "ignore_eos": True,  # those above are all
            "logprobs": 0,  # of the sampled token
            "return_token_ids": True,
        }
        choices = self.ask("POST", "/v1/completions", body)["choices"]
        cut = {choice["finish_reason"] for choice in choices} - {"stop", "length"}
        if cut:
            raise ServerFault(f"{self.url}: it ended a response by {cut}")
        # A server that was started anew in between has other weights.
        has = self.ask("GET", "/weight_info")["weight_version"]
        if has != source.tag:
            raise ServerFault(f"{self.url}: it has the weights {has!r}, not {source.tag!r}")
        return sorted(choices, key=lambda choice: choice["index"])

    def hang_up(self) -> None:
        """End what is under way; vLLM drops requests whose client is gone."""
        for connection in list(self.open):
            with contextlib.suppress(OSError, AttributeError):  # closed already, or not yet open
                connection.sock.shutdown(socket.SHUT_RDWR)


class ServerEngine:
    """vLLM servers. A prompt goes to the least busy one, and to another where that one fails."""

    def __init__(
        self,
        config: ServerEngineConfig,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        sequences: int,
        longest: int,
        folder: Path,
        bfloat16: bool = False,
    ) -> None:
        """`model`: where the first weights are. `folder`: through which later ones go, ours alone, seen by servers too.

        `sequences`: that each server is given at a time. `longest`: prompt and response together, in tokens.

        Under torchrun every rank has servers of its own, urls[rank::ranks]. Raises UserError where no server
        answers or one was started in a way that cannot work.
        """
        self.rank, self.ranks = 0, 1
        name = [uuid.uuid4().hex[:8]]
        if distributed.is_initialized():
            self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
            distributed.broadcast_object_list(name)
        if len(config.urls) < self.ranks:
            raise UserError(
                f"engine.urls: {len(config.urls)} servers for {self.ranks} ranks: every rank needs its own"
            )
        urls = config.urls[self.rank :: self.ranks]
        self.servers = [Server(url.rstrip("/"), config.timeout) for url in urls]
        self.tokenizer, self.end_tokens, self.sequences = tokenizer, end_tokens, sequences
        self.longest, self.folder, self.timeout = longest, folder.absolute(), config.timeout
        self.bfloat16 = bfloat16
        self.name = name[0]
        local = Path(model)
        self.source = Source(str(local.absolute()) if local.is_dir() else model, f"{self.name}-0", 0)
        self.in_use = self.source
        self.lock = threading.Lock()
        """One call of `generate` at a time: weights change between calls only."""
        faults = [fault for fault in (_inspect(server, longest) for server in self.servers) if fault]
        if len(faults) == len(self.servers):
            raise UserError(
                f"engine.urls: no server answers: {'; '.join(faults)}. Start them with `{COMMAND}`"
            )

    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write new policy weights, under their Hugging Face names; servers take them with the next `generate`.

        Under torchrun all ranks must call it: the first one writes, the others only go through the tensors.
        """
        tag = f"{self.name}-{version}"
        if self.rank == 0:
            self._write(named_tensors, tag)
        else:
            deque(named_tensors, maxlen=0)  # gathering one may take all ranks
        if self.ranks > 1:
            distributed.barrier()
        self.source = Source(str(self.folder / tag), tag, version)

    def _write(self, named_tensors: Iterable[tuple[str, Tensor]], tag: str) -> None:
        """A folder with the weights, whole or not at all; those of older versions are deleted."""
        target, partial = self.folder / tag, self.folder / f".partial-{tag}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_weights(named_tensors, partial, torch.bfloat16 if self.bfloat16 else None)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in self.folder.iterdir():
            if str(old) not in (str(target), self.in_use.path):
                shutil.rmtree(old)

    def sleep(self) -> None:
        """They have their own memory."""

    def generate(
        self,
        prompts: list[Prompt],
        sampling: Sampling,
        seed: int,
        check: Callable[[], None] | None = None,
        finished: Callable[[Group], None] | None = None,
        first: int = 0,
    ) -> list[Group]:
        """As `Engine.generate` says. Raises EngineError where no server is left for `timeout` seconds."""
        with self.lock:
            self.in_use = source = self.source
            slots = max(1, self.sequences // sampling.responses)  # prompts at a time on each server
            groups: list[Group | None] = [None] * len(prompts)
            waiting = deque(range(len(prompts)))
            failed: list[list[Server]] = [[] for _ in prompts]  # the servers that failed over each prompt
            running: dict[Future, tuple[int, Server]] = {}  # place of the prompt; -1: taking weights
            looked: dict[str, float] = {}  # when a server was last asked to take weights
            answered = time.monotonic()
            ends = sorted(self.end_tokens)
            pool = ThreadPoolExecutor(len(self.servers) * (slots + 1))
            try:
                while waiting or any(i >= 0 for i, _ in running.values()):
                    now = time.monotonic()
                    busy = {server.url for i, server in running.values() if i < 0}
                    for server in self.servers:
                        due = now - looked.get(server.url, -LOOK) >= LOOK
                        if server.tag != source.tag and not server.running and server.url not in busy and due:
                            looked[server.url] = now
                            running[pool.submit(server.take, source)] = (-1, server)
                    alive = [s for s in self.servers if s.tag == source.tag]
                    while waiting and any(s.running < slots for s in alive):
                        i = waiting[0]
                        others = [s for s in alive if s not in failed[i]] or alive
                        server = min(others, key=lambda s: s.running)
                        if server.running == slots:
                            break
                        waiting.popleft()
                        room = self.longest - len(prompts[i].token_ids)
                        asked = replace(sampling, max_tokens=min(sampling.max_tokens, room))
                        call = (prompts[i], asked, prompt_seed(seed, first + i), ends, source)
                        running[pool.submit(server.complete, *call)] = (i, server)
                        server.running += 1
                    if not running:  # all are down
                        time.sleep(0.05)
                    done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in done:
                        i, server = running.pop(future)
                        server.running -= i >= 0
                        try:
                            choices = future.result()
                        except ServerFault as fault:
                            if server.tag:
                                print(f"\n{fault}: going on without it until it answers again", flush=True)
                            server.tag = ""
                            if i >= 0:
                                waiting.appendleft(i)
                                failed[i].append(server)
                                if len(failed[i]) == TRIES:
                                    why = f"servers failed {TRIES} times over one prompt: {fault}"
                                    raise EngineError(why) from fault
                            continue
                        if i >= 0:
                            groups[i] = group = self._group(prompts[i], choices, source.version)
                            if finished is not None:
                                finished(group)
                    if any(server.tag == source.tag for server in self.servers):
                        answered = time.monotonic()
                    elif time.monotonic() - answered > self.timeout:
                        raise EngineError(
                            f"no vLLM server has answered for {self.timeout:.0f} seconds: start them again with "
                            f"`{COMMAND}`"
                        )
                    if check is not None:
                        check()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                # `wait` would overlook those that were cancelled.
                while not all(future.done() for future in running):
                    for server in self.servers:
                        server.hang_up()
                    time.sleep(0.05)
                for server in self.servers:
                    server.running = 0
            return [group for group in groups if group is not None]

    def _group(self, prompt: Prompt, choices: list[dict], version: int) -> Group:
        """A group from a server's answer for a prompt."""
        responses = [
            to_response(c["token_ids"], c["logprobs"]["token_logprobs"], self.tokenizer, self.end_tokens)
            for c in choices
        ]
        return Group(prompt, tuple(responses), version)


def _inspect(server: Server, longest: int) -> str:
    """Why a server is not there; empty where it is. Raises UserError where it was not started as it must be."""
    try:
        info = server.ask("GET", "/server_info?config_format=json", timeout=30)["vllm_config"]
    except ServerFault as fault:
        return str(fault)
    except EngineError as error:
        raise UserError(str(error)) from error
    mode = info["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise UserError(
            f"{server.url}: its log-probabilities are {mode}, not those of the sampling distribution: start it with "
            f"`{COMMAND}`"
        )
    if info["model_config"]["max_model_len"] < longest:
        raise UserError(
            f"{server.url}: its --max-model-len is {info['model_config']['max_model_len']}, but prompt and response "
            f"can have {longest} tokens together: start it with --max-model-len {longest}"
        )
    if not info["parallel_config"]["worker_extension_cls"]:
        raise UserError(f"{server.url} cannot take new weights: start it with `{COMMAND}`")
    return ""
