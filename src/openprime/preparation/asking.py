"""A model that is asked: behind an OpenAI-compatible endpoint, or sampled here. No answer is asked for twice.

Every answer is written to answers.jsonl as it comes; a command that goes on finds it there.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from openprime.config import PrepareConfig, PromptFormat
from openprime.data.chat import encode_prompts, suitable
from openprime.data.template import Messages
from openprime.engines.make import make_engine
from openprime.engines.server import MANY, RefusedError, Server, ServerFault
from openprime.models.hub import load_tokenizer
from openprime.models.placement import Placement
from openprime.prime.rollouts import derive_seed
from openprime.run.jsonl import index_jsonl
from openprime.types import Group, Prompt, RunError, Sampling, StorageError, UserError

KEY = "OPENAI_API_KEY"
"""Environment variable with the endpoint's key."""
REFUSALS = 8
"""Questions that an endpoint refuses, before it has answered one, after which it is no question's fault."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries at most."""
BYTES = 16
"""Of an answer's text, for each of its tokens."""

Found = Callable[[int, list[str]], None]
"""Takes the texts of the responses to the chat of this number; none where it was refused."""


class Model(Protocol):
    """What answers."""

    name: str

    def sample(
        self,
        chats: Mapping[int, Messages],
        sampling: Sampling,
        seed: int,
        found: Found,
        check: Callable[[], None],
    ) -> None:
        """Sample responses to each chat, and hand them over as they come, in this thread; `check` may raise."""
        ...


class Answers:
    """answers.jsonl: a key and the texts of the responses a line, found by where the line begins."""

    def __init__(self, path: Path) -> None:
        self.path, self.places = path, index_jsonl(path, "key")

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def texts(self, key: str) -> list[str]:
        """The texts of a key."""
        with self.path.open("rb") as file:
            file.seek(self.places[key])
            return json.loads(file.readline())["texts"]

    def add(self, key: str, texts: list[str]) -> None:
        """Keep them. Raises StorageError."""
        try:
            with self.path.open("ab") as file:
                self.places[key] = file.tell()
                file.write(json.dumps({"key": key, "texts": texts}, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written ({error}): make room and go on with --resume"
            ) from error


class Asker:
    """Asks a model what it has not answered yet."""

    def __init__(self, model: Model, path: Path, temperature: float, max_tokens: int, seed: int) -> None:
        self.model, self.answers = model, Answers(path)
        self.temperature, self.max_tokens, self.seed = temperature, max_tokens, seed

    def keys(self, chats: Sequence[Messages], responses: int) -> list[str]:
        """What tells each question from others."""
        how = [self.model.name, responses, self.temperature, self.max_tokens, self.seed]
        return [hashlib.sha256(json.dumps([how, chat]).encode()).hexdigest()[:32] for chat in chats]

    def ask(self, chats: Sequence[Messages], responses: int, check: Callable[[], None]) -> list[list[str]]:
        """The texts of so many responses to each chat, none where the model's server refuses it."""
        if not chats:
            return []
        keys = self.keys(chats, responses)
        missing = {i: chats[i] for i in range(len(chats)) if keys[i] not in self.answers}
        if missing:
            sampling = Sampling(responses, self.max_tokens, self.temperature)
            seed = derive_seed(self.seed, keys[0])
            self.model.sample(
                missing, sampling, seed, lambda i, texts: self.answers.add(keys[i], texts), check
            )
        return [self.answers.texts(key) for key in keys]


def make_asker(config: PrepareConfig, folder: Path, console: Console) -> Asker:
    """Whom `config` names. Raises UserError where nobody answers."""
    model = Endpoint(config, console) if config.endpoint else Local(config, console)
    own = (config.temperature, config.max_response_tokens, config.seed)
    return Asker(model, folder / "answers.jsonl", *own)


class Endpoint:
    """An OpenAI-compatible server."""

    def __init__(self, config: PrepareConfig, console: Console) -> None:
        """Raises UserError where it does not answer, or has no model of that name."""
        key = os.environ.get(KEY, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.server = Server(config.endpoint.rstrip("/"), config.timeout, headers)
        self.timeout, self.sequences, self.console = config.timeout, config.sequences, console
        self.answered = self.refused = 0
        try:
            listed = self.server.told("GET", "/models", "data")
        except (ServerFault, RefusedError) as error:
            raise UserError(f"endpoint: {error}; is it the address as far as /v1, and {KEY} set?") from error
        names = (
            [str(one.get("id")) for one in listed if isinstance(one, dict)]
            if isinstance(listed, list)
            else []
        )
        self.name = config.model or (names[0] if names else "")
        if not self.name or (names and self.name not in names):
            raise UserError(
                f"model: {config.endpoint} has no model {self.name!r}; it has {', '.join(names[:10]) or 'none'}"
            )

    def sample(
        self,
        chats: Mapping[int, Messages],
        sampling: Sampling,
        seed: int,
        found: Found,
        check: Callable[[], None],
    ) -> None:
        """As `Model.sample` says. Raises RunError where it is gone for `timeout` seconds, UserError if it refuses."""
        running: dict[Future[list[str]], int] = {}
        pool = ThreadPoolExecutor(max(1, self.sequences // sampling.responses))
        self.stopped = False
        try:
            for i, chat in chats.items():
                running[pool.submit(self._responses, chat, sampling, derive_seed(seed, i))] = i
            while running:
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    found(running.pop(future), self._texts(future))
                check()
        finally:
            self.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in running):
                self.server.hang_up()
                time.sleep(0.05)

    def _texts(self, future: "Future[list[str]]") -> list[str]:
        """A question's responses; none where it is refused, as one that is too long."""
        try:
            texts = future.result()
        except RefusedError as error:
            self.refused += 1
            if error.status in (401, 403, 404) or (self.refused >= REFUSALS and not self.answered):
                raise UserError(f"endpoint: {error}") from error
            return []
        except ServerFault as fault:
            raise RunError(f"{fault}, for {self.timeout:.0f} seconds: go on with --resume") from fault
        self.answered += 1
        return texts

    def _responses(self, chat: Messages, sampling: Sampling, seed: int) -> list[str]:
        """All responses to a chat; some servers return one, whatever is asked for, and are asked again."""
        texts: list[str] = []
        while len(texts) < sampling.responses:
            left = sampling.responses - len(texts)
            body = {
                "model": self.name,
                "messages": chat,
                "n": left,
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "seed": (seed + len(texts)) % 2**31,
            }
            most = MANY + left * sampling.max_tokens * BYTES
            texts += self._patiently(body, most)[:left]
        return texts

    def _patiently(self, body: dict[str, Any], most: int) -> list[str]:
        """The texts of one request, tried again while the server is gone. Raises ServerFault, RefusedError."""
        begun, pause = time.monotonic(), 0.5
        while True:
            try:
                return read_texts(
                    self.server.ask("POST", "/chat/completions", body, most=most), self.server.url
                )
            except ServerFault:
                if self.stopped or time.monotonic() - begun > self.timeout:
                    raise
            end = time.monotonic() + pause * (1 + random.random())
            while time.monotonic() < end and not self.stopped:
                time.sleep(0.05)
            pause = min(2 * pause, LONGEST_PAUSE)


def read_texts(answer: Any, url: str) -> list[str]:
    """The texts of a chat completion, one at least. Raises ServerFault for anything else."""
    try:
        texts = [choice["message"].get("content") or "" for choice in answer["choices"]]
        if texts and all(isinstance(text, str) for text in texts):
            return texts
    except (LookupError, TypeError, AttributeError):
        pass
    raise ServerFault(f"{url}: no chat completion: {answer!r:.200}")


class Local:
    """A model that is sampled here, by one of the engines."""

    def __init__(self, config: PrepareConfig, console: Console) -> None:
        """Raises UserError where it cannot be loaded."""
        for note in Placement.of(config).notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        self.name = config.model
        self.tokenizer = load_tokenizer(config.model)
        self.form = suitable(PromptFormat(), self.tokenizer)
        self.limit = config.data.max_prompt_tokens
        longest = self.limit + config.max_response_tokens
        self.engine = make_engine(config, self.tokenizer, config.sequences, longest)

    def sample(
        self,
        chats: Mapping[int, Messages],
        sampling: Sampling,
        seed: int,
        found: Found,
        check: Callable[[], None],
    ) -> None:
        """As `Model.sample` says; a prompt of more than `data.max_prompt_tokens` is refused."""
        names = [str(i) for i in chats]
        encoded = encode_prompts(list(chats.values()), names, self.form, self.tokenizer)
        runs: list[list[Prompt]] = []
        for (i, chat), ids in zip(chats.items(), encoded, strict=True):
            if len(ids) > self.limit:
                found(i, [])
                continue
            if not runs or int(runs[-1][-1].id) != i - 1:  # a response depends on the prompt's place
                runs.append([])
            runs[-1].append(Prompt(str(i), tuple(ids), chat, None))

        def finished(group: Group) -> None:
            found(int(group.prompt.id), [response.text for response in group.responses])

        for run in runs:
            self.engine.generate(run, sampling, seed, check, finished, int(run[0].id))
