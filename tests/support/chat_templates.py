"""Chat templates of published model families, written anew from their formats: what they write, and nothing else.

Each is a template, the tokenizer's end-of-sequence token, and what stands behind the question and behind the answer.
"""

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Family:
    """A family's chat template, and by hand what it writes of the question `Q?` and the answer `A!`."""

    template: str
    special: str
    """Special tokens, with spaces between them."""
    prompt: str
    """The prompt, from the question on."""
    turn: str
    """What a model says behind the prompt, as far as the token that ends the turn."""
    eos: str = "<|endoftext|>"
    rest: str = ""
    """What the template writes behind that."""


def chatml(middle: str, head: str = "", cue: str = "<|im_start|>assistant\n") -> str:
    """ChatML with something else in the place of the assistant's content."""
    return (
        head
        + "{% for m in messages %}{% if m.role == 'assistant' %}"
        + "<|im_start|>assistant\n"
        + middle
        + "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}"
        + cue
        + "{% endif %}"
    )


CALLS = (
    "{{ m.content or '' }}{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n# Tools{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}"
)
THINKS = (
    "{% set said = m.content or '' %}{% set why = m.reasoning_content or '' %}"
    "{% if not why and '</think>' in said %}"
    "{% set why = said.split('</think>')[0].split('<think>')[-1] %}"
    "{% set said = said.split('</think>')[-1] %}{% endif %}"
)
QWEN3 = (
    THINKS + "{% if loop.last or why %}<think>\n{{ why.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ said.lstrip('\n') }}"
)
IM = "<|im_start|> <|im_end|>"


def roles(
    user: str, assistant: str, system: str = "{{ m.content }}", head: str = "", cue: str = "", end: str = ""
) -> str:
    """A template with a text of its own for each role."""
    return (
        head
        + "{% for m in messages %}{% if m.role == 'user' %}"
        + user
        + "{% elif m.role == 'assistant' %}"
        + assistant
        + "{% else %}"
        + system
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + cue
        + "{% else %}"
        + end
        + "{% endif %}"
    )


FAMILIES = {
    "qwen2.5": Family(
        chatml(CALLS, TOOLS), IM, "<|im_end|>\n<|im_start|>assistant\n", "A!<|im_end|>", "<|im_end|>", "\n"
    ),
    "smollm2 base": Family(
        chatml("{{ m.content }}"), IM, "<|im_end|>\n<|im_start|>assistant\n", "A!<|im_end|>", rest="\n"
    ),
    "qwen3": Family(
        chatml(QWEN3),
        IM,
        "<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nA!<|im_end|>",
        "<|im_end|>",
        "\n",
    ),
    "qwen3 thinking": Family(
        chatml(QWEN3, cue="<|im_start|>assistant\n<think>\n"),
        f"{IM} <think> </think>",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "\n</think>\n\nA!<|im_end|>",
        "<|im_end|>",
        "\n",
    ),
    "qwq": Family(
        chatml("{{ m.content.split('</think>')[-1].lstrip('\n') }}", cue="<|im_start|>assistant\n<think>\n"),
        IM,
        "<|im_end|>\n<|im_start|>assistant\n",
        "A!<|im_end|>",
        "<|im_end|>",
        "\n",
    ),
    "llama 3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|start_header_id|> <|end_header_id|> <|eot_id|>",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "A!<|eot_id|>",
        "<|end_of_text|>",
    ),
    "mistral v3": Family(
        roles("[INST] {{ m.content }}[/INST]", " {{ m.content }}</s>", head="{{ bos_token }}"),
        "[INST] [/INST]",
        "[/INST]",
        " A!</s>",
        "</s>",
    ),
    "llama 2": Family(
        roles("{{ bos_token }}[INST] {{ m.content }} [/INST]", " {{ m.content }} </s>"),
        "",
        " [/INST]",
        " A! </s>",
        "</s>",
    ),
    "gemma": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<start_of_turn> <end_of_turn>",
        "<end_of_turn>\n<start_of_turn>model\n",
        "A!<end_of_turn>",
        "<eos>",
        "\n",
    ),
    "phi-3": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|user|> <|assistant|> <|system|> <|end|>",
        "<|end|>\n<|assistant|>\n",
        "A!<|end|>",
        rest="\n<|endoftext|>",
    ),
    "phi-4": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
        f"{IM} <|im_sep|>",
        "<|im_end|><|im_start|>assistant<|im_sep|>",
        "A!<|im_end|>",
    ),
    "deepseek r1 distill": Family(
        roles(
            "<｜User｜>{{ m.content }}",
            "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}",
            head="{{ bos_token }}",
            cue="<｜Assistant｜><think>\n",
        ),
        "<｜User｜> <｜Assistant｜>",
        "<｜Assistant｜>",
        "A!<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "zephyr": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "",
        "</s>\n<|assistant|>\n",
        "A!</s>",
        "</s>",
        "\n",
    ),
    "command r": Family(
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
        "<|{{ {'user': 'USER', 'assistant': 'CHATBOT'}.get(m.role, 'SYSTEM') }}_TOKEN|>{{ m.content.strip() }}"
        "<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        "<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> <|END_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "A!<|END_OF_TURN_TOKEN|>",
        "<EOS_TOKEN>",
    ),
    "command r7b": Family(
        roles(
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ m.content }}<|END_OF_TURN_TOKEN|>",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"
            "<|END_OF_TURN_TOKEN|>",
            cue="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
        "<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|END_OF_TURN_TOKEN|> <|START_RESPONSE|> "
        "<|END_RESPONSE|>",
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_RESPONSE|>A!<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        "<EOS_TOKEN>",
    ),
    "granite": Family(
        "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>"
        "{{ m.content }}<|end_of_text|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        "<|start_of_role|> <|end_of_role|>",
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "A!<|end_of_text|>",
        "<|end_of_text|>",
        "\n",
    ),
    "smollm3": Family(
        chatml(
            "{% if '/no_think' in messages[0].content %}<think>\n\n</think>\n{% endif %}{{ m.content.lstrip('\n') }}",
            cue="<|im_start|>assistant\n{% if '/no_think' in messages[0].content %}<think>\n\n</think>\n{% endif %}",
        ),
        f"{IM} <think> </think>",
        "<|im_end|>\n<|im_start|>assistant\n",
        "A!<|im_end|>",
        "<|im_end|>",
        "\n",
    ),
    "olmo 2": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n"
        "{{ m.content }}{{ eos_token }}{% if not loop.last %}\n{% endif %}{% else %}"
        "<|{{ m.role }}|>\n{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "",
        "\n<|assistant|>\n",
        "A!<|endoftext|>",
    ),
    "glm 4": Family(
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "[gMASK] <sop> <|user|> <|assistant|> <|system|> <|observation|>",
        "<|assistant|>",
        "\nA!<|user|>",
    ),
    "glm 4.5": Family(
        roles(
            "<|user|>\n{{ m.content }}",
            "<|assistant|>{% set why = m.content.split('</think>')[0].split('<think>')[-1] %}"
            "{{ '\n<think>' }}{{ why.strip() if '</think>' in m.content else '' }}</think>\n"
            "{{ m.content.split('</think>')[-1].strip() }}",
            "<|system|>\n{{ m.content }}",
            "[gMASK]<sop>",
            "<|assistant|>",
        ),
        "[gMASK] <sop> <|user|> <|assistant|> <|system|> <think> </think>",
        "<|assistant|>",
        "\n<think></think>\nA!<|user|>",
    ),
    "gpt-oss": Family(
        roles(
            "<|start|>user<|message|>{{ m.content }}<|end|>",
            "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
            "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
            "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}",
            "<|start|>developer<|message|># Instructions\n\n{{ m.content }}<|end|>",
            cue="<|start|>assistant",
        ),
        "<|start|> <|message|> <|channel|> <|end|> <|return|>",
        "<|end|><|start|>assistant",
        "<|channel|>final<|message|>A!<|return|>",
        "<|return|>",
    ),
    "alpaca, without special tokens": Family(
        roles(
            "### Instruction:\n{{ m.content }}\n\n",
            "### Response:\n{{ m.content }}\n\n",
            cue="### Response:\n",
        ),
        "",
        "\n\n### Response:\n",
        "A!\n\n</s>",
        "</s>",
    ),
}


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the family's template and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True, normalized=False) for name in family.special.split()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=family.eos, additional_special_tokens=special
    )
    tokenizer.chat_template = family.template
    return tokenizer
