"""Steps of texts, texts of tokens, and which token is in which step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from openprime.config import PromptFormat
from openprime.data.chat import Turn, encode_turns
from openprime.data.steps import ENDS, split_steps, steps_of_tokens, token_texts
from openprime.models.tiny import build_tokenizer

CORPUS = ["what is the answer to the question, two or three? é 😀\n\nStep 1: [ASSESS]\n"] * 5
PIECES = [
    *("\n", "\n\n", " ", "\t", "\r\n", "a", "two three", "Step 1:", "Step 12: so", "## Step 2", "**Step 3**"),
    *("[ASSESS]", "[OUTPUT]\n", "Next action: [PIVOT]", "é", "e\u0301", "q\u0323\u0307", "q\u0307\u0323"),
    *("😀", "👩\u200d👩\u200d👧", "中文", "ﬁ", "½", "İ", "\u2028", "\ufffd", "\x00", "\u00a0"),
]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=30))


def wrapped(core: Tokenizer, special: list[str]) -> PreTrainedTokenizerBase:
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>", *special], show_progress=False, initial_alphabet=ALPHABET
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def byte_level(normalizer: normalizers.Normalizer | None = None, prefix: bool = False):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder = decoders.ByteLevel()
    if normalizer:
        core.normalizer = normalizer
    return wrapped(core, [])


def metaspace():
    """As Llama 2 has it: a token at a text's beginning loses its space, bytes stand in for unknown characters."""
    pieces = {"</s>": 0} | {f"<0x{i:02X}>": 1 + i for i in range(256)}
    for text in ("▁", *"twohree"):
        pieces.setdefault(text, len(pieces))
    merges = [("t", "w"), ("▁", "tw"), ("▁tw", "o")]
    for left, right in merges:
        pieces.setdefault(left + right, len(pieces))
    core = Tokenizer(models.BPE(pieces, merges, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


TOKENIZERS = {
    "byte level": byte_level(),
    "qwen2, which composes characters": build_tokenizer(CORPUS, 400),
    "lower case": byte_level(normalizers.Lowercase()),
    "compatibility characters": byte_level(normalizers.NFKC()),
    "space in front": byte_level(prefix=True),
    "metaspace": metaspace(),
    "bytes, not fast": ByT5Tokenizer(),
}


def said(tokenizer: PreTrainedTokenizerBase, text: str) -> Turn:
    """A response by itself, with the texts of its tokens."""
    form = PromptFormat(chat_template="none")
    return encode_turns(["q"], [text], ["row"], form, tokenizer, texts=True)[0]


# Steps of texts


@pytest.mark.parametrize("how", ENDS)
@given(text=TEXTS)
def test_split_steps__are_the_text_and_none_is_blank(how, text):
    steps = split_steps(text, how)
    assert "".join(steps) == text
    assert len(steps) == 1 or all(step.strip() for step in steps)


@pytest.mark.parametrize(
    ("how", "steps"),
    [
        ("newline", ["a\n", "b\n\n", " c\n \n", "d"]),
        ("newline", ["\n\na\n", "b\n"]),
        ("newline", ["a\r\n", "b"]),
        ("blank_line", ["a\nb\n\n", "c\n \t\n\n", "d"]),
        ("blank_line", ["a\r\n\r\n", "b\n"]),
        ("numbered", ["So:\n", "Step 1: a\nb\n\n", "Step 2: c, as in Step 1: d\n", "### Step 3 e\n", "**Step 10**"]),
        ("numbered", ["Step 1: a\n", " Step 2: b"]),
        ("numbered", ["Steps 1 and 2\nMisstep 3:\nStep by step"]),
        ("actions", ["[ASSESS]\n\n# a\n\nNext action: [ADVANCE]\n\n", "[ADVANCE]\n\n# b\n", "[OUTPUT] [PIVOT]"]),
        ("actions", ["so [VERIFY]\n[WAIT]\n[verify]"]),
        *((how, [""]) for how in ENDS),
        *((how, [" \n\n\n"]) for how in ENDS),
    ],
)  # fmt: skip
def test_split_steps__where_a_step_ends(how, steps):
    assert split_steps("".join(steps), how) == steps


# Texts of tokens


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@given(text=TEXTS)
def test_token_texts__joined_are_the_decoded_response_or_the_text(tokenizer, text):
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    decoded, given_text = token_texts(tokenizer, ids), said(tokenizer, text).texts
    assert list(said(tokenizer, text).response_ids) == ids
    assert len(decoded) == len(given_text) == len(ids)
    assert "".join(decoded) == tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded[-1] == "" or "\ufffd" in decoded[-1]  # the end-of-sequence token
    assert "".join(given_text) == text


@given(data=st.data())
def test_token_texts__any_sampled_tokens_have_texts(data):
    """A model may sample half a character, and special tokens in the middle."""
    for name in ("byte level", "metaspace", "bytes, not fast"):
        tokenizer = TOKENIZERS[name]
        ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids)
        assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=True), name


def test_token_texts__a_character_goes_to_the_token_that_completes_it():
    tokenizer = TOKENIZERS["byte level"]
    text = "a\n😄b"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert len("😄".encode()) == 4
    shared = len(ids) - 5  # the first bytes of 😀 are one token
    expected = ["a", "\n", *[""] * shared, "😄", "b", ""]
    assert token_texts(tokenizer, ids) == [*said(tokenizer, text).texts] == expected
    assert shared >= 1


def test_token_texts__a_space_at_the_beginning_of_a_token_stays():
    tokenizer = TOKENIZERS["metaspace"]
    ids = [*tokenizer("two two three", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(ids[1:2]) == "two"  # alone it is another text
    assert token_texts(tokenizer, ids) == ["two", " two", " ", "t", "h", "r", "e", "e", ""]


# Tokens of steps


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@given(text=TEXTS)
def test_steps_of_tokens__a_token_is_where_its_first_character_is(tokenizer, how, text):
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    texts = said(tokenizer, text).texts
    steps = split_steps(text, how)
    owner = [i for i, step in enumerate(steps) for _ in step]  # of each character
    found = steps_of_tokens(texts, steps)
    assert len(found) == len(ids)
    assert found == sorted(found)
    assert found[-1] == len(steps) - 1
    place = 0
    for piece, step in zip(texts, found, strict=True):
        if piece:
            assert step == owner[place]
        place += len(piece)


def test_steps_of_tokens__tokens_without_a_text_go_with_the_text_behind_them():
    assert steps_of_tokens(["a", "\n", "", "", "😀", "", "b", ""], ["a\n", "😀b"]) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert steps_of_tokens(["", "a\nb", "c"], ["a\n", "bc"]) == [0, 0, 1]
    assert steps_of_tokens([""], [""]) == [0]
    assert steps_of_tokens(["a", ""], ["a", ""]) == [0, 1]
