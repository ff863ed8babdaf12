"""`openprime ask`: an answer as it is generated, and with a PRM the reward of every token of it."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from openprime.config import AskConfig, PromptFormat
from openprime.data.chat import encode_prompts, suitable
from openprime.data.steps import token_texts
from openprime.evaluation import page
from openprime.models.checks import check_rows, positions
from openprime.models.hub import end_tokens, load_model, load_tokenizer, read_format, same_vocabulary
from openprime.models.logprobs import float32_head
from openprime.models.placement import Placement
from openprime.prime.prm import ImplicitPRM, Score, find_parts
from openprime.types import UserError

INK, FAINT = "#0f172a", "#64748b"
SIXTEEN = (
    ("black on bright_white", "black on bright_cyan", "bright_white on blue"),
    ("black on bright_white", "black on bright_magenta", "bright_white on red"),
)
"""Positive and negative rewards, weak to strong, on a terminal of 16 colours."""
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
"""Control characters as pictures: an answer must not steer the terminal."""


def ask(config: AskConfig) -> None:
    """Answer `config.question`, or one question after the other, and show the rewards of the answers."""
    config.check()
    place, console = Placement.of(config), Console(highlight=False, markup=False)
    out = Path(config.page) if config.page else None
    if out and out.is_dir():
        raise UserError(f"page: {out} is a folder: name a file, such as {out / 'answer.html'}")
    tokenizer = load_tokenizer(config.model)
    if config.prm:
        _, theirs = find_parts(config.prm, config.reference)
        same_vocabulary(theirs, config.prm, tokenizer, config.model)
    known = read_format(config.model) if config.template == "auto" else PromptFormat(template=config.template)
    form = suitable(known or PromptFormat(template="eurus"), tokenizer)
    model = load_model(config.model, place.device).eval()
    prm = None
    if config.prm:
        device, bfloat16 = place.device, place.bfloat16
        prm = ImplicitPRM.from_pretrained(config.prm, config.reference, device, bfloat16=bfloat16)
    ends = end_tokens(model, tokenizer)
    drawn = {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": 1.0}
    model.generation_config = settings = GenerationConfig(  # whatever the model's own is
        eos_token_id=sorted(ends),
        pad_token_id=0,
        **(drawn if config.temperature else {"do_sample": False}),
    )
    parts = [f"<p>The rewards are those of <code>{escape(config.prm)}</code>.</p>" if prm else ""]
    for number, question in enumerate(questions(config.question)):
        (prompt_ids,) = encode_prompts([question], ["question"], form, tokenizer, [config.kind])
        check_rows(model, tokenizer, [(prompt_ids,)], "question", "ask a shorter one", responses=1)
        room = (positions(model)[0] or 2**31) - len(prompt_ids)
        settings.max_new_tokens = min(config.max_response_tokens, room)
        torch.manual_seed(config.seed + number)
        begun, stream = time.perf_counter(), Stream(tokenizer, skip_prompt=True, skip_special_tokens=True)
        asked = torch.tensor([prompt_ids], device=model.device)
        try:
            with place.autocast(), float32_head(model):
                cast(Any, model).generate(asked, attention_mask=torch.ones_like(asked), streamer=stream)
        except KeyboardInterrupt:
            if config.question:
                raise
            stream.end()
        seconds = time.perf_counter() - begun
        ids = stream.token_ids
        if not ids:
            continue
        texts = token_texts(tokenizer, ids)
        score, pieces = None, []
        if prm:
            (score,) = prm.score_tokens([prompt_ids], [ids], [texts])  # the very tokens (trap 13)
            pieces = pieces_of(score, ids, tokenizer)
            show(score, pieces, console)
        ended = "" if ids[-1] in ends else ", stopped"
        if ended and len(ids) == settings.max_new_tokens:
            ended = ", cut at " + ("the model's positions" if len(ids) == room else "--max-response-tokens")
        console.print(f"{len(ids)} tokens, {len(ids) / seconds:,.0f} tokens/s{ended}", style="dim")
        if out:
            parts += on_page(question, "".join(texts), score, pieces)
            page.write(out, f"Asked: {config.model}", parts)
    if out and len(parts) > 1:
        console.print(f"written: {out}", soft_wrap=True)


def questions(first: str) -> Iterator[str]:
    """The question of the command line; without one those that are typed, until an empty line or the end."""
    if first:
        yield first
        return
    if sys.stdin.isatty():
        print("one question a line; an empty line leaves")
        with contextlib.suppress(ImportError):
            import readline  # input() then has a history

            readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one question
    try:
        while (line := input("> ")).strip():
            yield line
    except EOFError:
        print()


class Stream(TextStreamer):
    """Prints the answer as it is generated, and keeps its tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token_ids: list[int] = []

    def put(self, value: Tensor) -> None:
        """Take the prompt, then token by token."""
        if not self.next_tokens_are_prompt:
            self.token_ids += value.tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what will not change any more."""
        print(text.translate(CONTROLS), end="\n" if stream_end else "", flush=True)


# Rewards


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


def show(score: Score, pieces: Sequence[Piece], console: Console) -> None:
    """The rewards of an answer in the terminal: in colours, or in numbers where there are none."""
    total = f"reward {score.reward:+.4f}, probability of being right {score.probability:.3f}"
    print()
    if console.no_color or console.color_system is None:
        for step, reward in zip(score.steps, score.step_rewards, strict=True):
            print(f"{reward:+9.4f}  {step.translate(CONTROLS).rstrip()}")
        print(total)
        return
    few = console.color_system not in ("256", "truecolor")
    largest = page.full_colour(piece.reward for piece in pieces)
    table = Table.grid()
    table.add_column(overflow="fold", style=colour(0, few))
    table.add_column(justify="right", vertical="bottom")
    for step, reward in enumerate(score.step_rewards):
        text = Text()
        for piece in pieces:
            if piece.step == step:
                text.append(piece.text.translate(CONTROLS | {10: "⏎"}), colour(piece.reward / largest, few))
        text.highlight_words("⏎", FAINT)
        table.add_row(text, f"  {reward:+.4f}")
    console.print(table)
    console.print(total)
    legend = Text(f"reward of a token {-largest:+.3f} ", style="dim")
    for i in range(-8, 9):
        legend.append(" ", style=colour(i / 8, few))
    console.print(legend.append(f" {largest:+.3f} and beyond"))


def colour(share: float, few: bool) -> str:
    """Dark text on red (-1 and less) over white (0) to blue (1 and more); `few` on a terminal of 16 colours."""
    if few:
        return SIXTEEN[share < 0][round(2 * min(1.0, abs(share)))]
    return f"{INK} on {page.colour(share)}"


def on_page(question: str, text: str, score: Score | None, pieces: Sequence[Piece]) -> list[str]:
    """A question, its answer, and the rewards of its tokens and steps."""
    asked = page.card("question", escape(question))
    if score is None:
        return [page.pair(asked, page.card("answer", escape(text)))]
    tokens, rewards, _ = zip(*pieces, strict=True)
    verdict, largest = f"probability of being right {score.probability:.3f}", page.full_colour(rewards)
    answer = page.response_card(verdict, tokens, rewards, largest)
    steps = page.step_bars(score.steps, score.step_rewards)
    return [page.pair(asked, answer), f"<p class=tag>{page.legend(largest)}</p>", steps]
