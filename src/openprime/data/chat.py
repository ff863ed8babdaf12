"""From what a row says to a model's input: messages, chat template, token ids."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from openprime.config import PromptFormat
from openprime.types import UserError

Messages = list[dict[str, str]]

SUFFIXES = {
    "math": "\n\nPresent the answer in LaTex format: \\boxed{Your answer}",
    "code": "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end.",
}
"""Text behind a question in the published recipe, by verifier (PRIME, arXiv 2502.01456; the Eurus-2 model cards)."""
ACTIONS = ("ASSESS", "ADVANCE", "VERIFY", "SIMPLIFY", "SYNTHESIZE", "PIVOT", "OUTPUT")
"""The seven actions of the published SFT data (PRIME, section 4.1)."""
SYSTEM = (
    "\nWhen tackling complex reasoning tasks, you have access to the following actions. Use them as needed to progress "
    "through your thought process.\n\n"
    + "".join(f"[{action}]\n\n" for action in ACTIONS)
    + "You should strictly follow the format below:\n\n[ACTION NAME]\n\n"
    + "".join(f"# Your action step {i}\n\n" for i in (1, 2, 3))
    + "...\n\nNext action: [NEXT ACTION NAME]\n"
)
"""The published system message, word for word: models trained with it expect it."""


def read_messages(value: object, where: str) -> str | Messages:
    """A field's value as a prompt: text, or messages with a role and a text content each.

    Raises UserError, which begins with `where`, for anything else and for an empty prompt.
    """
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected text or a list of messages, found {value!r:.80}")
    messages = []
    for message in value:
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(
                f"{where}: expected a message with `role` and `content`, both text, found {message!r:.80}"
            )
        messages.append({"role": role, "content": content})
    return messages


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
) -> list[list[int]]:
    """Token ids of each prompt with the system message, the suffix and the generation prompt.

    `names` are the prompts' ids, for messages; `verifiers` (math if not given) choose the template's suffix. Raises
    ValueError where `chat_template` does not suit the tokenizer, its template refuses a prompt, or a prompt is empty.
    """
    judges = verifiers or ["math"] * len(prompts)
    chats = [complete(p, name, form, judge) for p, name, judge in zip(prompts, names, judges, strict=True)]
    if form.chat_template == "none":
        texts = ["\n".join(message["content"] for message in chat) for chat in chats]
        encoded = _encode_texts(texts, tokenizer)
        for name, ids in zip(names, encoded, strict=True):
            if not ids:
                raise UserError(f"{name}: the prompt is empty")
        return encoded
    if not tokenizer.chat_template:
        raise UserError(
            "data.chat_template=auto, but the tokenizer has no chat template: set data.chat_template: none, "
            "or use a model whose tokenizer has one"
        )
    if not chats:
        return []
    try:
        return _encode_chats(chats, tokenizer)
    except TemplateError:
        for chat, name in zip(chats, names, strict=True):
            try:
                _encode_chats([chat], tokenizer)
            except TemplateError as error:
                raise UserError(
                    f"{name}: the tokenizer's chat template refuses this prompt: {error}"
                ) from error
        raise


def encode_responses(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each response, followed by the end-of-sequence token."""
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token (eos_token), so no response could ever end"
        )
    if not texts:
        return []
    ids: Any = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[*row, eos] for row in ids]


def _encode_chats(chats: list[Messages], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # By default transformers 5 returns a dictionary.
    ids: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids


def _encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Plain text, with the special tokens that the tokenizer adds, but no second beginning of sequence."""
    bos = tokenizer.bos_token
    encoded: dict[int, list[int]] = {}
    for begun in (False, True):
        chosen = [
            i for i, text in enumerate(texts) if (isinstance(bos, str) and text.startswith(bos)) == begun
        ]
        if chosen:
            ids: Any = tokenizer([texts[i] for i in chosen], add_special_tokens=not begun)["input_ids"]
            encoded.update(zip(chosen, ids, strict=True))
    return [encoded[i] for i in range(len(texts))]
