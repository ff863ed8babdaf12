"""A server as `fake_server.Fake`, but for its responses: our own engine samples them from the weights it was given."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from openprime.engines import transformers
from openprime.engines.common import prompt_seed
from openprime.engines.transformers import TransformersEngine
from openprime.models.hub import end_tokens, load_model, load_tokenizer
from openprime.models.placement import Placement
from openprime.types import Prompt, Sampling
from support.fake_server import Fake


@dataclass
class SamplingServer(Fake):
    """Its samples depend on its weights and the request alone, whichever server has them."""

    model: str = ""
    """Folder of the model that it is started with."""
    dies_after: int = 10**9
    """It is gone after so many completions."""

    def __post_init__(self) -> None:
        model, tokenizer = load_model(self.model), load_tokenizer(self.model)
        self.engine = TransformersEngine(model, Placement(), tokenizer, end_tokens(model, tokenizer))
        self.lock = threading.Lock()
        super().__post_init__()

    def reply(self, path: str, body: dict | None) -> tuple[int, object]:
        if path == "/collective_rpc":
            assert body is not None
            with self.lock:
                for file in Path(body["args"][0]).glob("*.safetensors"):
                    self.engine.load(load_file(file).items(), 0)
        status, answer = super().reply(path, body)
        if path != "/v1/completions" or status != 200:
            return status, answer
        assert body is not None
        prompt = Prompt("", tuple(body["prompt"]), "", None)
        asked = Sampling(body["n"], body["max_tokens"], body["temperature"])
        with self.lock:
            (group,) = self.engine.generate([prompt], asked, body["seed"])
            self.dies_after -= 1
            if self.dies_after == 0:
                self.stop()
        return 200, {
            "choices": [
                {
                    "index": i,
                    "finish_reason": "length" if response.truncated else "stop",
                    "token_ids": response.token_ids,
                    "logprobs": {"token_logprobs": response.logprobs},
                }
                for i, response in enumerate(group.responses)
            ]
        }


@contextmanager
def seeds_of_requests() -> Iterator[None]:
    """Within, the trainer's own engine samples what such servers do: from the seeds of requests for its prompts."""
    real = transformers._uniforms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers, "_uniforms", lambda seed, at, how: real(prompt_seed(seed, at), 0, how))
        yield
