"""Sampling on vLLM servers, here or on other machines; their user starts them, we hand them weights.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs \\
        --worker-extension-cls openprime.engines.vllm_worker.Weights
"""

import contextlib
import http.client
import io
import json
import reprlib
import shutil
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.config import ServerEngineConfig
from openprime.engines.common import prompt_seed, to_response, write_weights
from openprime.ranks import first, on_first, together
from openprime.types import EngineError, Group, Prompt, Sampling, StorageError, UserError

COMMAND = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs "
    '--worker-extension-cls openprime.engines.vllm_worker.Weights --hf-overrides \'{"head_dtype": "float32"}\''
)
TRIES = 3
"""Failures of servers over one prompt, after which it is the prompt's fault."""
LOOK = 2.0
"""Seconds between two looks at whether a server has come back."""
CONNECT = 5.0
"""Seconds to reach a server; an interrupt waits for it."""
MANY = 1 << 20
"""Bytes of an answer beside its tokens."""
EACH = 1 << 10
"""Bytes of an answer for each token."""
ROUNDING = 1e-5
"""A log-probability may be so far above 0, in nats, and is then 0."""
LOWEST = -1e9
"""No log-probability is below, in nats."""


class ServerFault(RuntimeError):
    """A server that cannot be reached, does not answer in time, or answers nonsense."""


class RefusedError(EngineError):
    """A server that refuses a request, and would again."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple:
        """Travels between ranks."""
        return RefusedError, (str(self), self.status)


class WrongAnswerError(ServerFault):
    """A completion that cannot be what was asked for."""


@dataclass(frozen=True, slots=True)
class Source:
    """Weights of one version, where servers find them."""

    path: str
    run: str
    """The run's name, unlike that of any other."""
    version: int

    @property
    def tag(self) -> str:
        """The version's name on servers."""
        return f"{self.run}-{self.version}"

    def precedes(self, tag: object) -> bool:
        """Whether a name is that of this version or of a later one of the run."""
        run, _, version = str(tag).rpartition("-")
        return run == self.run and version.isdecimal() and int(version) >= self.version


@dataclass(eq=False, slots=True)
class Server:
    """One server."""

    url: str
    timeout: float
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every request."""
    has: Source | None = None
    """Its weights, as far as we know; None: not known, or it is down."""
    running: int = 0
    """Prompts that it is working on."""
    open: set[Any] = field(default_factory=set)
    """Sockets of what is under way."""

    def ask(
        self, method: str, path: str, body: dict | None = None, timeout: float | None = None, most: int = MANY
    ) -> Any:
        """One request and its JSON, of at most `most` bytes and whole within `timeout` seconds (else its own).

        Raises ServerFault, and RefusedError where the server refuses the request.
        """
        seconds = timeout or self.timeout
        end, parts = time.monotonic() + seconds, urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=min(CONNECT, seconds))
        connection.response_class = partial(_response, end)  # pyright: ignore[reportAttributeAccessIssue]
        sock = None
        try:
            connection.connect()
            sock = connection.sock
            self.open.add(sock)
            sock.settimeout(max(end - time.monotonic(), 1e-3))  # 0 would not wait at all
            text = None if body is None else json.dumps(body)
            connection.request(
                method, parts.path + path, text, {"Content-Type": "application/json"} | self.headers
            )
            response, data = connection.getresponse(), bytearray()
            while (piece := response.read(MANY)) and len(data) <= most:
                data += piece
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerFault(_line(f"{self.url}: {type(error).__name__} {error}")) from error
        finally:
            self.open.discard(sock)
            connection.close()
        status, answer = response.status, data.decode("utf-8", "replace")
        if status == 404 and not path.startswith("/chat"):  # that may be for the model's name
            raise RefusedError(f"{self.url} has no {path}: start it with `{COMMAND}`", status)
        if 400 <= status < 500 and status not in (408, 425, 429):  # those: not now
            raise RefusedError(_line(f"{self.url}{path} refused: {answer}"), status)
        if status != 200:
            raise ServerFault(_line(f"{self.url}{path}: status {status}: {answer}"))
        if len(data) > most:
            raise ServerFault(f"{self.url}{path}: an answer of more than {most:,} bytes")
        try:
            return json.loads(answer) if answer else None
        except (ValueError, RecursionError) as error:
            raise ServerFault(f"{self.url}{path}: no JSON: {_shown(answer)}") from error

    def told(self, method: str, path: str, key: str, body: dict | None = None) -> Any:
        """The value of a key in its answer. Raises as `ask` does."""
        answer = self.ask(method, path, body)
        if not isinstance(answer, dict) or key not in answer:
            raise ServerFault(f"{self.url}{path}: no {key} in {_shown(answer)}")
        return answer[key]

    def take(self, source: Source) -> None:
        """Have it take weights over and forget what it cached of older ones.

        Responses that it is working on stand still meanwhile and go on from the new weights: what they read of their
        beginnings is computed anew.
        """
        self.ask("POST", "/pause?mode=keep")
        self.ask("POST", "/collective_rpc", {"method": "take_weights", "args": [source.path]})
        if self.told("POST", "/reset_prefix_cache?reset_running_requests=true", "success") is not True:
            raise ServerFault(f"{self.url}: its prefix cache could not be reset; does somebody else use it?")
        self.ask("POST", "/update_weight_version", {"new_version": source.tag})
        self.ask("POST", "/resume")
        self.has = source

    def complete(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seed: int,
        ends: frozenset[int],
        vocabulary: int,
        source: Source,
    ) -> list["Choice"]:
        """Its responses to one prompt, all of them sampled whole, from the weights of `source` or later ones."""
        body = {
            "prompt": list(prompt.token_ids),
            "n": sampling.responses,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": seed,
            # A model's own generation configuration would fill in what is not said here.
            **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            "stop_token_ids": sorted(ends),
            "ignore_eos": True,  # those above are all
            "logprobs": 0,  # of the sampled token
            "return_token_ids": True,
        }
        size = len(prompt.token_ids) + sampling.responses * (len(prompt.token_ids) + sampling.max_tokens)
        answer = self.ask("POST", "/v1/completions", body, most=MANY + EACH * size)
        try:
            choices = read_choices(answer, prompt, sampling, ends, vocabulary)
        except ValueError as error:
            raise WrongAnswerError(f"{self.url}: a wrong answer to {prompt.id}: {error}") from error
        # A server that was started anew in between has other weights.
        has = self.told("GET", "/weight_info", "weight_version")
        if not source.precedes(has):
            raise ServerFault(f"{self.url}: it has the weights {_shown(has)}, not {source.tag!r}")
        return choices

    def hang_up(self) -> None:
        """End what is under way; vLLM drops requests whose client is gone."""
        for sock in list(self.open):
            with contextlib.suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_RDWR)


class _Until(io.RawIOBase):
    """What a socket receives up to a moment: a byte a second does not put it off."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self.sock, self.end, self.raw = sock, end, sock.makefile("rb", 0)

    def makefile(self, mode: str) -> io.BufferedReader:
        """As a socket has it."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Raises TimeoutError when the moment has come."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.sock.settimeout(left)
        return self.raw.readinto(buffer)

    def close(self) -> None:
        """The socket too, where nobody else has it."""
        self.raw.close()
        super().close()


def _response(end: float, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
    """A response that has to be whole at a moment."""
    until: Any = _Until(sock, end)
    return http.client.HTTPResponse(until, **options)


Choice = tuple[list[int], list[float]]
"""Tokens of a response and their log-probabilities."""


def read_choices(
    answer: Any, prompt: Prompt, sampling: Sampling, ends: frozenset[int], vocabulary: int
) -> list[Choice]:
    """The responses in a completion, in order. Raises ValueError for what vLLM cannot have sampled as it was asked."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError(f"no choices: {_shown(answer)}")
    numbers = [choice.get("index") for choice in choices]
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(
        range(sampling.responses)
    ):
        raise ValueError(f"choices with the indices {_shown(numbers)} for {sampling.responses} responses")
    if any(choice.get("prompt_token_ids") not in (None, list(prompt.token_ids)) for choice in choices):
        raise ValueError("it is the answer to another prompt")
    in_order = sorted(choices, key=lambda choice: choice["index"])
    return [_read_choice(choice, sampling.max_tokens, ends, vocabulary) for choice in in_order]


def _read_choice(choice: dict, longest: int, ends: frozenset[int], vocabulary: int) -> Choice:
    tokens, reason, found = choice.get("token_ids"), choice.get("finish_reason"), choice.get("logprobs")
    logprobs = found.get("token_logprobs") if isinstance(found, dict) else None
    if reason not in ("stop", "length"):
        raise ValueError(f"it ended a response by {_shown(reason)}")
    if not isinstance(tokens, list) or not isinstance(logprobs, list):
        raise ValueError(f"token_ids {_shown(tokens)}, token_logprobs {_shown(logprobs)}")
    if not 0 < len(tokens) <= longest or len(tokens) != len(logprobs):
        raise ValueError(
            f"{len(tokens)} tokens, {len(logprobs)} log-probabilities; at most {longest} were asked for"
        )
    for token, logprob in zip(tokens, logprobs, strict=True):
        if type(token) is not int or not 0 <= token < vocabulary:
            raise ValueError(f"the token {_shown(token)}; the vocabulary has {vocabulary}")
        if type(logprob) not in (int, float) or not LOWEST < logprob <= ROUNDING:
            raise ValueError(f"the log-probability {_shown(logprob)}")
    if not ends.isdisjoint(tokens[:-1]):
        raise ValueError("a response goes on behind an end token")
    if not (tokens[-1] in ends if reason == "stop" else len(tokens) == longest):
        raise ValueError(
            f"{len(tokens)} tokens ended by {reason!r}, the last one {tokens[-1]}; asked for {longest}"
        )
    return tokens, [min(0.0, float(logprob)) for logprob in logprobs]


def _shown(value: object) -> str:
    return _line(reprlib.repr(value))[:200]


def _line(text: str) -> str:
    """A text of somebody else's as the end of a line."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:500])


class ServerEngine:
    """vLLM servers. A prompt goes to the least busy one, and to another where that one fails.

    Of several ranks the first one alone talks to them.
    """

    remote = True

    def __init__(
        self,
        config: ServerEngineConfig,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        vocabulary: int,
        sequences: int,
        longest: int,
        folder: Path,
        bfloat16: bool = False,
    ) -> None:
        """`model`: where the first weights are. `folder`: through which later ones go, ours alone, seen by servers too.

        `vocabulary`: tokens that the model knows. `sequences`: that each server is given at a time. `longest`:
        prompt and response together, in tokens.

        Raises UserError, on every rank, where no server answers or one was started in a way that cannot work.
        """
        self.servers = [Server(url.rstrip("/"), config.timeout) for url in config.urls]
        self.tokenizer, self.end_tokens, self.sequences = tokenizer, end_tokens, sequences
        self.longest, self.folder, self.timeout = longest, folder.absolute(), config.timeout
        self.bfloat16, self.vocabulary, self.in_flight = bfloat16, vocabulary, config.in_flight
        self.rejected = 0
        """Answers that could not be what was asked for, and were sampled again: elsewhere, if there is an elsewhere."""
        self.name = on_first(lambda: uuid.uuid4().hex[:8])
        local = Path(model)
        self.source = Source(str(local.absolute()) if local.is_dir() else model, self.name, 0)
        self.in_use = self.source
        self.lock = threading.Lock()
        """One call of `generate` at a time: weights change between calls only, unless `in_flight`."""
        self.choosing = threading.Lock()
        """`source` and `in_use` do not change while it is held: a folder of theirs is not deleted."""
        on_first(self._inspect)

    def _inspect(self) -> None:
        faults = [fault for fault in (_inspect(server, self.longest) for server in self.servers) if fault]
        if len(faults) == len(self.servers):
            raise UserError(
                f"engine.urls: no server answers: {'; '.join(faults)}. Start them with `{COMMAND}`"
            )

    def load(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write new policy weights, under their Hugging Face names; servers take them with the next `generate`, or,
        in flight, during the one that is under way.

        Under torchrun all ranks must call it: the first one writes, the others only go through the tensors. Raises
        StorageError, on every rank, where they cannot be written.
        """
        tensors = iter(named_tensors)
        source = Source(str(self.folder / f"{self.name}-{version}"), self.name, version)

        def write() -> None:
            try:
                if first():
                    self._write(tensors, source.tag)
            finally:
                deque(tensors, maxlen=0)  # gathering one may take all ranks

        together(write)
        with self.choosing:
            self.source = source
            kept = {self.source.path, self.in_use.path}
        for old in self.folder.iterdir() if first() else ():
            if str(old) not in kept:
                shutil.rmtree(old)

    def _write(self, named_tensors: Iterable[tuple[str, Tensor]], tag: str) -> None:
        """A folder with the weights, whole or not at all."""
        target, partial = self.folder / tag, self.folder / f".partial-{tag}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_weights(named_tensors, partial, torch.bfloat16 if self.bfloat16 else None)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(
                f"new weights could not be written to {target} ({error}): make room, or set engine.shared_folder, and "
                "go on with --resume"
            ) from error

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
            source = self._newest()
            slots = max(1, self.sequences // sampling.responses)  # prompts at a time on each server
            groups: list[Group | None] = [None] * len(prompts)
            waiting = deque(range(len(prompts)))
            failed: list[list[Server]] = [[] for _ in prompts]  # the servers that failed over each prompt
            running: dict[Future, tuple[int, Server, Source]] = {}  # place of the prompt; -1: taking weights
            looked: dict[str, float] = {}  # when a server was last asked to take weights
            answered = time.monotonic()
            pool = ThreadPoolExecutor(len(self.servers) * (slots + 1))
            try:
                while waiting or any(i >= 0 for i, _, _ in running.values()):
                    now = time.monotonic()
                    taking = [server for i, server, _ in running.values() if i < 0]
                    if self.in_flight and not taking:
                        source = self._newest()
                    for server in self.servers:
                        due = now - looked.get(server.url, -LOOK) >= LOOK
                        free = (self.in_flight or not server.running) and server not in taking
                        if server.has != source and free and due:
                            looked[server.url] = now
                            running[pool.submit(server.take, source)] = (-1, server, source)
                            taking.append(server)
                    # In flight a server works with older weights until it is its turn to take new ones.
                    alive = [s for s in self.servers if s.has == source or (self.in_flight and s.has)]
                    alive = [s for s in alive if s not in taking]
                    while waiting and any(s.running < slots for s in alive):
                        i = waiting[0]
                        others = [s for s in alive if s not in failed[i]] or alive
                        server = min(others, key=lambda s: s.running)
                        if server.running == slots:
                            break
                        waiting.popleft()
                        room = self.longest - len(prompts[i].token_ids)
                        asked = replace(sampling, max_tokens=min(sampling.max_tokens, room))
                        own, oldest = prompt_seed(seed, first + i), server.has or source
                        call = (prompts[i], asked, own, self.end_tokens, self.vocabulary, oldest)
                        running[pool.submit(server.complete, *call)] = (i, server, oldest)
                        server.running += 1
                    if not running:  # all are down
                        time.sleep(0.05)
                    done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in done:
                        i, server, oldest = running.pop(future)
                        server.running -= i >= 0
                        try:
                            choices = future.result()
                        except ServerFault as fault:
                            if isinstance(fault, WrongAnswerError):
                                self.rejected += 1
                                print(f"\n{fault} (rejected answer {self.rejected})", flush=True)
                            elif server.has:
                                print(f"\n{fault}: going on without it until it answers again", flush=True)
                            server.has = None
                            if i >= 0:
                                waiting.appendleft(i)
                                failed[i].append(server)
                                if len(failed[i]) == TRIES:
                                    why = f"servers failed {TRIES} times over one prompt: {fault}"
                                    raise EngineError(why) from fault
                            continue
                        if i >= 0:
                            groups[i] = group = self._group(prompts[i], choices, oldest.version)
                            if finished is not None:
                                finished(group)
                    if alive:
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

    def _newest(self) -> Source:
        """The newest weights, from now on in use."""
        with self.choosing:
            self.in_use = self.source
            return self.in_use

    def _group(self, prompt: Prompt, choices: list[Choice], version: int) -> Group:
        """A group from a server's responses to a prompt."""
        own = (self.tokenizer, self.end_tokens)
        return Group(prompt, tuple(to_response(*choice, *own) for choice in choices), version)


def _inspect(server: Server, longest: int) -> str:
    """Why a server is not there; empty where it is. Raises UserError where it was not started as it must be."""
    try:
        info = server.ask("GET", "/server_info?config_format=json", timeout=30)
        config = info["vllm_config"]
        model, extension = config["model_config"], config["parallel_config"]["worker_extension_cls"]
        mode, positions = model["logprobs_mode"], model["max_model_len"]
        if not isinstance(positions, int):
            raise TypeError(f"max_model_len {positions!r}")
    except ServerFault as fault:
        return str(fault)
    except (KeyError, TypeError, IndexError) as error:
        return f"{server.url}/server_info: not what vLLM says of itself: {type(error).__name__} {_line(str(error))}"
    except EngineError as error:
        raise UserError(str(error)) from error
    if mode != "processed_logprobs":
        raise UserError(
            f"{server.url}: its log-probabilities are {_shown(mode)}, not those of the sampling distribution: "
            f"start it with `{COMMAND}`"
        )
    if positions < longest:
        raise UserError(
            f"{server.url}: its --max-model-len is {positions}, but prompt and response can have {longest} tokens "
            f"together: start it with --max-model-len {longest}"
        )
    if not extension:
        raise UserError(f"{server.url} cannot take new weights: start it with `{COMMAND}`")
    return ""
