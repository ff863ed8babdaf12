"""What answers for `openprime ask`: models that are listened to while they answer, and the PRMs beside them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from openprime.config import AskConfig, PromptFormat
from openprime.data.chat import encode_prompts, suitable
from openprime.data.steps import token_texts
from openprime.models.checks import check_rows, positions
from openprime.models.hub import end_tokens, load_model, load_tokenizer, read_format, same_vocabulary
from openprime.models.logprobs import float32_head
from openprime.models.placement import Placement
from openprime.prime.prm import ImplicitPRM, Score, find_parts

Say = Callable[[str], object]
"""Takes a text: what is waited for, or the next part of an answer."""
LONGEST_CHARACTER = 4
"""Bytes, and so at the most tokens, of a character."""


class Stream(BaseStreamer):
    """Keeps the tokens of an answer, and says its text as it comes: whole characters, whatever stands between them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Say) -> None:
        self.tokenizer, self.say = tokenizer, say
        self.token_ids: list[int] = []
        self.begun = time.perf_counter()
        self._prompt = True
        self._start = self._said = 0  # the tokens of what was said last, and those that have been said

    def put(self, value: Tensor) -> None:
        """Take the prompt, then token by token."""
        if self._prompt:
            self._prompt = False
            return
        self.token_ids += value.tolist()
        self._hear(len(self.token_ids) - self._said > LONGEST_CHARACTER)

    def end(self) -> None:
        """Say what is left."""
        self._hear(True)

    def _hear(self, all_of_it: bool) -> None:
        before = self._decode(self._start, self._said)
        new = self._decode(self._start, len(self.token_ids))[len(before) :]
        if new and (all_of_it or not new.endswith("\ufffd")):  # not inside a character
            self._start, self._said = self._said, len(self.token_ids)
            self.say(new)

    def _decode(self, start: int, end: int) -> str:
        return str(self.tokenizer.decode(self.token_ids[start:end], skip_special_tokens=True))

    @property
    def text(self) -> str:
        """All of the answer."""
        return self._decode(0, len(self.token_ids))

    @property
    def whole(self) -> bool:
        """Whether all that has come has been said: the last token does not end inside a character."""
        return self._said == len(self.token_ids)

    @property
    def rate(self) -> str:
        """How many tokens there are, and how fast they have come."""
        count = len(self.token_ids)
        return f"{count} tokens, {count / (time.perf_counter() - self.begun):,.0f} tokens/s"


class Pane(NamedTuple):
    """What is shown beside each other: a model's answer with a PRM's rewards, '' for none."""

    model: str
    prm: str
    reference: str


def panes_of(config: AskConfig) -> list[Pane]:
    """One, or two where there is something beside it."""
    first, beside = Pane(config.model, config.prm, config.reference), config.beside
    if not (beside.model or beside.prm):
        return [first]
    scoring = (beside.prm, beside.reference) if beside.prm else first[1:]
    return [first, Pane(beside.model or config.model, *scoring)]


class Answerer:
    """A model as it is asked."""

    def __init__(self, name: str, config: AskConfig) -> None:
        """Reads the tokenizer, and not yet the model."""
        self.name, self.config, self.tokenizer = name, config, load_tokenizer(name)
        template = config.template
        known = read_format(name) if template == "auto" else PromptFormat(template=template)
        self.form = suitable(known or PromptFormat(template="eurus"), self.tokenizer)

    def load(self, place: Placement) -> None:
        """Load the model."""
        self.place, self.model = place, load_model(self.name, place.device).eval()
        self.ends = end_tokens(self.model, self.tokenizer)
        drawn = {"do_sample": True, "temperature": self.config.temperature, "top_k": 0, "top_p": 1.0}
        self.model.generation_config = GenerationConfig(  # whatever the model's own is
            eos_token_id=sorted(self.ends),
            pad_token_id=0,
            **(drawn if self.config.temperature else {"do_sample": False}),
        )

    def encode(self, question: str) -> list[int]:
        """The prompt of a question. Raises UserError for one that does not fit."""
        (ids,) = encode_prompts([question], ["question"], self.form, self.tokenizer, [self.config.kind])
        check_rows(self.model, self.tokenizer, [(ids,)], "question", "ask a shorter one", responses=1)
        return ids

    def answer(self, prompt_ids: list[int], seed: int, stream: Stream) -> None:
        """Put an answer into `stream`, which may end it by an error of its own."""
        room = self._room(prompt_ids)
        cast(Any, self.model.generation_config).max_new_tokens = min(self.config.max_response_tokens, room)
        torch.manual_seed(seed)
        asked = torch.tensor([prompt_ids], device=self.model.device)
        with self.place.autocast(), float32_head(self.model):
            cast(Any, self.model).generate(asked, attention_mask=torch.ones_like(asked), streamer=stream)

    def ending(self, prompt_ids: list[int], token_ids: Sequence[int]) -> str:
        """How an answer ended that did not end of itself; begins with a comma."""
        if token_ids[-1] in self.ends:
            return ""
        if len(token_ids) == self._room(prompt_ids):
            return ", cut at the model's positions"
        return (
            ", cut at --max-response-tokens"
            if len(token_ids) == self.config.max_response_tokens
            else ", stopped"
        )

    def _room(self, prompt_ids: list[int]) -> int:
        return (positions(self.model)[0] or 2**31) - len(prompt_ids)


@dataclass
class Answerers:
    """Every model and every PRM of the panes, once."""

    config: AskConfig
    panes: list[Pane] = field(init=False)
    models: dict[str, Answerer] = field(init=False)
    prms: dict[tuple[str, str], ImplicitPRM] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError where a PRM has another vocabulary than the model that it is to judge."""
        self.panes = panes_of(self.config)
        self.models = {pane.model: Answerer(pane.model, self.config) for pane in self.panes}
        for pane in self.panes:
            if pane.prm:
                _, theirs = find_parts(pane.prm, pane.reference)
                same_vocabulary(theirs, pane.prm, self.models[pane.model].tokenizer, pane.model)

    def load(self, place: Placement, say: Say) -> None:
        """Load them all; says which one is being loaded."""
        for name, answerer in self.models.items():
            say(f"loading {name}")
            answerer.load(place)
        for _, prm, reference in self.panes:
            if prm and (prm, reference) not in self.prms:
                say(f"loading the PRM {prm}")
                loaded = ImplicitPRM.from_pretrained(prm, reference, place.device, bfloat16=place.bfloat16)
                self.prms[prm, reference] = loaded

    def by_model(self) -> Iterator[tuple[Answerer, list[int]]]:
        """Each model, and the places of its panes."""
        for name, answerer in self.models.items():
            yield answerer, [i for i, pane in enumerate(self.panes) if pane.model == name]

    def score(self, place: int, prompt_ids: list[int], token_ids: list[int]) -> Score | None:
        """The rewards of an answer in a pane, of the very tokens (trap 13); None where it has no PRM."""
        model, *scoring = self.panes[place]
        if not scoring[0]:
            return None
        texts = token_texts(self.models[model].tokenizer, token_ids)
        (score,) = self.prms[scoring[0], scoring[1]].score_tokens([prompt_ids], [token_ids], [texts])
        return score


class Piece(NamedTuple):
    """A stretch of the answer in one colour: a token, or the tokens that make one character; a special token's name."""

    text: str
    reward: float
    step: int


def pieces_of(score: Score, token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The pieces of an answer; joined, special tokens apart, they are the answer."""
    pieces, pending = list[Piece](), 0.0
    for token, text, reward, step in zip(
        token_ids, score.tokens, score.token_rewards, score.step_of_token, strict=True
    ):
        pending += reward
        if text or token in tokenizer.all_special_ids:
            pieces.append(Piece(text or str(tokenizer.decode([token])), pending, step))
            pending = 0.0
    return pieces
