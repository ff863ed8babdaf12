"""Commands and code of the documentation: every one that a reader may copy, in the order of the page."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

SHELL = ("", "bash", "shell", "console")
"""Languages of a fenced block that holds commands; none is said for most."""
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S.*\n(?: {4}.*\n|\n(?= {4}))*)")
INLINE = re.compile(r"`(?:openprime|python|torchrun|pytest) [^`]+`")
LINE = "\1"
"""A line's end within a word, as $'a\\nb' has it."""
STARTS = re.compile(r" *(openprime|python|torchrun|pytest|pip) ")


@dataclass(frozen=True)
class Command:
    """A command as it is written, with the line of its page."""

    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Block:
    """A fenced block that is no shell's: Python, YAML and others."""

    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file that its first line names, as `# my_reward.py`; empty for none."""
        found = re.match(r"# ([\w.-]+\.(?:py|yaml|jsonl))(?:\s|$)", self.text)
        return found[1] if found else ""


def parts_of(page: str) -> list[Command | Block]:
    """Commands of fenced and indented blocks and of code in a line, and other fenced blocks, from top to bottom."""
    found: list[Command | Block] = []
    rest = list(page)

    def take(match: re.Match[str]) -> int:
        rest[match.start() : match.end()] = re.sub(r"[^\n]", " ", match[0])  # so that nothing is found twice
        return page.count("\n", 0, match.start()) + 1

    for match in FENCE.finditer(page):
        line = take(match)
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        if match["language"] in SHELL:
            found += commands_of(text, line + 1)
        else:
            found.append(Block(line + 1, match["language"], text))
    for match in INDENTED.finditer("".join(rest)):
        if STARTS.match(match[0]):
            joined = re.sub(r"\n {8}", " ", match[0])  # what stands further in goes on
            found += commands_of(joined, take(match))
    for match in INLINE.finditer("".join(rest)):
        found += commands_of(" ".join(match[0].strip("`").split()), page.count("\n", 0, match.start()) + 1)
    return sorted(found, key=lambda part: part.line)


def commands_of(text: str, line: int) -> list[Command]:
    """The commands of a shell's text: continued lines joined, `&&` apart, comments left out."""
    found = []
    joined = re.sub(r"\\\n", lambda _: "\0 ", text)
    joined = re.sub(r"\$'([^']*)'", lambda match: shlex.quote(match[1].replace("\\n", LINE)), joined)
    for row in joined.split("\n"):
        words = [word.replace(LINE, "\n") for word in shlex.split(row.replace("\0", ""), comments=True)]
        start = 0
        for end in [i for i, word in enumerate(words) if word == "&&"] + [len(words)]:
            if words[start:end]:
                found.append(Command(line, tuple(words[start:end])))
            start = end + 1
        line += 1 + row.count("\0")
    return found


def pages(root: Path) -> list[Path]:
    """All pages that have commands."""
    found = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    return [page for page in found if parts_of(page.read_text(encoding="utf-8"))]
