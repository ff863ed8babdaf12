"""From what a row says to a model's input: messages, chat template, token ids."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from openprime.config import PromptFormat
from openprime.data.steps import ACTIONS, pieces, token_texts
from openprime.data.template import IGNORED, Messages, Template, Tools, lost
from openprime.types import UserError

SUFFIXES = {
    "math": "\n\nPresent the answer in LaTex format: \\boxed{Your answer}",
    "code": "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end.",
}
"""Text behind a question in the published recipe, by verifier (PRIME, arXiv 2502.01456; the Eurus-2 model cards)."""
SYSTEM = (
    "\nWhen tackling complex reasoning tasks, you have access to the following actions. Use them as needed to progress "
    "through your thought process.\n\n"
    + "".join(f"[{action}]\n\n" for action in ACTIONS)
    + "You should strictly follow the format below:\n\n[ACTION NAME]\n\n"
    + "".join(f"# Your action step {i}\n\n" for i in (1, 2, 3))
    + "...\n\nNext action: [NEXT ACTION NAME]\n"
)
"""The published system message, word for word: models trained with it expect it."""


AT_ONCE = 1000
"""Texts that are tokenised in one call."""
ROLES = {"human": "user", "gpt": "assistant"}
"""What ShareGPT calls them."""
Said = str | dict[str, Any] | tuple[int, ...]
"""A response: a text, a message of the assistant, or the tokens that were sampled."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt and a response to it, as the model reads them."""

    prompt_ids: tuple[int, ...]
    """The rendered prompt, chat template and generation prompt included."""
    response_ids: tuple[int, ...]
    """The response with what the chat template puts around it, as far as the token that ends the turn."""
    texts: tuple[str, ...] = ()
    """Where asked for, the part of the response's text that each token has; joined they are that text."""


def read_messages(value: object, where: str) -> str | Messages:
    """A field's value as a prompt: text, or messages with a role and a content, and what else they have.

    Raises UserError, which begins with `where`, for anything else and for an empty prompt.
    """
    value = parsed(value)
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected text or a list of messages, found {value!r:.80}")
    return [read_message(message, where) for message in value]


def read_message(value: object, where: str) -> dict[str, Any]:
    """A message, without keys that have no value. Raises UserError, which begins with `where`, for anything else."""
    message = value if isinstance(value, dict) else {}
    kept = {k: v for k, v in message.items() if k == "content" or (v is not None and v != [] and v != {})}
    calls = message.get("role") == "assistant" and kept.get("tool_calls") and not kept.get("content")
    if not isinstance(message.get("role"), str) or not (isinstance(message.get("content"), str) or calls):
        raise UserError(
            f"{where}: expected a message with `role` and `content`, both text, found {value!r:.80}"
        )
    return kept


def parsed(value: object) -> Any:
    """A value as it is; messages also where it has them as JSON, or with `from` and `value` (ShareGPT)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        found = _from_json(value)
        value = found if found and all("role" in one or "from" in one for one in found) else value
    if isinstance(value, list) and all(
        isinstance(one, dict) and {"from", "value"} <= one.keys() for one in value
    ):
        return [
            {k: v for k, v in one.items() if k not in ("from", "value")}
            | {"role": ROLES.get(str(one["from"]), one["from"]), "content": one["value"]}
            for one in value
        ]
    return value


def _from_json(text: str) -> list[dict[str, Any]]:
    """The objects of a list in JSON; none where it is not one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else []


def read_tools(row: dict[str, Any], where: str) -> Tools:
    """What the row's `tools` say that the assistant may call. Raises UserError, which begins with `where`."""
    tools = row.get("tools")
    tools = _from_json(tools) or tools if isinstance(tools, str) else tools
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{where}: expected `tools` as a list of JSON schemas, found {tools!r:.80}")
    return tools


def complete(prompt: str | Messages, name: str, form: PromptFormat, verifier: str) -> Messages:
    """The prompt as messages, with the system message in front and the suffix behind, as `form` says.

    `verifier` chooses the template's suffix; `name` is the prompt's, for messages. Raises UserError where
    there is no user message to put a suffix behind.
    """
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    system = form.system or (SYSTEM if form.template == "eurus-actions" else "")
    if system and all(message["role"] != "system" for message in chat):
        chat.insert(0, {"role": "system", "content": system})
    suffix = form.suffix or ("" if form.template == "none" else SUFFIXES.get(verifier, ""))
    if suffix:
        users = [message for message in chat if message["role"] == "user"]
        if not users:
            raise UserError(
                f"{name}: the suffix goes behind the last user message, but there is none: leave data.suffix and "
                "data.template out, or add a message of the user"
            )
        users[-1]["content"] += suffix
    return chat


def suitable(form: PromptFormat, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """`form`, without a chat template where the tokenizer has none."""
    return form if tokenizer.chat_template else form.model_copy(update={"chat_template": "none"})


def encode_prompts(
    prompts: Sequence[str | Messages],
    names: Sequence[str],
    form: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    verifiers: Sequence[str] = (),
    tools: Sequence[Tools] = (),
) -> list[list[int]]:
    """Token ids of each prompt with the system message, the suffix and the generation prompt.

    `names` are the prompts' ids, for messages; `verifiers` (math if not given) choose the template's suffix. Raises
    UserError where `chat_template` does not suit the tokenizer, its template refuses a prompt or leaves out a part of
    it, and where a prompt is empty or ends with an answer.
    """
    chats, given = _complete(prompts, names, form, verifiers), tools or [None] * len(prompts)
    template = _template(form, tokenizer)
    if template is None:
        return _encode_plain(chats, names, given, tokenizer)
    for chat, name, own in zip(chats, names, given, strict=True):
        template.keep_all(chat, name, own)
    texts = [template.write(*one, ask=True) for one in zip(chats, names, given, strict=True)]
    return _encode(texts, tokenizer)


def encode_turns(
    prompts: Sequence[str | Messages],
    responses: Sequence[Said],
    names: Sequence[str],
    form: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    verifiers: Sequence[str] = (),
    tools: Sequence[Tools] = (),
    ended: Sequence[bool] = (),
    texts: bool = False,
) -> list[Turn]:
    """Prompts and a response to each, as the chat template writes them.

    Sampled tokens stand behind the prompt as they are (trap 13), and so does a response that has not `ended` (all have,
    if not given). With `texts` each token's text is found too. Raises UserError as `encode_prompts` does, where
    the template leaves out or changes a part of a response, and where no token can end one.
    """
    chats, given = _complete(prompts, names, form, verifiers), tools or [None] * len(prompts)
    whole = ended or [True] * len(prompts)
    template = _template(form, tokenizer)
    rows = [_written(template, *row) for row in zip(chats, responses, names, given, whole, strict=True)]
    heads = [*dict.fromkeys(head for head, _, _ in rows)]
    known = dict(zip(heads, _encode(heads, tokenizer), strict=True))
    plain = _encode_plain(chats, names, given, tokenizer) if template is None else []
    bodies = [body + end for _, body, end in rows]
    turns = []
    for i, (ids, starts) in enumerate(_encode_with_starts(bodies, tokenizer, texts)):
        (head, body, _), said = rows[i], responses[i]
        begin = len(known[head])
        if isinstance(said, tuple):
            ids, own = said, token_texts(tokenizer, said) if texts else ()
        else:
            if ids[:begin] == known[head]:
                ids, starts = ids[begin:], starts[begin:]
            else:  # a token that reaches from the prompt into the response, which no sampled one does
                ((ids, starts),) = _encode_with_starts([bodies[i][len(head) :]], tokenizer, texts)
                starts = [start + len(head) for start in starts]
            if (template is None and whole[i]) or not ids:
                ids, starts = [*ids, _end_of_sequence(tokenizer)], [*starts, len(body)]
            content = said if isinstance(said, str) else said.get("content") or ""
            own = _texts(tokenizer, ids, content, body, starts) if texts else ()
        turns.append(Turn(tuple(plain[i] if plain else known[head]), tuple(ids), tuple(own)))
    return turns


def _written(
    template: Template | None, chat: Messages, said: Said, name: str, tools: Tools, ended: bool
) -> tuple[str, str, str]:
    """(prompt, the same with the response behind it, what ends it); without a template the response alone."""
    text = said if isinstance(said, str) else ""
    message = said if isinstance(said, dict) else {"role": "assistant", "content": text}
    if template is None:
        return "", _plain([message], name), ""
    if ended and not isinstance(said, tuple):
        template.keep_all([*chat, message], name, tools)
        return template.turn(chat, message, name, tools)
    template.keep_all(chat, name, tools)
    asked = template.write(chat, name, tools, ask=True)
    return asked, template.cut_off(asked, str(message.get("content") or "")), ""


def _texts(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], content: str, written: str, starts: Sequence[int]
) -> list[str]:
    """The part of `content` that each token has; `starts` are empty where the tokenizer does not tell them."""
    if len(starts) != len(ids):
        decoded = token_texts(tokenizer, ids)
        written, starts = "".join(decoded), [0, *accumulate(map(len, decoded))][: len(ids)]
    return pieces(content, written, starts) or token_texts(tokenizer, ids)


def _complete(
    prompts: Sequence[str | Messages], names: Sequence[str], form: PromptFormat, verifiers: Sequence[str]
) -> list[Messages]:
    """The prompts as messages; raises UserError where one ends with an answer."""
    judges = verifiers or ["math"] * len(prompts)
    chats = [complete(p, name, form, judge) for p, name, judge in zip(prompts, names, judges, strict=True)]
    for chat, name in zip(chats, names, strict=True):
        if chat[-1]["role"] == "assistant":
            raise UserError(
                f"{name}: the prompt ends with a message of the assistant, which would give an answer away: leave it "
                "out, or name a conversation's own field in data.prompt_field, whose last message is then left out"
            )
    return chats


def _template(form: PromptFormat, tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The chat template that `form` asks for; None for text as it is."""
    if form.chat_template == "none":
        return None
    if not tokenizer.chat_template:
        raise UserError(
            "data.chat_template=auto, but the tokenizer has no chat template: set data.chat_template: none, "
            "or use a model whose tokenizer has one"
        )
    return Template(tokenizer)


def _plain(chat: Messages, name: str, tools: Tools = None) -> str:
    """The messages' contents; raises UserError where they have more than that."""
    if tools:
        raise lost(name, "the row has tools", "chat_template: none")
    for i, message in enumerate(chat):
        for key in message.keys() - IGNORED:
            raise lost(name, f"message {i} ({message['role']}) has {key}", "chat_template: none")
    return "\n".join(message["content"] for message in chat)


def _encode_plain(
    chats: Sequence[Messages],
    names: Sequence[str],
    tools: Sequence[Tools],
    tokenizer: PreTrainedTokenizerBase,
) -> list[list[int]]:
    """The messages' contents with the tokens that the tokenizer puts before a text, but no second beginning.

    What it puts behind one, such as an end of sequence, is left out: the response follows.
    """
    texts = [_plain(*one) for one in zip(chats, names, tools, strict=True)]
    (probe,), (bare,) = ([*tokenizer(["a"], add_special_tokens=on)["input_ids"]] for on in (True, False))
    begin = next((probe[:i] for i in range(len(probe)) if probe[i : i + len(bare)] == bare), [])
    bos = tokenizer.bos_token
    encoded = []
    for text, name, ids in zip(texts, names, _encode(texts, tokenizer), strict=True):
        encoded.append(ids if isinstance(bos, str) and text.startswith(bos) else [*begin, *ids])
        if not encoded[-1]:
            raise UserError(f"{name}: the prompt is empty")
    return encoded


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts, nothing added.

    A token is one object in all of them: 8 bytes for each, where a number of its own takes 36. What the tokenizer
    returns has several times as much for each token, so it gets AT_ONCE texts at a time.
    """
    same: dict[int, int] = {}
    found: list[list[int]] = []
    for start in range(0, len(texts), AT_ONCE):
        part: Any = tokenizer(list(texts[start : start + AT_ONCE]), add_special_tokens=False)["input_ids"]
        found += [list(map(same.setdefault, ids, ids)) for ids in part]
    return found


def _encode_with_starts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, wanted: bool
) -> list[tuple[list[int], list[int]]]:
    """(token ids, where in the text each begins) of texts; no places unless wanted and known to the tokenizer."""
    if not (texts and wanted and tokenizer.is_fast):
        return [(ids, []) for ids in _encode(texts, tokenizer)]
    found: Any = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    places = [[start for start, _ in row] for row in found["offset_mapping"]]
    return [*zip(found["input_ids"], places, strict=True)]


def _end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    end: Any = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token (eos_token), so no response could ever end"
        )
    return end
