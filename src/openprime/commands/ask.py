"""`openprime ask`: an answer as it is generated, and with a PRM the reward of every token of it."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.status import Status
from rich.table import Table
from rich.text import Text

from openprime import colours
from openprime.commands.answers import Answerers, Piece, Stream, pieces_of
from openprime.commands.ask_page import serve
from openprime.config import AskConfig
from openprime.evaluation import page
from openprime.models.placement import Placement
from openprime.prime.prm import Score
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
    waiting = Console(stderr=True, highlight=False, markup=False)  # nothing where no terminal is
    out = Path(config.page) if config.page else None
    if out and out.is_dir():
        raise UserError(f"page: {out} is a folder: name a file, such as {out / 'answer.html'}")
    answerers = Answerers(config)
    for note in place.notes:
        waiting.print(f"note: {note}")
    with Live(console=waiting, transient=True) as live:
        answerers.load(place, lambda text: live.update(Spinner("dots", Text(text)), refresh=True))
    if config.serve:
        serve(answerers)
        return
    several, two_prms = len(answerers.models) > 1, len({pane[1:] for pane in answerers.panes}) > 1
    prms = list(dict.fromkeys(pane.prm for pane in answerers.panes if pane.prm))
    named = " and ".join(f"<code>{escape(prm)}</code>" for prm in prms)
    parts = [f"<p>The rewards are those of {named}.</p>" if prms else ""]
    for number, question in enumerate(questions(config.question)):
        cards = len(parts)
        for answerer, places in answerers.by_model():
            prompt_ids = answerer.encode(question)
            if several:
                console.print(f"{answerer.name}:", style="bold")
            status = waiting.status(Text(f"reading the question, {len(prompt_ids)} tokens"))

            def say(text: str, status: Status = status) -> None:
                status.stop()
                write(text)

            stream = Stream(answerer.tokenizer, say)
            try:
                with status:
                    answerer.answer(prompt_ids, config.seed + number, stream)
            except KeyboardInterrupt:
                if config.question:
                    raise
                stream.end()
            rate, ids = stream.rate, stream.token_ids
            print()
            if not ids:
                continue
            for i in places:
                with waiting.status(Text(f"scoring {len(ids)} tokens by {answerers.panes[i].prm}")):
                    score = answerers.score(i, prompt_ids, ids)
                pieces = pieces_of(score, ids, answerer.tokenizer) if score else []
                if score:
                    show(score, pieces, console, answerers.panes[i].prm if two_prms else "")
                if out:
                    title = f"{answerer.name}, {answerers.panes[i].prm}" if several or two_prms else ""
                    parts += on_page(question, stream.text, score, pieces, title)
            console.print(f"{rate}{answerer.ending(prompt_ids, ids)}", style="dim")
        if out and len(parts) > cards:
            page.write(out, f"Asked: {' and '.join(answerers.models)}", parts)
    if out and len(parts) > 1:
        console.print(f"written: {out}", soft_wrap=True)


def write(text: str) -> None:
    """Write a part of an answer into the terminal."""
    print(text.translate(CONTROLS), end="", flush=True)


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


# Rewards


def show(score: Score, pieces: Sequence[Piece], console: Console, prm: str = "") -> None:
    """The rewards of an answer in the terminal: in colours, or in numbers where there are none. `prm`: of two."""
    total = (
        f"{prm and prm + ': '}reward {score.reward:+.4f}, probability of being right {score.probability:.3f}"
    )
    print()
    if console.no_color or console.color_system is None:
        for step, reward in zip(score.steps, score.step_rewards, strict=True):
            print(f"{reward:+9.4f}  {step.translate(CONTROLS).rstrip()}")
        print(total)
        return
    few = console.color_system not in ("256", "truecolor")
    largest = colours.full_colour(piece.reward for piece in pieces)
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
    return f"{INK} on {colours.colour(share)}"


def on_page(
    question: str, text: str, score: Score | None, pieces: Sequence[Piece], title: str = ""
) -> list[str]:
    """A question, its answer, and the rewards of its tokens and steps; `title` says whose of several."""
    asked = page.card("question", escape(question))
    if title:
        asked = page.card("asked of", escape(title)) + asked
    if score is None:
        return [page.pair(asked, page.card("answer", escape(text)))]
    tokens, rewards, _ = zip(*pieces, strict=True)
    verdict, largest = f"probability of being right {score.probability:.3f}", colours.full_colour(rewards)
    answer = page.response_card(verdict, tokens, rewards, largest)
    steps = page.step_bars(score.steps, score.step_rewards)
    return [page.pair(asked, answer), f"<p class=tag>{page.legend(largest)}</p>", steps]
