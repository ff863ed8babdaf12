"""What a tokenizer's chat template writes: the prompt, the assistant's turn behind it, and the token that ends it."""

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from openprime.types import UserError

Messages = list[dict[str, Any]]
"""Each with a role and a content, and what else its template knows, such as tool_calls or reasoning_content."""
Tools = list[dict[str, Any]] | None
"""What a conversation's assistant may call, as JSON schemas."""

ASK, ANSWER = "probe question", "probe answer"
SPACE = re.compile(r"\s+")
TAG = re.compile(r"\s*<[^<>\s]+>")
IGNORED = {"role", "content", "tool_call_id"}
"""Keys of a message that no template need write: the last only says which call a tool's result belongs to."""


class Template:
    """A chat template. How it ends a turn of the assistant is learnt from a conversation that it writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError where there is no template to choose, and where no token can end a turn."""
        self.tokenizer, named = tokenizer, tokenizer.chat_template
        if isinstance(named, dict) and "default" not in named:
            raise UserError(
                f"the tokenizer has several chat templates ({', '.join(named)}), and none of them is called default: "
                "make one of them chat_template.jinja in the model's folder, or set chat_template: none"
            )
        ask, say = {"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}
        whole = longer = asked = ""
        for self.parts in (False, True):
            try:
                whole, longer = self.write([ask, say]), self.write([ask, say, ask, say])
                asked = self.write([ask], ask=True)
            except UserError:  # no plain conversation suits it
                continue
            if ANSWER in whole:
                break
        self.tail = whole.rpartition(ANSWER)[2] if ANSWER in whole else ""
        """What stands behind the last answer."""
        self.cue = asked.rpartition(ASK)[2]
        """What stands behind the last question of a prompt."""
        untyped: Any = tokenizer
        special = {*untyped.get_added_vocab(), *untyped.all_special_tokens}
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        within = longer.partition(ANSWER)[2].partition(ASK)[0]
        self.end = self._end(within)
        """The tail as far as the token that ends the turn."""
        if not self.end and not tokenizer.eos_token:
            raise UserError(
                "neither the tokenizer (eos_token) nor its chat template has a token that ends a response"
            )
        self.end = self.end or f"{self.tail}{tokenizer.eos_token}"

    def _end(self, within: str) -> str:
        """What ends a turn, where `within` stands between an answer and the next question; "" for nothing.

        Phi-3 ends a turn with <|end|>, and behind the last one there is another token, which ends the text. GLM has
        nothing behind the last one: the next turn's first token ends it.
        """
        for text, which in ((beginning(self.tail, within), -1), (self.tail, -1), (within, 0)):
            if found := [*self._special.finditer(text)]:
                return text[: found[which].end()]
        return ""

    def write(self, chat: Messages, name: str = "", tools: Tools = None, ask: bool = False) -> str:
        """A conversation as text; with `ask` the assistant's next turn is begun.

        Raises UserError, with `name`, where the template refuses it.
        """
        if self.parts:
            chat = [m | {"content": [{"type": "text", "text": m.get("content") or ""}]} for m in chat]
        how: Any = {"tools": tools, "add_generation_prompt": ask, "tokenize": False}
        try:
            return str(self.tokenizer.apply_chat_template(chat, **how))
        except Exception as error:  # a template is a program: anything may come
            raise UserError(
                f"{name}: the tokenizer's chat template refuses this prompt: {one_line(error)}"
            ) from error

    def turn(
        self, chat: Messages, said: dict[str, Any], name: str, tools: Tools = None
    ) -> tuple[str, str, str]:
        """(prompt, the same with the answer behind it, what ends the turn).

        That is as the template writes the answered conversation. The prompt is that of the unanswered one, as far as
        the answered one has it too: some prompts open a <think> that a plain answer has not. An answer whose beginning
        the template leaves out, as those do that drop the reasoning of earlier turns, stands behind the prompt as it
        is. Raises UserError, with `name`, where the template changes an answer in another way.
        """
        asked, whole = self.write(chat, name, tools, ask=True), self.write([*chat, said], name, tools)
        body, end = whole.removesuffix(self.tail), self.end
        if not whole.endswith(self.tail):  # a call of a tool may end in another way
            last = [0, *(match.end() for match in self._special.finditer(whole))][-1]
            body, end = (whole[:last], "") if last == len(whole.rstrip()) else (whole.rstrip(), end)
        elif said.get("tool_calls") and not self._special.search(self.tail):
            result = self.write([*chat, said, {"role": "tool", "content": ASK}], name, tools)
            end = self._end(result[len(body) :]) or end
        head = asked
        if not body.startswith(asked):
            common = beginning(asked, body)
            cuts = [match.end() for match in self._special.finditer(common)]
            head = common[: max([*cuts, common.rfind("\n") + 1])]
            if len(asked) - len(head) > len(self.cue):
                raise UserError(
                    f"{name}: the tokenizer's chat template writes the prompt in another way once it is answered"
                )
        content, written = str(said.get("content") or ""), whole[len(asked) - len(self.cue) :]
        if content in written or (given := squeezed(content)) in squeezed(written):
            return head, body, end
        if (written := squeezed(body[len(head) :])) and given.endswith(written):
            return asked, self.cut_off(asked, content), self.end
        raise UserError(f"{name}: the tokenizer's chat template leaves out or changes a part of the response")

    def cut_off(self, asked: str, content: str) -> str:
        """A prompt and an answer that has not ended, as it was sampled; a tag that the prompt opens is opened once."""
        tag = TAG.match(content)
        opened = tag and asked.rstrip().endswith(tag[0].strip())
        return asked + (content[tag.end() :].lstrip("\n") if tag and opened else content)

    def keep_all(self, chat: Messages, name: str, tools: Tools = None) -> None:
        """Raises UserError, with `name`, where the template leaves out a key of a message, or the tools."""
        if tools and self._same(chat, chat, tools, None):
            raise lost(name, "the row has tools")
        for i, message in enumerate(chat):
            for key in message.keys() - IGNORED:
                other = [*chat[:i], {k: v for k, v in message.items() if k != key}]
                if self._same(chat[: i + 1], other, tools, tools):
                    raise lost(name, f"message {i} ({message['role']}) has {key}")

    def _same(self, one: Messages, other: Messages, *tools: Tools) -> bool:
        """True where two conversations are written alike, and can be."""
        written = []
        for chat, given in zip((one, other), tools, strict=True):
            try:
                written.append(self.write(chat, tools=given))
            except UserError as error:
                written.append(str(error))
        return written[0] == written[1]


def beginning(one: str, other: str) -> str:
    """What two texts begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))]


def one_line(error: Exception) -> str:
    """What others' code says of an error, as it can stand in a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def squeezed(text: str) -> str:
    """A text without its white space."""
    return SPACE.sub("", text)


def lost(name: str, what: str, by: str = "the tokenizer's chat template") -> UserError:
    """The error for what a model would never read."""
    return UserError(
        f"{name}: {what}, which {by} leaves out: leave it out of the data, or write it into the content"
    )


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token that ends a turn of the assistant by the chat template; none where there is no such template."""
    if not tokenizer.chat_template:
        return frozenset()
    try:
        end = Template(tokenizer).end
    except UserError:  # said where the template is used
        return frozenset()
    ids: Any = tokenizer(end, add_special_tokens=False)["input_ids"]
    return frozenset(ids[-1:])
