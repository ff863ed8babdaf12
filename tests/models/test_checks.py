"""What a model must be before work begins: damaged, foreign and unfit ones are refused in one line that names it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import linear
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from openprime.config import LoRAConfig
from openprime.models.checks import check_rows, check_weights, embeddings, positions
from openprime.models.hub import (
    end_tokens,
    load_model,
    load_tokenizer,
    named_end_tokens,
    read_architecture,
    save_model,
)
from openprime.models.lm import LM, check_scoring
from openprime.models.lora import add_adapter
from openprime.models.placement import Placement
from openprime.models.tiny import build_model, build_tokenizer
from openprime.types import UserError
from support.architectures import make as make_architecture
from support.tiny_zoo import make

Weights = dict[str, Tensor]
Damage = Callable[[Path], object]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(["Start four\n+seven = ?"] * 20, 300)


@pytest.fixture(scope="module")
def whole(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two sound models, one with tied embeddings."""
    folder = tmp_path_factory.mktemp("sound")
    save_model(build_model(tokenizer, 32, 2, 4, 64, 0), tokenizer, folder / "tied")
    save_model(make("llama"), tokenizer, folder / "untied")
    return {name: folder / name for name in ("tied", "untied")}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of a sound model."""
    return lambda name: Path(shutil.copytree(whole[name], tmp_path / name))


def weights(change: Callable[[Weights], object]) -> Damage:
    """A change of the saved weights."""

    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        held = load_file(file)
        change(held)
        save_file(held, file, {"format": "pt"})

    return apply


def renamed(change: Callable[[str], str]) -> Damage:
    return weights(lambda held: [held.update({change(key): held.pop(key)}) for key in list(held)])


def value(number: float) -> Damage:
    """One entry of a matrix is this number."""
    return weights(lambda held: held[UP].view(-1).__setitem__(7, number))


def flipped(held: Weights) -> None:
    """The highest bit of an exponent, which makes 0.1 a number near 1e37."""
    held[UP].view(torch.int32).view(-1)[5] ^= 1 << 30


def config(**changes: object) -> Damage:
    """Changes of config.json."""

    def apply(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return apply


def quantised(method: str) -> Damage:
    return config(quantization_config={"quant_method": method, "bits": 4})


def layers(count: int) -> Damage:
    return config(num_hidden_layers=count, layer_types=["full_attention"] * count)


def adapter_alone(folder: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    adapter_beside(folder)


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2-0.5B"}')


def text(file: str, content: str) -> Damage:
    return lambda folder: (folder / file).write_text(content)


REFUSED: list[tuple[str, Damage, str]] = [
    ("a tensor deleted", weights(lambda held: held.pop(UP)), rf"missing: {UP}\)"),
    ("the last norm deleted", weights(lambda held: held.pop("model.norm.weight")), r"missing: model\.norm"),
    (
        "the embedding deleted",
        weights(lambda held: held.pop("model.embed_tokens.weight")),
        r"missing: .*model\.embed_tokens\.weight",
    ),
    (
        "a tensor renamed",
        renamed(lambda key: key.replace("layers.0.mlp.gate_proj", "layers.0.mlp.w1")),
        r"missing: model\.layers\.0\.mlp\.gate_proj\.weight; unexpected: model\.layers\.0\.mlp\.w1\.weight",
    ),
    ("wrapped by DataParallel", renamed("module.{}".format), r"begin with 'module\.': save the model itself"),
    ("compiled", renamed("_orig_mod.{}".format), r"begin with '_orig_mod\.': save the model itself"),
    ("more layers than weights", layers(4), r"missing: model\.layers\.2\.input_layernorm.* and \d+ more"),
    ("fewer layers than weights", layers(1), r"unexpected: model\.layers\.1\.input_layernorm"),
    (
        "a bias that nothing takes",
        weights(lambda held: held.update({UP.replace("weight", "bias"): torch.zeros(96)})),
        r"unexpected: model\.layers\.1\.mlp\.up_proj\.bias",
    ),
    ("more tokens than embeddings", config(vocab_size=999), r"config\.json \[999, 32\].*: set vocab_size"),
    ("fewer tokens than embeddings", config(vocab_size=9), r"config\.json \[9, 32\].*: set vocab_size"),
    ("another width", config(intermediate_size=64), r"mlp\.down_proj\.weight is \[32, \d+\], by config"),
    ("not a number", value(float("nan")), rf"damaged weights, .*: {UP}: copy"),
    ("infinite", value(float("inf")), rf"damaged weights, .*: {UP}: copy"),
    ("infinite below", value(-float("inf")), rf"damaged weights, .*: {UP}: copy"),
    ("a flipped bit", weights(flipped), rf"damaged weights, .*: {UP}: copy"),
    *[(method, quantised(method), rf"quantised \({method}\)") for method in ("gptq", "awq", "bitsandbytes")],
    *[(method, quantised(method), rf"quantised \({method}\)") for method in ("fp8", "mxfp4", "new")],
    (
        "GPTQ without a word",
        renamed(lambda key: key.replace("proj.weight", "proj.qweight")),
        "unexpected: .*: these weights are quantised",
    ),
    (
        "weights of an adapter",
        renamed(lambda key: "base_model.model." + key.replace(".weight", ".lora_A.weight")),
        "these are weights of an adapter: merge it",
    ),
    ("an adapter", adapter_alone, r"an adapter of Qwen/Qwen2-0\.5B, not a model: merge it"),
    ("an adapter beside its base", adapter_beside, r"an adapter of Qwen/Qwen2-0\.5B, not a model: merge it"),
    ("an unreadable adapter", text("adapter_config.json", "{"), "an adapter of an unknown model"),
    (
        "code of its own",
        config(model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}),
        "comes with Python code of its own, which is never run here",
    ),
    ("an unknown type", config(model_type="mine"), "`mine`"),
    (
        "multimodal",
        config(model_type="llama4", architectures=["Llama4ForConditionalGeneration"], text_config={}),
        r"a multimodal model \(Llama4ForConditionalGeneration\).*text part",
    ),
    (
        "multimodal, of another kind",
        config(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"], text_config={}),
        r"a multimodal model \(Gemma3ForConditionalGeneration\).*gemma3_text",
    ),
    ("a reward model", config(architectures=["Qwen2ForSequenceClassification"]), "not a causal language"),
    (
        "padding beyond the embeddings",
        config(pad_token_id=999),
        "pad_token_id=999, .*: set pad_token_id to null",
    ),
    ("a width in words", config(hidden_size="big"), "hidden_size.*expected int, got str"),
    ("an unknown activation", config(hidden_act="wow"), "KeyError: 'wow'"),
    ("a list for a configuration", text("config.json", "[]"), "config.json"),
    ("no weights", lambda folder: (folder / "model.safetensors").unlink(), "weights cannot be read"),
    ("empty weights", text("model.safetensors", ""), "weights cannot be read"),
    ("no JSON for generation", text("generation_config.json", "{"), r"generation_config\.json: expected"),
    ("a list for generation", text("generation_config.json", "[]"), r"generation_config\.json: expected"),
    ("no JSON for a tokenizer", text("tokenizer.json", "{"), "no tokenizer"),
    ("a tokenizer of nothing", text("tokenizer.json", '{"model": {}}'), "no tokenizer"),
    ("a list for a tokenizer", text("tokenizer_config.json", "[]"), "no tokenizer"),
]


@pytest.mark.parametrize("name", ["tied", "untied"])
@pytest.mark.parametrize(("damage", "message"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_load__what_is_not_sound_is_refused_in_one_line(
    name: str, damage: Damage, message: str, copy: Callable[[str], Path]
):
    folder = copy(name)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        _ = load_model(str(folder)), load_tokenizer(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            weights(lambda held: held.update({"v_head.summary.weight": torch.zeros(1, 32)})),
            id="a value head",
        ),
        pytest.param(
            weights(lambda h: h.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})),
            id="frequencies of older files",
        ),
        pytest.param(renamed(lambda key: key), id="nothing"),
        pytest.param(
            config(auto_map={"AutoModelForCausalLM": "code.M"}), id="code beside a known architecture"
        ),
        pytest.param(
            lambda folder: (
                (folder / "custom_generate").mkdir(),
                (folder / "custom_generate" / "generate.py").write_text("raise SystemExit(9)"),
            ),
            id="code for generation",
        ),
    ],
)
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_load__what_does_not_change_the_model_is_let_pass(
    name: str, damage: Damage, copy: Callable[[str], Path], whole: dict[str, Path]
):
    """And no code is run."""
    folder = copy(name)
    damage(folder)
    found, sound = load_model(str(folder)), load_model(str(whole[name]))
    for one, two in zip(found.parameters(), sound.parameters(), strict=True):
        assert torch.equal(one, two)


def test_load_tokenizer__with_code_of_its_own_is_refused(copy: Callable[[str], Path]):
    folder = copy("untied")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}})
    )
    (folder / "code.py").write_text("raise SystemExit(9)")
    with pytest.raises(UserError, match="its tokenizer comes with Python code"):
        load_tokenizer(str(folder))


def test_load__no_code_of_a_model_is_run_wherever_one_is_read():
    """On a terminal transformers asks where it is not told."""
    source = Path(__file__).parents[2] / "src" / "openprime"
    pattern = r"Auto\w+\.from_(?:pretrained|config)\((?:[^()]|\([^()]*\))*\)"
    calls = [call for file in source.rglob("*.py") for call in re.findall(pattern, file.read_text())]
    assert len(calls) >= 7
    assert [call for call in calls if "trust_remote_code=False" not in call] == []


def test_check_weights__names_come_in_the_order_of_the_layers():
    missing = [f"model.layers.{i}.mlp.up_proj.weight" for i in (11, 2, 9, 1, 10)]
    with pytest.raises(UserError, match=r"layers\.1\..*layers\.2\..*layers\.9\..*layers\.10\..* and 1 more"):
        check_weights("a", make("llama"), missing, [])


GENERATION = [
    {"eos_token_id": 2, "temperature": 0.6},
    {"do_sample": False, "top_p": 0.8, "top_k": 20},
    {"temperature": 0.0},
    {"max_new_tokens": 0},
    {"num_return_sequences": 4},
    {"early_stopping": "soon"},
    {"cache_implementation": "hybrid"},
    {"cache_implementation": "none of today's"},
    {"pad_token_id": -1},
    {"chat_format": "chatml", "max_window_size": 24000, "repetition_penalty": 1.1},
    {"watermarking_config": {"greenlist_ratio": 9}},
    {"force_words_ids": [[1]], "forced_decoder_ids": [[1, 2]], "penalty_alpha": 0.6},
    {"_from_model_config": True, "transformers_version": "4.37.0"},
]


@pytest.mark.parametrize("values", GENERATION, ids=json.dumps)
def test_save_model__any_generation_configuration_is_exported_as_it_was(
    values: dict, copy: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    folder = copy("tied")
    (folder / "generation_config.json").write_text(json.dumps(values))
    model = load_model(str(folder))
    LM(model).try_save(tokenizer)
    save_model(model, tokenizer, tmp_path / "again")
    written = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert {key: written.get(key) for key in values if key != "transformers_version"} == {
        key: found for key, found in values.items() if key != "transformers_version"
    }
    load_model(str(tmp_path / "again"))


@pytest.mark.parametrize("ends", ["2", 2.0, [[2]], {"a": 1}])
def test_named_end_tokens__that_are_no_token_ids_are_refused(
    ends: object, copy: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
):
    folder = copy("tied")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match="eos_token_id: expected a token id or a list"):
        named_end_tokens(str(folder), tokenizer)


def test_read_generation__older_files_that_transformers_refuses_are_refused_in_one_line(
    copy: Callable[[str], Path],
):
    folder = copy("tied")
    (folder / "generation_config.json").unlink()
    config(max_new_tokens=0)(folder)
    with pytest.raises(UserError, match=r"config\.json: `max_new_tokens` must be"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("listed", "own", "ends"),
    [([7, 999], 2, {2, 7}), ([-1], 2, {2}), ([-1, 999], 2, {2}), (999, None, set())],
)
def test_end_tokens__are_tokens_of_the_model(listed: object, own: int | None, ends: set[int]):
    """Where none is, no response could ever end."""
    tokenizer = build_tokenizer(["a b c"], 280)
    tokenizer.chat_template = None
    if own is None:
        tokenizer.eos_token = None
    model = make("llama")
    model.generation_config = GenerationConfig(eos_token_id=listed)
    if ends:
        assert end_tokens(model, tokenizer) == ends
        return
    with pytest.raises(UserError, match=r"no response could ever end: the model has 60 tokens, .* \[999\]"):
        end_tokens(model, tokenizer)


def test_read_architecture__takes_a_file_too(whole: dict[str, Path]):
    assert read_architecture(str(whole["tied"] / "config.json")).model_type == "qwen2"


# What a model can take


def gpt2(positions: int) -> PreTrainedModel:
    sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(n_positions=positions, **sizes)).eval()


@pytest.mark.parametrize(
    ("rows", "responses", "message"),
    [
        ([([1, 2], [3, 29])], 0, ""),
        ([([1, 2], [3, 30])], 0, r"the file: token 30 \('.*'\) is beyond the model's 30 embeddings.*resize"),
        ([([1, 2],), ([], [31])], 0, "token 31"),
        ([([1] * 3, [1] * 5)], 0, ""),
        ([([1] * 3, [1] * 6)], 0, r"up to 9 tokens, but the model has 8 positions: shorten them"),
        ([([1] * 3,), ([1] * 5,)], 3, ""),
        ([([1] * 3,), ([1] * 5,)], 4, "up to 9 tokens"),
        ([], 99, ""),
        ([([], [])], 99, ""),
    ],
)
def test_check_rows__token_ids_and_lengths_that_a_model_cannot_take(
    rows: list, responses: int, message: str, tokenizer: PreTrainedTokenizerBase
):
    given = gpt2(8), tokenizer, rows, "the file", "shorten them", responses
    if not message:
        check_rows(*given)
        return
    with pytest.raises(UserError, match=message):
        check_rows(*given)


def test_embeddings__are_the_fewer_of_those_that_are_read_and_written():
    model = make("llama")
    model.set_output_embeddings(torch.nn.Linear(32, 50))
    assert embeddings(model) == 50


@pytest.mark.parametrize(
    ("name", "most"),
    [("Llama, dynamic NTK", 64), ("Phi-3, LongRoPE", 32), ("Phi-3.5-MoE", 32), ("Llama, YaRN", None)],
)
def test_positions__end_where_rotation_begins_to_depend_on_the_longest_row(name: str, most: int | None):
    """A short row alone, and beside a row that is one token longer than the limit: its own hidden states."""
    model = make_architecture(name)
    assert positions(model)[0] == most
    width = most or 64
    ids = torch.arange(2 * (width + 1)).view(2, -1) % 60

    def first(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits[0, :8]

    alone = first(ids[:1, :8])
    torch.testing.assert_close(first(ids[:, :width]), alone, atol=1e-4, rtol=1e-4)
    beside = (first(ids) - alone).abs().max()
    assert beside > 0.01 if most else beside < 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [("BERT", "tokens that come later change"), ("DeepSeek-V3.2", "choose the tokens that they attend to")],
)
def test_check_scoring__a_model_that_cannot_be_compared_is_refused(name: str, message: str):
    with pytest.raises(UserError, match=message):
        check_scoring("it", LM(make_architecture(name)))


def test_check_scoring__what_fails_in_bfloat16_alone_is_refused_there():
    """DBRX adds its experts' results in another precision."""
    model = make_architecture("DBRX")
    check_scoring("it", LM(model))
    with pytest.raises(UserError, match=r"a dbrx model cannot be used: .*BFloat16"):
        check_scoring("it", LM(model, Placement(bfloat16=True)))


def test_check_scoring__takes_a_temperature_and_a_model_in_training_mode():
    check_scoring("it", LM(make("qwen2").train(), temperature=0.3))


# In shares


@pytest.mark.slow
def test_load_trained__two_ranks_refuse_the_same_in_one_line_each(whole: dict[str, Path], tmp_path: Path):
    chosen = [case for case in REFUSED if "weights" in case[2] or "missing" in case[2] or "layers" in case[2]]
    chosen = [case for case in chosen if "GPTQ" not in case[0]]
    for i, (_, damage, _) in enumerate(chosen):
        damage(Path(shutil.copytree(whole["untied"], tmp_path / f"{i:02}")))
    (tmp_path / "list.json").write_text(json.dumps([message for *_, message in chosen]))
    shutil.copytree(whole["untied"], tmp_path / "sound")
    here = Path(__file__).parents[1]
    paths = [str(here), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *torchrun, str(here / "support" / "refused.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("refused") == len(chosen) >= 12


# What will be exported


@pytest.mark.parametrize(
    ("name", "targets", "said"),
    [
        ("Llama", (), ""),
        ("Llama", ("q_proj",), ""),
        ("Qwen3-MoE", (), "experts.gate_up_proj, experts.down_proj"),
        ("Qwen3-MoE", ("q_proj", "v_proj"), "experts.gate_up_proj, experts.down_proj"),
        ("DeepSeek-V3", ("gate_proj", "up_proj", "down_proj"), "experts.gate_up_proj, experts.down_proj"),
        ("Mamba", (), "mixer.out_proj"),
    ],
)
def test_add_adapter__says_what_of_the_blocks_gets_none(name: str, targets: tuple[str, ...], said: str):
    pytest.importorskip("peft")
    notes = add_adapter(make_architecture(name), "policy", LoRAConfig(rank=2, targets=targets))
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_add_adapter__shared_experts_and_dense_layers_get_one_where_routed_experts_do_not():
    pytest.importorskip("peft")
    model = make_architecture("DeepSeek-V3")
    add_adapter(model, "policy", LoRAConfig(rank=2))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    layers = {
        name for name, module in make_architecture("DeepSeek-V3").named_modules() if type(module) is Linear
    }
    assert adapted == layers - {"lm_head"}
    assert {"model.layers.0.mlp.gate_proj", "model.layers.1.mlp.shared_experts.up_proj"} <= adapted


@pytest.mark.parametrize("target", ["dt_proj", "out_proj"])
def test_add_adapter__a_layer_whose_weight_a_mixer_takes_itself_is_none_to_adapt(target: str):
    pytest.importorskip("peft")
    with pytest.raises(UserError, match=rf"\['{target}'\]: not among .* in_proj, x_proj"):
        add_adapter(make_architecture("Mamba"), "policy", LoRAConfig(rank=2, targets=(target,)))


def adapted() -> PreTrainedModel:
    model = make("qwen2")
    add_adapter(model, "policy", LoRAConfig(rank=2))
    return model


def adapter_values(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if ".lora_B." in name])


def test_try_save__gives_an_adapter_values_and_takes_them_away(tokenizer: PreTrainedTokenizerBase):
    pytest.importorskip("peft")
    model, state = adapted(), torch.manual_seed(3).get_state()
    LM(model, adapter="policy").try_save(tokenizer)
    assert not adapter_values(model).any()
    assert torch.equal(torch.get_rng_state(), state)


def test_try_save__an_adapter_that_the_forward_pass_does_not_see_is_refused(
    tokenizer: PreTrainedTokenizerBase,
):
    pytest.importorskip("peft")
    model = adapted()
    mlp: Any = model.get_submodule("model.layers.0.mlp")
    own = mlp.down_proj.base_layer.weight
    mlp.forward = lambda x: linear(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), own)
    with pytest.raises(UserError, match="lora: the exported model would not be the trained one"):
        LM(model, adapter="policy").try_save(tokenizer)
    assert not adapter_values(model).any()


def test_try_save__what_cannot_be_written_is_said_before_a_run(monkeypatch: pytest.MonkeyPatch):
    unwritable = build_tokenizer(["a b c"], 280)

    def fail(folder: Path) -> None:
        raise KeyError("added_tokens")

    monkeypatch.setattr(unwritable, "save_pretrained", fail)
    with pytest.raises(UserError, match=r"could not be exported after training: KeyError: 'added_tokens'"):
        LM(make("llama")).try_save(unwritable)
