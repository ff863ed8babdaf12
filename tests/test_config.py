"""Configurations: what is refused, what is said about it, which class of settings is chosen, and the defaults."""

import ast
import functools
import inspect
import itertools
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from openprime import config as everything
from openprime.cli import COMMANDS, read_arguments
from openprime.config import (
    ALGORITHMS,
    KINDS,
    AdvantageConfig,
    AutoEngineConfig,
    BenchmarkConfig,
    DistillRLConfig,
    EvaluateConfig,
    GenerateConfig,
    OfflinePRMConfig,
    OutcomeConfig,
    PrepareConfig,
    PrimeConfig,
    RLConfig,
    ServerEngineConfig,
    SFTConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
    build,
    commands,
    find_config,
    keys_of,
    read_config,
    sections,
    value_of,
)
from openprime.types import UserError

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
SCHEMAS: dict[str, type[BaseModel]] = {
    "sft": SFTConfig,
    "rl": RLConfig,
    "prm": OfflinePRMConfig,
    "data": PrepareConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "benchmarks": BenchmarkConfig,
}
NEEDED = {"model": "m", "out": "o", "data": {"source": "task:clock"}}
FLAGS = ["--model", "m", "--out", "o", "--data.source", "task:clock"]


def nested(text: str) -> dict:
    """{"a": {"b": 1}, "c": "x"} for `a.b=1 c=x`."""
    values: dict = {}
    for key, _, value in (setting.partition("=") for setting in text.split()):
        *parents, name = key.split(".")
        section = functools.reduce(lambda inner, parent: inner.setdefault(parent, {}), parents, values)
        section[name] = yaml.safe_load(value)
    return values


def rl(text: str) -> RLConfig:
    """A configuration of `openprime rl` with what has no default filled in."""
    return build(RLConfig, NEEDED | nested(text))


def read(tmp_path: Path, text: str, schema: type[BaseModel] = RLConfig, **flags: str) -> BaseModel:
    """A configuration from the text of a file."""
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(schema, path, flags)


def fault(tmp_path: Path, text: str) -> str:
    """What is said of a file of `openprime rl`, behind the file's name."""
    with pytest.raises(ValueError) as error:
        read(tmp_path, text)
    file, _, said = str(error.value).partition(": ")
    assert file == str(tmp_path / "my.yaml")
    return said


# Files


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_read_config__every_file_of_the_package_passes_its_check(path: Path, tmp_path: Path, monkeypatch):
    assert not read_config(SCHEMAS[path.parent.name], path).check()
    monkeypatch.chdir(tmp_path)  # they are found from anywhere
    for name in (path.relative_to(ROOT), path.relative_to(ROOT / "configs")):
        assert find_config(str(name)).read_text() == path.read_text()


def test_find_config__a_file_here_comes_before_one_of_the_package(tmp_path: Path, monkeypatch):
    (tmp_path / "configs" / "rl").mkdir(parents=True)
    (tmp_path / "configs" / "rl" / "tiny.yaml").write_text("steps: 7")
    monkeypatch.chdir(tmp_path)
    assert read_config(RLConfig, find_config("configs/rl/tiny.yaml")).steps == 7


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("stepz=3", "unknown key stepz; did you mean steps?"),
        ("prm.lrr=1", "unknown key prm.lrr; did you mean prm.lr?"),
        ("policy.lrr=1", "unknown key policy.lrr; did you mean policy.lr?"),
        ("rollout.prompt=3", "unknown key rollout.prompt; did you mean rollout.prompts?"),
        ("data.horizn=3", "unknown key data.horizn; did you mean data.horizon?"),
        ("advantage.wihten=true", "unknown key advantage.wihten; did you mean advantage.whiten?"),
        ("beta=0.1", "unknown key beta; did you mean prm.beta?"),
        ("adventage.process_weight=1", "unknown key adventage; did you mean advantage?"),
        (
            "engine.kind=vllm engine.gpu_memori=1",
            "unknown key engine.gpu_memori; did you mean engine.gpu_memory?",
        ),
        ("algorithm=outcom", "no algorithm 'outcom'; did you mean outcome?"),
        ("algorithm=3", "no algorithm '3'; there are: prime, outcome, distill"),
        # Keys that another algorithm or engine has.
        ("distill.low=-1", "distill needs algorithm=distill"),
        ("algorithm=outcome prm.lr=1", "prm needs algorithm=prime or algorithm=distill"),
        ("algorithm=outcome advantage.scaling=none", "advantage.scaling needs algorithm=prime"),
        ("algorithm=distill prm.beta=1", "prm.beta needs algorithm=prime"),
        ("algorithm=distill prm.lora.rank=1", "prm.lora needs algorithm=prime"),
        ("engine.gpu_memory=0.5", "engine.gpu_memory needs engine.kind=vllm"),
        ("engine.kind=vllm engine.urls=[a]", "engine.urls needs engine.kind=server"),
        ("engine.kind=server engine.tensor_parallel=2", "engine.tensor_parallel needs engine.kind=vllm"),
        ("engine.timeout=2", "engine.timeout needs engine.kind=vllm or engine.kind=server"),
        ("qqqq=1", "unknown key qqqq; valid here: advantage, algorithm, data, device, dtype, engine, eval, "),
    ],
)
def test_read_config__an_unknown_key_is_told_the_nearest_or_who_has_it(
    tmp_path: Path, settings: str, said: str
):
    found = fault(tmp_path, yaml.safe_dump(nested(settings)))
    assert found.startswith(said) if said.endswith(", ") else found == said


OUT_OF_RANGE = """
steps=0 steps=many filter.low=1.5 filter.high=-0.1 filter.max_draws=0.5 rollout.responses=1 rollout.prompts=0
rollout.temperature=0 rollout.truncated=maybe advantage.estimator=gae advantage.granularity=word
advantage.process_weight=-1 advantage.process_gamma=1.01 policy.clip_low=1 policy.clip_grad=0 policy.minibatch=0
prm.beta=0 prm.update=nevr prm.lr=-1 data.horizon=1 dtype=float16 keep=0
"""


@pytest.mark.parametrize("setting", OUT_OF_RANGE.split())
def test_read_config__a_value_out_of_range_is_named(tmp_path: Path, setting: str):
    key, _, value = setting.partition("=")
    said = fault(tmp_path, yaml.safe_dump(nested(setting)))
    assert said.startswith(f"{key}: Input should be")
    assert said.endswith(f"(found {yaml.safe_load(value)!r})")


def test_read_config__a_fault_of_an_engine_is_named(tmp_path: Path):
    assert fault(tmp_path, "engine: {kind: vllm, gpu_memory: 2}").startswith(
        "engine.gpu_memory: Input should be"
    )
    assert fault(tmp_path, "engine: {kind: vlm}").startswith("engine: Input tag 'vlm'")


def test_read_config__every_fault_of_a_file_is_named(tmp_path: Path):
    said = fault(tmp_path, "steps: 0\nprm: {lrr: 1, beta: 0}")
    assert all(key in said for key in ("steps", "prm.lrr", "prm.beta"))


@pytest.mark.parametrize("text", ["a: [", "a: 1\n b: 2", "a: 'x", "\tx: 1"])
def test_read_config__invalid_yaml_names_the_line(tmp_path: Path, text: str):
    said = fault(tmp_path, text)
    assert said.startswith("not valid YAML: ")
    assert "line " in said


def test_read_config__what_is_no_text_or_has_no_keys_is_refused(tmp_path: Path):
    for text in ("- 1", "7", "word"):
        assert fault(tmp_path, text).startswith("expected keys and values")
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"my\.yaml: not valid YAML"):
        read_config(RLConfig, tmp_path / "my.yaml")


@pytest.mark.parametrize(
    ("schema", "given", "key", "default"),
    [
        (RLConfig, "eval_data.source=task:clock", "eval_data.split", "test"),
        (BenchmarkConfig, "data.source=task:clock", "data.split", "test"),
        (BenchmarkConfig, "data.source=task:clock", "data.too_long", "error"),
        (EvaluateConfig, "verify.workers=2", "verify.code.score", "all"),
        (EvaluateConfig, "verify.code.memory_mb=64", "verify.code.seconds", 10.0),
        (SFTConfig, "optimizer.lr=0.1", "optimizer.schedule", "cosine"),
        (SFTConfig, "optimizer.lr=0.1", "optimizer.warmup", 0.1),
        (SFTConfig, "eval.samples=4", "eval.every", 0),
        (SFTConfig, "eval.every=10", "eval.max_response_tokens", 512),
        (RLConfig, "policy.minibatch=8", "policy.lr", 5e-7),
        (RLConfig, "prm.beta=0.1", "prm.clip_grad", 10.0),
        (RLConfig, "prm.beta=0.1", "prm.lr", 1e-6),
        (RLConfig, "algorithm=distill prm.warmup=0.1", "prm.clip_grad", 10.0),
        (RLConfig, "engine.kind=vllm engine.timeout=3", "engine.gpu_memory", 0.5),
    ],
)
def test_read_config__a_section_keeps_the_defaults_of_what_it_does_not_name(
    tmp_path: Path, schema: type[BaseModel], given: str, key: str, default: object
):
    """A flag changes one setting; the same setting in a file must not change its neighbours."""
    assert value_of(read(tmp_path, yaml.safe_dump(nested(given)), schema), key) == default


# Values without sense


SENSELESS = """
rollout.prompts=1e30 rollout.prompts=1000000000000000000000000000000 rollout.responses=100000
rollout.max_response_tokens=10000000 rollout.temperature=1e-308 rollout.temperature=1e300 rollout.sequences=2147483648
steps=9999999999 seed=-1 seed=4294967296 keep=1e300 data.limit=-1 data.limit=1e10 data.max_prompt_tokens=1e9
policy.lr=.inf policy.lr=.nan policy.lr=1e-300 policy.lr=1e9 policy.weight_decay=.inf policy.clip_grad=1e-308
policy.clip_high=.inf policy.clip_low=1e-300 policy.epochs=1000000 policy.beta2=1 policy.importance_clip=.nan
policy.lora.rank=100000 policy.lora.alpha=0 prm.beta=1e-308 prm.beta=.inf advantage.process_weight=.inf
advantage.outcome_weight=-.inf advantage.outcome_gamma=.nan filter.max_draws=.inf filter.low=.nan
eval.samples=1000000 eval.max_response_tokens=1e9 verify.workers=100000 verify.seconds=.inf verify.seconds=0
verify.code.memory_mb=1e15 verify.code.seconds=1e-300 parallel.cpu_offload=7 model=[a] out={a:1} rollout=3
data.gym={a:.inf} data.gym={a:2020-01-01} steps=[1] steps=null policy=null engine=null
"""


@pytest.mark.parametrize("setting", SENSELESS.split())
def test_read_config__a_value_without_sense_is_refused_in_a_line(tmp_path: Path, setting: str):
    key, _, value = setting.partition("=")
    given = nested(f"{key}=0")
    text = yaml.safe_dump(NEEDED | given).replace(
        f"{key.split('.')[-1]}: 0", f"{key.split('.')[-1]}: {value}"
    )
    said = fault(tmp_path, text.replace("{a:", "{a: "))
    assert said.startswith(f"{key.split('.')[0]}")
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            "rollout.prompts=100000 rollout.responses=1000",
            r"rollout: prompts \* responses: at most 4,194,304",
        ),
        (
            "rollout.sequences=100000 rollout.max_response_tokens=10000",
            "100,000 sequences of up to 10,000 tokens",
        ),
        (
            "rollout.responses=16384 rollout.max_response_tokens=100000",
            "16,384 sequences of up to 100,000 tokens",
        ),
        ("eval.samples=10000 eval.max_response_tokens=1000000", "10,000 sequences of up to 1,000,000 tokens"),
        ("engine.kind=server engine.urls=[localhost]", "'localhost' is no address such as http://node1:8000"),
        ("engine.kind=server engine.urls=[ftp://a]", "is no address"),
        ("engine.kind=server engine.urls=[http://a,http://b:x]", "'http://b:x' is no address"),
        ("engine.kind=server engine.urls=[http://a:99999]", "is no address"),
        ("engine.kind=server engine.urls=[http://]", "is no address"),
    ],
)
def test_rl_check__sizes_that_no_memory_holds_and_addresses_of_nothing(settings: str, match: str):
    with pytest.raises(ValueError, match=match):
        rl(settings).check()


def test_sft_config__a_new_model_is_a_small_one():
    with pytest.raises(
        ValueError, match=r"hidden_size, layers: about 10,477,371,392 parameters, more than 2,147,4"
    ):
        SFTConfig.model_validate(NEEDED | {"new_model": {"hidden_size": 16384}})
    SFTConfig.model_validate(NEEDED | {"new_model": {"hidden_size": 4096, "layers": 8}})


def test_data_config__an_embedded_task_makes_so_many_rows(tmp_path: Path):
    said = fault(tmp_path, "data: {source: task:clock, limit: 2000000}")
    assert said == "data: limit=2000000: an embedded task makes at most 1,048,576 rows"
    assert read(tmp_path, "data: {source: d.jsonl, limit: 2000000}").data.limit == 2_000_000


@pytest.mark.parametrize("value", ["a\0b", "\ud800", ["a", "b\0"], {"url": "\udfff"}])
def test_schemas__text_that_no_file_holds_is_refused(value: object):
    key = "where" if isinstance(value, dict) else "allow_modules" if isinstance(value, list) else "source"
    with pytest.raises(
        UserError, match=rf"^the flags: data\.{key}: Input should be text without zeros and halves"
    ):
        build(SFTConfig, {"data": {key: value}})
    build(SFTConfig, {"data": {"source": "Zoë ✓ 𝕏\tb"}})


ODD = {
    "another file": b"\x7fELF\x02\x01\x01\x00\x00",
    "zeros": b"\0" * 50,
    "utf-16": "steps: 3".encode("utf-16"),
    "latin-1": "out: caf\u00e9".encode("latin-1"),
    "a zero in it": b"out: a\0b",
    "a tab": b"\tsteps: 3",
    "an open list": b"out: [a",
    "an open quote": b"out: 'a",
    "two documents": b"steps: 3\n---\nsteps: 4\n",
    "an unknown tag": b"out: !mine a",
    "a tag of Python": b"out: !!python/object/apply:os.system [ls]",
    "no such anchor": b"out: *a",
    "an anchor within itself": b"data: &a {where: *a}",
    "a list within itself": b"data: {gym: {a: &a [*a]}}",
    "a billion laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 9)) for n in b"bcdefghi")
    + b"data: {gym: {a: *i}}",
    "laughs in tables": b"a: &a {x: 1}\n"
    + b"".join(
        b"%c: &%c {%s}\n" % (n, n, b",".join(b"k%d: *%c" % (k, n - 1) for k in range(9))) for n in b"bcdefghi"
    ),
    "very deep": b"out: " + b"[" * 5000 + b"]" * 5000,
    "very deep tables": b"".join(b" " * n + b"a:\n" for n in range(3000)),
    "a number of 5,000 digits": b"steps: " + b"1" * 5000,
    "a date that is none": b"out: 2020-13-45",
    "a set": b"out: !!set {a, b}",
    "bytes": b"out: !!binary AAECAw==",
    "no bytes": b"out: !!binary \xc3\xa9",
    "a key of null": b"null: 3",
    "a key of a number": b"3: 4",
    "a key of truth": b"yes: 4",
    "a key of a list": b"? [a, b]\n: 3",
    "a key of a table": b"? {a: b}\n: 3",
    "a list": b"- steps\n- 3",
    "a text": b"steps=3",
    "a number": b"3",
    "a tag in a list": b"algorithm: [prime]",
    "a kind in a table": b"engine: {kind: {a: b}}",
    "no kind": b"engine: {kind: null}",
    "a section of text": b"rollout: many",
    "a section of a list": b"data: [source, task]",
    "a merge of text": b"<<: text",
    "a key of 100,000 letters": b"x" * 100_000 + b": 3",
    "a text of 100,000 letters": b"steps: " + b"x" * 100_000,
    "control characters": b'steps: "\\e[31m\\r\\n"',
    "half a character": b'out: "\\ud800"',
}


@pytest.mark.parametrize("name", ODD)
def test_read_config__an_odd_file_is_refused_in_a_line(tmp_path: Path, name: str):
    path = tmp_path / "my.yaml"
    path.write_bytes(ODD[name])
    with pytest.raises(UserError) as error:
        read_config(RLConfig, path).check()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"# nothing",
        b"---\n",
        b"null",
        b"\xef\xbb\xbfsteps: 592",
        b"steps: &a 592\nsave_every: 50\r\n",
        b"{}",
    ],
)
def test_read_config__an_empty_or_unusual_file_is_read(tmp_path: Path, text: bytes):
    (tmp_path / "my.yaml").write_bytes(text)
    assert read_config(RLConfig, tmp_path / "my.yaml") == PrimeConfig()


# Which settings there are: the algorithm and the engine


@pytest.mark.parametrize(
    ("algorithm", "schema"),
    [("prime", PrimeConfig), ("outcome", OutcomeConfig), ("distill", DistillRLConfig)],
)
def test_algorithms__the_file_or_the_flag_chooses_the_class_of_settings(
    tmp_path: Path, algorithm: str, schema: type[RLConfig]
):
    assert read(tmp_path, f"algorithm: {algorithm}") == schema()
    assert read(tmp_path, "", algorithm=algorithm) == schema()
    for flags in (["--algorithm", algorithm], [f"--algorithm={algorithm}"]):
        assert read_arguments("RLConfig", "rl", [*FLAGS, *flags]) == schema.model_validate(NEEDED)
    assert read(tmp_path, "# nothing\n") == PrimeConfig()


def test_algorithms__what_has_no_effect_does_not_exist():
    def settings(schema: type[BaseModel], *path: str) -> set[str]:
        for name in path:
            schema = schema.model_fields[name].annotation
        return set(schema.model_fields)

    assert settings(OutcomeConfig) == settings(PrimeConfig) - {"prm"}
    assert settings(DistillRLConfig) == settings(PrimeConfig) - {"advantage"} | {"distill"}
    of_outcomes = {"estimator", "preset", "outcome_gamma", "whiten"}
    assert settings(OutcomeConfig, "advantage") == of_outcomes < settings(PrimeConfig, "advantage")
    own = settings(PrimeConfig, "policy") - settings(DistillRLConfig, "policy")
    assert own == {"clip_low", "clip_high", "reduction", "importance_clip"}
    own = settings(PrimeConfig, "prm") - settings(DistillRLConfig, "prm")
    assert own == {"model", "reference", "beta", "loss", "margin", "balance", "update", "lora"}


@pytest.mark.parametrize(
    ("given", "flags", "note", "kept"),
    [
        (
            "prm.lr=1 advantage.process_weight=2 advantage.whiten=true",
            "--algorithm outcome",
            "algorithm=outcome has no advantage.process_weight, prm",
            "advantage.whiten=true",
        ),
        (
            "engine.kind=vllm engine.gpu_memory=0.4 engine.timeout=9",
            "--engine.kind=server --engine.urls http://a",
            "engine.kind=server has no engine.gpu_memory",
            "engine.timeout=9",
        ),
        (
            "algorithm=distill prm.minibatch=9 distill.low=-1 engine.kind=vllm engine.timeout=9",
            "--algorithm prime --engine.kind transformers",
            "algorithm=prime, engine.kind=transformers has no distill, engine.timeout",
            "prm.minibatch=9",
        ),
        ("rollout.prompts=9", "--algorithm outcome", "", "rollout.prompts=9"),
    ],
)
def test_read_arguments__a_flag_over_the_file_s_choice_leaves_its_keys_out_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture, given: str, flags: str, note: str, kept: str
):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(nested(given)))
    config = read_arguments("RLConfig", "rl", [str(path), *FLAGS, *flags.split()])
    key, _, value = kept.partition("=")
    assert value_of(config, key) == yaml.safe_load(value)
    assert capsys.readouterr() == ("", f"note: {note}: left out of {path}\n" if note else "")


def test_read_arguments__a_flag_of_another_algorithm_or_engine_is_told_which(tmp_path: Path):
    def said(*flags: str) -> str:
        with pytest.raises(ValueError) as error:
            read_arguments("RLConfig", "rl", list(flags))
        return str(error.value)

    assert said("--algorithm=outcome", "--prm.lr", "1") == "prm.lr needs algorithm=prime or algorithm=distill"
    assert said("--distill.kl-coefficient=1") == "distill.kl_coefficient needs algorithm=distill"
    assert said("--engine.gpu-memory", "0.5") == "engine.gpu_memory needs engine.kind=vllm"
    assert said("--algorithm", "primo") == "the flags: no algorithm 'primo'; did you mean prime?"
    assert said("--engine.kind", "vlm").startswith("the flags: engine: Input tag 'vlm'")
    with pytest.raises(ValueError, match="unknown key stepz"):  # what no algorithm has stays an error
        read(tmp_path, "{prm: {lr: 1}, stepz: 3}", algorithm="outcome")


@pytest.mark.parametrize("command", ["RLConfig", "GenerateConfig", "EvaluateConfig"])
def test_read_arguments__every_engine_has_its_own_settings(command: str):
    given = ["--benchmark", "clock", "--out", "o"] if command == "EvaluateConfig" else FLAGS

    def engine(*flags: str) -> object:
        return read_arguments(command, "x", [*given, *flags]).engine

    assert engine() == AutoEngineConfig()
    assert engine("--engine.kind", "transformers") == TransformersEngineConfig()
    vllm = engine("--engine.kind", "vllm", "--engine.gpu-memory", "0.3", "--engine.tensor-parallel", "2")
    assert vllm == VLLMEngineConfig(gpu_memory=0.3, tensor_parallel=2)
    free = {"max_num_batched_tokens": 512, "compilation_config": {"level": 0}}
    assert engine("--engine.kind", "vllm", "--engine.args", str(free)) == VLLMEngineConfig(args=free)
    urls = ("http://a:8000", "https://b/")
    server = engine("--engine.kind", "server", "--engine.urls", *urls, "--engine.timeout", "9")
    assert server == ServerEngineConfig(urls=urls, timeout=9)


# Flags


def test_read_arguments__flags_go_over_the_file(tmp_path: Path):
    path = tmp_path / "my.yaml"
    path.write_text("steps: 9\nseed: 4\nprm: {beta: 0.3, lr: 0.1}\nfilter: {low: 0.1}\n")
    flags = ["--steps=5", "--prm.lr=0.2", "--advantage.process-weight=2", "--advantage.whiten=True"]
    config = read_arguments("RLConfig", "rl", [str(path), *FLAGS, *flags])
    assert (config.steps, config.prm.lr, config.advantage.process_weight) == (5, 0.2, 2)
    assert config.advantage.whiten is True
    assert (config.seed, config.prm.beta, config.filter.low) == (4, 0.3, 0.1)  # the file's
    assert (config.filter.high, config.prm.clip_grad) == (0.8, 10.0)  # defaults
    config = read_arguments("RLConfig", "rl", [*FLAGS, "--resume", "--eval-data.source", "task:clock"])
    assert (config.model, config.resume, config.eval_data.split) == ("m", True, "test")


ARGS = "--engine.kind vllm --engine.args"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--steps 0", "the flags: steps: Input should be greater than 0 (found '0')"),
        ("--steps=-3", "the flags: steps: Input should be greater than 0 (found '-3')"),
        (
            "--steps abc",
            "the flags: steps: Input should be a valid integer, unable to parse string as an integer",
        ),
        ("--filter.low 2", "the flags: filter.low: Input should be less than or equal to 1 (found '2')"),
        ("--prm.loss mse", "the flags: prm.loss: Input should be 'ce', 'dpo' or 'prefix' (found 'mse')"),
        ("--prm.lr inf", "the flags: prm.lr: Input should be a finite number (found 'inf')"),
        ("--advantage.whiten maybe", "the flags: advantage.whiten: Input should be a valid boolean"),
        ("--prm.lrr 1", "unknown key prm.lrr; did you mean prm.lr?"),
        ("--policy.no-loss", "unknown key policy.no_loss; did you mean policy.lr?"),
        ("--qqqq", "unknown key qqqq; valid here: "),
        ("--wandb", "Missing value for argument '--wandb'. Expected 1 values."),
        ("--data.where a", "the flags: data.where: Input should be a valid dictionary (found 'a')"),
        (
            "--data.where {url: 2024}",
            "the flags: data.where.url: Input should be a valid string (found 2024)",
        ),
        ("--data.gym {a", "the flags: data.gym: not valid YAML: while parsing a flow mapping"),
        ("--data.gym", "the flags: data.gym: Input should be a valid dictionary (found None)"),
        ("--eval-data.gym {a: .inf}", "the flags: eval_data.gym: Input should be texts and finite numbers"),
        ("--engine.args {a: 1}", "engine.args needs engine.kind=vllm"),
        (f"{ARGS} {{dtype: float16}}", "the flags: engine.args: dtype is not free: set dtype"),
        (f"{ARGS} {{max_num_seqs: 9}}", "the flags: engine.args: max_num_seqs is not free: set sequences"),
        (
            f"{ARGS} {{logprobs_mode: x}}",
            "the flags: engine.args: logprobs_mode is not free: training needs it",
        ),
        (f"{ARGS} {{a: .inf}}", "the flags: engine.args: Input should be texts and finite numbers"),
        (
            "--prm.lora.targets [q, 3]",
            "the flags: prm.lora.targets.1: Input should be a valid string (found 3)",
        ),
        ("--prm.lora.targets [q", "the flags: prm.lora.targets: not valid YAML: while parsing a flow seq"),
        ("--seed 1 2", "Unrecognized options: 2"),
        ("--seed 1 --resume=3", "the flags: resume: Input should be a valid boolean"),
    ],
)
def test_read_arguments__a_bad_flag_is_named_in_a_line(flags: str, said: str):
    """The same words as for a file, and no page of help."""
    with pytest.raises(UserError) as error:
        read_arguments("RLConfig", "rl", flags.split())
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_read_arguments__lists_tables_and_switches_are_taken(tmp_path: Path):
    path = tmp_path / "rl.yaml"
    path.write_text("data: {gym: {size: 3, left: 1}}\npolicy: {lora: {targets: [o_proj]}}")
    given = ["--policy.lora.targets", "q_proj", "v_proj", "--no-resume", "--advantage.whiten", "None"]
    tables = [
        "--data.where",
        '{"url": "2024", level: hard}',
        "--eval-data.gym={size: [1, 2.5], deep: {a: true}}",
    ]
    flags = [*FLAGS, *given, *tables, "--policy.gradient-checkpointing"]
    config = read_arguments("RLConfig", "rl", [str(path), *flags])
    assert config.data.where == {"url": "2024", "level": "hard"}
    assert config.data.gym == {"size": 3, "left": 1}  # the file's
    assert config.eval_data.gym == {"size": [1, 2.5], "deep": {"a": True}}
    assert config.policy.lora.targets == ("q_proj", "v_proj")
    assert (config.resume, config.advantage.whiten, config.policy.gradient_checkpointing) == (
        False,
        None,
        True,
    )
    config = read_arguments("RLConfig", "rl", [str(path), *FLAGS, "--data.gym", "{left: 2}"])
    assert config.data.gym == {"left": 2}  # the whole table is the flag's
    for targets in (["[q_proj, v_proj]"], ["[q_proj,", "v_proj]"]):  # quoted or not
        config = read_arguments("RLConfig", "rl", [*FLAGS, "--policy.lora.targets", *targets])
        assert config.policy.lora.targets == ("q_proj", "v_proj")
    assert (
        read_arguments("RLConfig", "rl", [str(path), *FLAGS, "--policy.lora.targets"]).policy.lora.targets
        == ()
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_read_arguments__every_setting_has_a_flag(command: str, capsys: pytest.CaptureFixture):
    """Of every command, algorithm and engine; what has none, the library leaves out of the help without a word."""
    schema_name, *_ = COMMANDS[command]
    schema = getattr(everything, schema_name)
    algorithms = ALGORITHMS if schema is RLConfig else ("prime",)
    engines = KINDS if "engine" in schema.model_fields else ("auto",)
    for algorithm, kind in itertools.product(algorithms, engines):
        tags = {"algorithm": algorithm, "engine.kind": kind}
        flags = [f"--{tag}={name}" for tag, name in tags.items() if name not in ("prime", "auto")]
        with pytest.raises(SystemExit):
            read_arguments(schema_name, command, [*flags, "--help"])
        said = capsys.readouterr().out
        for key in keys_of(schema, tags):
            assert f"--{key.replace('_', '-')} " in said.replace(",", " "), key


# Checks across fields


@pytest.mark.parametrize(
    ("schema", "keys"),
    [
        (PrimeConfig, ("model", "out", "data.source")),
        (OutcomeConfig, ("model", "out", "data.source")),
        (DistillRLConfig, ("model", "out", "data.source")),
        (SFTConfig, ("model", "out", "data.source")),
        (GenerateConfig, ("model", "out", "data.source")),
        (OfflinePRMConfig, ("model", "out", "data.source")),
        (EvaluateConfig, ("benchmark", "out")),
        (commands.ScoreConfig, ("file", "prm", "out")),
        (commands.AskConfig, ("model",)),
        (commands.VerifyStageConfig, ("file", "out")),
        (commands.ReportConfig, ("runs",)),
        (commands.WatchConfig, ("runs",)),
        (commands.PlanConfig, ("config",)),
    ],
)
def test_check__what_has_no_default_must_be_set(schema: type[sections.Section], keys: tuple[str, ...]):
    given: dict = {key.split(".")[0]: {"source": "d"} if "." in key else "x" for key in keys}
    given |= {name: ["x"] for name in ("benchmark", "runs") if name in given}
    assert schema.model_validate(given).check() == []
    for key in keys:
        rest = {name: value for name, value in given.items() if name != key.split(".")[0]}
        with pytest.raises(ValueError, match=rf"^{key} is not set: .* give --{key}$"):
            schema.model_validate(rest).check()


STALE = "engine.kind=server engine.urls=[http://a] rollout.max_staleness=1"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ("filter.low=0.9", r"filter\.low=0\.9 is above filter\.high=0\.8"),
        ("algorithm=distill filter.low=0.9", r"filter\.low=0\.9 is above filter\.high=0\.8"),
        ("advantage.process_weight=0", r"process_weight=0 .* set algorithm=outcome instead"),
        ("advantage.preset=released advantage.estimator=grpo", r"advantage\.preset=released .*rloo"),
        ("advantage.preset=released advantage.estimator=reinforce", r"advantage\.preset=released .*rloo"),
        ("algorithm=outcome advantage.preset=released advantage.estimator=grpo", "estimator=rloo only"),
        ("advantage.preset=released advantage.granularity=step", "granularity=token only"),
        ("advantage.step_delimiter=.", r"set advantage\.granularity=step"),
        ("prm.reference=policy rollout.temperature=0.7", r"prm\.reference=policy .*rollout\.temperature"),
        ("prm.update=never", r"prm\.update=never with prm\.model empty"),
        ("prm.loss=dpo prm.balance=true", r"set prm\.loss=ce or prefix, or prm\.balance=false"),
        ("algorithm=distill rollout.temperature=0.7", r"rollout\.temperature=1"),
        (
            "algorithm=distill policy.lora.rank=2 distill.prm_depth=0.5",
            r"distill\.prm_depth=1 or policy\.lora",
        ),
        ("engine.kind=server", r"engine\.urls is empty"),
        ("algorithm=distill engine.kind=server", r"engine\.urls is empty"),
        ("policy.importance_clip=0.5", "shrink"),
        ("engine.kind=vllm rollout.max_staleness=1 policy.importance_clip=2", r"set engine\.kind=server"),
        (STALE, r"set policy\.importance_clip=2"),
        (f"algorithm=distill {STALE}", r"set rollout\.max_staleness=0"),
        ("engine.kind=vllm rollout.temperature=2.1", "temperatures of 0.01 to 2"),
        ("engine.kind=server rollout.temperature=2.5", "temperatures of 0.01 to 2"),
    ],
)
def test_rl_check__settings_that_contradict_each_other_are_refused(settings: str, match: str):
    with pytest.raises(ValueError, match=match):
        rl(settings).check()


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "algorithm=outcome rollout.temperature=0.7",
        "algorithm=distill prm.minibatch=64 policy.epochs=4",
        "filter.low=0.5 filter.high=0.5",
        "advantage.preset=released",
        "advantage.granularity=step advantage.step_delimiter=.",
        "prm.reference=policy",
        "prm.update=never prm.model=trained",
        "prm.update=never prm.reference=policy",
        "prm.balance=true",
        "prm.loss=prefix prm.beta=auto prm.balance=true prm.reference=policy",
        "prm.loss=prefix prm.beta=10 prm.margin=5",
        "advantage.outcome_weight=0",
        "rollout.temperature=0.7",
        "rollout.temperature=2.5",
        f"{STALE} policy.importance_clip=2",
    ],
)
def test_rl_check__their_neighbours_pass_without_a_note(settings: str):
    assert rl(settings).check() == []


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ("prm.margin=5", "no effect with prm.loss=ce: prm.margin"),
        (
            "prm.loss=prefix",
            "prm.loss=prefix takes the mean over tokens, which prm.beta=0.05 makes very small: ",
        ),
    ],
)
def test_rl_check__settings_that_do_little_are_noted(settings: str, note: str):
    (said,) = rl(settings).check()
    assert said.startswith(note)


@pytest.mark.parametrize("value", ["0", "-1", "some"])
def test_read_config__a_number_or_auto_is_refused_in_one_line(tmp_path: Path, value: str):
    for key in ("prm.beta", "policy.mismatch_limit"):
        if (key, value) != ("policy.mismatch_limit", "0"):
            said = fault(tmp_path, yaml.safe_dump(NEEDED | nested(f"{key}={value}")))
            assert said.startswith(f"{key}: Input should be")
            assert said.count(", or 'auto'") == 1
            assert "\n" not in said


def test_generate_check__vllm_is_not_asked_for_temperatures_that_it_refuses():
    for temperature in (2.01, 2.5):
        config = GenerateConfig.model_validate(
            NEEDED | {"temperature": temperature, "engine": {"kind": "vllm"}}
        )
        with pytest.raises(ValueError, match=r"temperatures of 0.01 to 2"):
            config.check()
    GenerateConfig.model_validate(NEEDED | {"temperature": 0, "engine": {"kind": "vllm"}}).check()  # greedy


def test_evaluate_check__benchmarks_and_their_files_go_together():
    def check(**settings: object) -> None:
        EvaluateConfig.model_validate({"out": "o"} | settings).check()

    check(benchmark=["a", "b"], data=["", "f"], responses=["g", ""])
    with pytest.raises(ValueError, match=r"data: 1 files for 2 benchmarks: name one for each, in order"):
        check(benchmark=["a", "b"], data=["f"])
    with pytest.raises(ValueError, match=r"responses: 2 files for 1 benchmarks"):
        check(benchmark=["a"], responses=["f", "g"])
    with pytest.raises(ValueError, match=r"benchmark: one is named twice: a, b, a"):
        check(benchmark=["a", "b", "a"])


def test_sft_check__a_new_model_s_heads_divide_its_width_and_evaluation_has_data():
    with pytest.raises(ValueError, match=r"new_model\.heads must divide new_model\.hidden_size"):
        SFTConfig.model_validate(NEEDED | {"model": "new", "new_model": {"heads": 5}}).check()
    with pytest.raises(ValueError, match=r"eval\.every is set, but eval_data\.source is empty"):
        SFTConfig.model_validate(NEEDED | {"eval": {"every": 5}}).check()


# Trap 3: under whitening only the ratio of the weights has an effect


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("advantage.process_weight=0.5 advantage.outcome_weight=0.5 advantage.whiten=true", "only the ratio"),
        ("advantage.process_weight=5 advantage.outcome_weight=5 advantage.preset=released", "only the ratio"),
        (
            "advantage.process_weight=3 advantage.outcome_weight=0 advantage.whiten=true",
            "process_weight has no",
        ),
        ("advantage.process_weight=5 advantage.outcome_weight=5", ""),  # the scale is then a step size
        ("advantage.process_weight=5 advantage.whiten=true", ""),
        ("advantage.whiten=true", ""),
        ("advantage.process_weight=5 advantage.outcome_weight=5 advantage.whiten=false", ""),
    ],
)
def test_trap_03__weights_without_effect_under_whitening_are_noted(settings: str, said: str):
    notes = rl(settings).check()
    assert len(notes) == bool(said)
    assert all(said in note and "trap 3" in note for note in notes)


# The schema


@pytest.mark.parametrize(("preset", "on"), [("exact", False), ("released", True)])
def test_advantage_config__presets_decide_only_what_is_unset(preset: str, on: bool):
    advantage = AdvantageConfig.model_validate({"preset": preset})
    assert (advantage.scales_by_return, advantage.whitens) == (on, on)
    opposite = {"preset": preset, "scaling": "none" if on else "return", "whiten": not on}
    advantage = AdvantageConfig.model_validate(opposite)
    assert (advantage.scales_by_return, advantage.whitens) == (not on, not on)


def test_prime_config__published_settings_are_the_defaults():
    config = PrimeConfig()
    assert (config.rollout.prompts, config.rollout.responses, config.steps) == (256, 4, 592)
    assert (config.data.max_prompt_tokens, config.rollout.max_response_tokens) == (1024, 3072)
    assert (config.policy.lr, config.policy.minibatch, config.policy.clip_grad) == (5e-7, 256, 1.0)
    assert (config.policy.clip_low, config.policy.clip_high) == (0.2, 0.2)
    assert (config.prm.lr, config.prm.clip_grad, config.prm.beta, config.prm.loss) == (1e-6, 10.0, 0.05, "ce")
    assert (config.filter.low, config.filter.high) == (0.2, 0.8)
    assert (SFTConfig().optimizer.lr, SFTConfig().batch, SFTConfig().epochs) == (1e-5, 96, 3)


def documented(schema: type) -> set[str]:
    """Names with a docstring below them in the source of a class."""
    (node,) = ast.parse(inspect.getsource(schema)).body
    assert isinstance(node, ast.ClassDef)
    pairs = zip(node.body, node.body[1:], strict=False)
    return {
        ast.unparse(field.target)
        for field, after in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }


SECTIONS = [
    c
    for m in (sections, commands)
    for c in vars(m).values()
    if inspect.isclass(c) and c.__module__ == m.__name__
]


@pytest.mark.parametrize("schema", SECTIONS, ids=lambda schema: schema.__name__)
def test_schemas__every_setting_is_documented(schema: type[BaseModel]):
    assert schema.__doc__
    known = set().union(*(documented(c) for c in schema.__mro__ if c in SECTIONS))
    for name, field in schema.model_fields.items():
        is_section = isinstance(field.default, sections.Section)
        assert is_section or name in known, f"{schema.__name__}.{name} has no docstring"
