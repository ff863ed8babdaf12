"""Configuration files: what is refused, what is said about it, and what the defaults are."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from openprime import config as schemas
from openprime.cli import read_arguments
from openprime.config import (
    BenchmarkConfig,
    EngineConfig,
    EvaluateConfig,
    GenerateConfig,
    OfflinePRMConfig,
    RLConfig,
    SFTConfig,
    find_config,
    read_config,
)

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
SCHEMAS: dict[str, type[BaseModel]] = {
    "sft": SFTConfig,
    "rl": RLConfig,
    "prm": OfflinePRMConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "benchmarks": BenchmarkConfig,
}
NEEDED = {"model": "m", "out": "o", "data": {"source": "task:clock"}}


def rl(**settings: object) -> RLConfig:
    """An RL configuration with what has no default filled in."""
    return RLConfig.model_validate(NEEDED | settings)


def read(tmp_path: Path, text: str, schema: type[BaseModel] = RLConfig) -> BaseModel:
    """A configuration from the text of a file."""
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(schema, path)


# The files that come with the package


def test_there_are_configuration_files():
    assert len(FILES) >= 3


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_package_loads_and_passes_its_check(path: Path):
    config = read_config(SCHEMAS[path.parent.name], path)
    if not isinstance(config, BenchmarkConfig):  # which has nothing to check
        assert not config.check()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_the_package_are_found_from_anywhere(path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = path.relative_to(ROOT)
    assert find_config(str(name)).read_text() == path.read_text()
    assert find_config(str(name.relative_to("configs"))).read_text() == path.read_text()


def test_a_file_here_comes_before_one_of_the_package(tmp_path: Path, monkeypatch):
    (tmp_path / "configs" / "rl").mkdir(parents=True)
    (tmp_path / "configs" / "rl" / "tiny.yaml").write_text("steps: 7")
    monkeypatch.chdir(tmp_path)
    assert read_config(RLConfig, find_config("configs/rl/tiny.yaml")).steps == 7


# Faults in a file


@pytest.mark.parametrize(
    ("text", "unknown", "near"),
    [
        ("stepz: 3", "stepz", "steps"),
        ("prm: {lrr: 1}", "prm.lrr", "prm.lr"),
        ("policy:\n  lrr: 1", "policy.lrr", "policy.lr"),
        ("rollout: {prompt: 3}", "rollout.prompt", "rollout.prompts"),
        ("data: {horizn: 3}", "data.horizn", "data.horizon"),
        ("advantage: {wihten: true}", "advantage.wihten", "advantage.whiten"),
        ("beta: 0.1", "beta", "prm.beta"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one_and_the_file(
    tmp_path: Path, text: str, unknown: str, near: str
):
    with pytest.raises(ValueError) as error:
        read(tmp_path, text)
    assert str(error.value) == f"{tmp_path / 'my.yaml'}: unknown key {unknown}; did you mean {near}?"


def test_an_unknown_section_is_named_with_the_nearest_section(tmp_path: Path):
    with pytest.raises(ValueError, match=r"unknown key adventage; did you mean advantage\b(?!\.)"):
        read(tmp_path, "adventage: {process_weight: 0.5}")


def test_an_unknown_key_like_no_other_gets_a_list(tmp_path: Path):
    with pytest.raises(ValueError, match=r"unknown key qqqq; valid here: .*prm.*steps"):
        read(tmp_path, "qqqq: 1")


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("steps: 0", "steps", "0"),
        ("steps: many", "steps", "'many'"),
        ("filter: {low: 1.5}", "filter.low", "1.5"),
        ("filter: {high: -0.1}", "filter.high", "-0.1"),
        ("filter: {max_draws: 0.5}", "filter.max_draws", "0.5"),
        ("rollout: {responses: 1}", "rollout.responses", "1"),
        ("rollout: {prompts: 0}", "rollout.prompts", "0"),
        ("rollout: {temperature: 0}", "rollout.temperature", "0"),
        ("rollout: {truncated: maybe}", "rollout.truncated", "'maybe'"),
        ("advantage: {estimator: gae}", "advantage.estimator", "'gae'"),
        ("advantage: {granularity: word}", "advantage.granularity", "'word'"),
        ("advantage: {process_weight: -1}", "advantage.process_weight", "-1"),
        ("advantage: {process_gamma: 1.01}", "advantage.process_gamma", "1.01"),
        ("policy: {clip_low: 1}", "policy.clip_low", "1"),
        ("policy: {clip_grad: 0}", "policy.clip_grad", "0"),
        ("policy: {minibatch: 0}", "policy.minibatch", "0"),
        ("prm: {beta: 0}", "prm.beta", "0"),
        ("prm: {update: nevr}", "prm.update", "'nevr'"),
        ("prm: {lr: -1}", "prm.lr", "-1"),
        ("data: {horizon: 1}", "data.horizon", "1"),
        ("dtype: float16", "dtype", "'float16'"),
        ("keep: 0", "keep", "0"),
    ],
)
def test_a_value_out_of_range_names_the_file_the_key_and_the_value(
    tmp_path: Path, text: str, key: str, found: str
):
    with pytest.raises(ValueError) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'my.yaml'}: {key}: ")
    assert message.endswith(f"(found {found})")


def test_every_fault_of_a_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError) as error:
        read(tmp_path, "steps: 0\nprm: {lrr: 1, beta: 0}")
    for key in ("steps", "prm.lrr", "prm.beta"):
        assert key in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "a: 1\n b: 2", "a: 'x", "\tx: 1"])
def test_invalid_yaml_names_the_file_and_the_line(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=r"my\.yaml: not valid YAML: (?s:.*)line \d"):
        read(tmp_path, text)


def test_a_file_that_is_no_text_is_named(tmp_path: Path):
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"my\.yaml: not valid YAML"):
        read_config(RLConfig, tmp_path / "my.yaml")


@pytest.mark.parametrize("text", ["- 1", "7", "word"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=r"my\.yaml: expected keys and values"):
        read(tmp_path, text)


def test_an_empty_file_is_all_defaults(tmp_path: Path):
    assert read(tmp_path, "# nothing\n") == RLConfig()


# A section of a file changes what it names and nothing else


@pytest.mark.parametrize(
    ("schema", "text", "key", "default"),
    [
        (RLConfig, 'eval_data: {source: "task:clock"}', "eval_data.split", "test"),
        (BenchmarkConfig, 'data: {source: "task:clock"}', "data.split", "test"),
        (BenchmarkConfig, 'data: {source: "task:clock"}', "data.too_long", "error"),
        (EvaluateConfig, "verify: {workers: 2}", "verify.code.score", "all"),
        (EvaluateConfig, "verify: {code: {memory_mb: 64}}", "verify.code.seconds", 10.0),
        (SFTConfig, "optimizer: {lr: 1.0e-4}", "optimizer.schedule", "cosine"),
        (SFTConfig, "optimizer: {lr: 1.0e-4}", "optimizer.warmup", 0.1),
        (SFTConfig, "eval: {samples: 4}", "eval.every", 0),
        (SFTConfig, "eval: {every: 10}", "eval.max_response_tokens", 512),
        (RLConfig, "policy: {minibatch: 8}", "policy.lr", 5e-7),
        (RLConfig, "prm: {beta: 0.1}", "prm.clip_grad", 10.0),
        (RLConfig, "prm: {beta: 0.1}", "prm.lr", 1e-6),
    ],
)
def test_a_section_of_a_file_keeps_the_defaults_of_what_it_does_not_name(
    tmp_path: Path, schema: type[BaseModel], text: str, key: str, default: object
):
    """A flag changes one setting; the same setting in a file must not change its neighbours."""
    assert value(schema(), key) == default
    assert value(read(tmp_path, text, schema), key) == default


def value(config: BaseModel, key: str) -> object:
    """The setting at a dotted key."""
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


# Flags


def test_flags_go_over_the_file(tmp_path: Path):
    path = tmp_path / "my.yaml"
    path.write_text("steps: 9\nseed: 4\nprm: {beta: 0.3, lr: 0.1}\nfilter: {low: 0.1}\n")
    flags = [
        "--steps",
        "5",
        "--prm.lr",
        "0.2",
        "--advantage.process-weight",
        "0",
        "--advantage.whiten",
        "True",
    ]
    config = read_arguments("RLConfig", "rl", [str(path), *flags])
    assert (config.steps, config.prm.lr, config.advantage.process_weight) == (5, 0.2, 0)
    assert config.advantage.whiten is True
    assert (config.seed, config.prm.beta, config.filter.low) == (4, 0.3, 0.1)  # the file's
    assert (config.filter.high, config.prm.clip_grad) == (0.8, 10.0)  # defaults


def test_flags_work_without_a_file():
    config = read_arguments(
        "RLConfig", "rl", ["--model", "m", "--resume", "--eval-data.source", "task:clock"]
    )
    assert (config.model, config.resume, config.eval_data.split) == ("m", True, "test")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--steps", "0"), ("steps", "greater than 0")),
        (("--steps", "abc"), ("--steps", "abc")),
        (("--filter.low", "2"), ("filter", "low", "less than or equal to 1")),
        (("--prm.loss", "mse"), ("--prm.loss", "ce", "dpo")),
        (("--prm.lrr", "1"), ("--prm.lrr", "--prm.lr ")),
    ],
)
def test_a_bad_flag_is_status_2_and_named(
    capsys: pytest.CaptureFixture, flags: tuple[str, ...], words: tuple
):
    with pytest.raises(SystemExit) as stop:
        read_arguments("RLConfig", "rl", list(flags))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert "Traceback" not in said


# Checks across fields


@pytest.mark.parametrize(
    ("schema", "keys"),
    [
        (RLConfig, ("model", "out", "data.source")),
        (SFTConfig, ("model", "out", "data.source")),
        (GenerateConfig, ("model", "out", "data.source")),
        (OfflinePRMConfig, ("model", "out", "data.source")),
        (EvaluateConfig, ("benchmark", "out")),
    ],
)
def test_what_has_no_default_must_be_set(schema: type[BaseModel], keys: tuple[str, ...]):
    given = {"model": "m", "out": "o", "benchmark": ["clock"], "data": {"source": "d"}, "eval": {"every": 0}}
    for key in keys:
        settings = {name: value for name, value in given.items() if name in schema.model_fields}
        if schema is EvaluateConfig:
            del settings["data"]
        schema.model_validate(settings).check()  # pyright: ignore[reportAttributeAccessIssue]
        del settings[key.split(".")[0]]
        with pytest.raises(ValueError, match=rf"^{key} is not set: .* give --{key}$"):
            schema.model_validate(settings).check()  # pyright: ignore[reportAttributeAccessIssue]


def test_benchmarks_and_their_files_go_together():
    def check(**settings: object) -> None:
        EvaluateConfig.model_validate({"out": "o"} | settings).check()

    check(benchmark=["a", "b"], data=["", "f"], responses=["g", ""])
    with pytest.raises(ValueError, match=r"data: 1 files for 2 benchmarks: name one for each, in order"):
        check(benchmark=["a", "b"], data=["f"])
    with pytest.raises(ValueError, match=r"responses: 2 files for 1 benchmarks"):
        check(benchmark=["a"], responses=["f", "g"])
    with pytest.raises(ValueError, match=r"benchmark: one is named twice: a, b, a"):
        check(benchmark=["a", "b", "a"])


def test_defaults_pass_without_a_warning():
    assert rl().check() == []


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"filter": {"low": 0.9, "high": 0.8}}, r"filter\.low=0\.9 is above filter\.high=0\.8"),
        (
            {"advantage": {"process_weight": 0, "outcome_weight": 0}},
            r"advantage\.process_weight and advantage\.outcome_weight are both 0",
        ),
        ({"advantage": {"preset": "released", "estimator": "grpo"}}, r"advantage\.preset=released .*rloo"),
        ({"advantage": {"preset": "released", "estimator": "reinforce"}}, r"advantage\.preset=released"),
        ({"advantage": {"preset": "released", "granularity": "step"}}, r"granularity=token only"),
        (
            {"prm": {"reference": "policy"}, "rollout": {"temperature": 0.7}},
            r"prm\.reference=policy .*rollout\.temperature",
        ),
        ({"prm": {"update": "never"}}, r"prm\.update=never with prm\.model empty"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, match: str):
    with pytest.raises(ValueError, match=match):
        rl(**settings).check()


@pytest.mark.parametrize(
    "settings",
    [
        {"filter": {"low": 0.5, "high": 0.5}},
        {"advantage": {"preset": "released"}},
        {"prm": {"reference": "policy"}},
        {"prm": {"update": "never", "model": "trained"}},
        {"prm": {"update": "never", "reference": "policy"}},
        {"advantage": {"outcome_weight": 0}},
        {"rollout": {"temperature": 0.7}},
        {"rollout": {"temperature": 0.7}, "advantage": {"process_weight": 0}},
    ],
)
def test_neighbours_of_contradictions_pass(settings: dict):
    assert rl(**settings).check() == []


def test_temperature_is_free_where_no_prm_is_loaded():
    config = rl(advantage={"process_weight": 0}, prm={"reference": "policy"}, rollout={"temperature": 0.5})
    assert "prm.reference" in config.check()[0]  # no error, but without effect


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"new_model\.heads must divide new_model\.hidden_size"):
        SFTConfig.model_validate(
            NEEDED | {"model": "new", "new_model": {"heads": 5}, "eval": {"every": 0}}
        ).check()


def test_evaluation_in_sft_needs_data():
    with pytest.raises(ValueError, match=r"eval\.every is set, but eval_data\.source is empty"):
        SFTConfig.model_validate(NEEDED | {"eval": {"every": 5}}).check()


# Trap 3


@pytest.mark.parametrize("weight", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("how", [{"whiten": True}, {"preset": "released"}])
def test_trap_03_equal_weights_under_whitening_are_warned_about(weight: float, how: dict):
    (warning,) = rl(advantage={"process_weight": weight, "outcome_weight": weight} | how).check()
    assert "trap 3" in warning
    assert "advantage.process_weight" in warning
    assert "advantage.outcome_weight" in warning


@pytest.mark.parametrize(
    "advantage",
    [
        {"process_weight": 5.0, "outcome_weight": 5.0},  # without whitening the scale is a step size
        {"process_weight": 5.0, "outcome_weight": 1.0, "whiten": True},
        {"process_weight": 1.0, "outcome_weight": 1.0, "whiten": True},
        {"process_weight": 5.0, "outcome_weight": 5.0, "preset": "released", "whiten": False},
    ],
)
def test_trap_03_no_warning_where_the_weights_matter(advantage: dict):
    assert rl(advantage=advantage).check() == []


def test_trap_03_the_only_weight_under_whitening_is_warned_about():
    (warning,) = rl(advantage={"process_weight": 3.0, "outcome_weight": 0, "whiten": True}).check()
    assert "advantage.process_weight has no effect" in warning


def test_trap_03_the_only_weight_of_the_control_under_whitening_is_warned_about():
    (warning,) = rl(advantage={"process_weight": 0, "outcome_weight": 3.0, "whiten": True}).check()
    assert "advantage.outcome_weight" in warning


def test_trap_03_prm_settings_of_the_outcome_only_control_are_warned_about():
    config = rl(
        advantage={"process_weight": 0, "granularity": "step", "process_gamma": 0.9, "scaling": "return"},
        prm={"beta": 0.3, "update": "before", "model": "m"},
    )
    (warning,) = config.check()
    for key in (
        "prm.beta",
        "prm.update",
        "prm.model",
        "advantage.granularity",
        "advantage.process_gamma",
        "advantage.scaling",
    ):
        assert key in warning
    assert "prm.lr" not in warning
    assert "advantage.estimator" not in warning


def test_trap_03_the_control_with_defaults_is_not_warned_about():
    assert rl(advantage={"process_weight": 0}).check() == []


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"advantage": {"step_delimiter": "."}}, "advantage.step_delimiter"),  # granularity is token
        ({"advantage": {"outcome_weight": 0, "outcome_gamma": 0.9}}, "advantage.outcome_gamma"),
        ({"prm": {"update": "never", "model": "m", "lr": 0.1}}, "prm.lr"),
        ({"prm": {"update": "never", "model": "m", "loss": "dpo"}}, "prm.loss"),
    ],
)
def test_trap_03_other_settings_without_effect_are_warned_about(settings: dict, key: str):
    assert any(key in warning for warning in rl(**settings).check())


# The schema


def test_presets_decide_only_what_is_unset():
    for preset, expected in (("exact", False), ("released", True)):
        advantage = rl(advantage={"preset": preset}).advantage
        assert (advantage.scales_by_return, advantage.whitens) == (expected, expected)
        opposite = rl(
            advantage={"preset": preset, "scaling": "none" if expected else "return", "whiten": not expected}
        ).advantage
        assert (opposite.scales_by_return, opposite.whitens) == (not expected, not expected)


def test_published_settings_are_the_defaults():
    config = RLConfig()
    assert (config.rollout.prompts, config.rollout.responses, config.steps) == (256, 4, 592)
    assert (config.data.max_prompt_tokens, config.rollout.max_response_tokens) == (1024, 3072)
    assert (config.policy.lr, config.policy.minibatch, config.policy.clip_grad) == (5e-7, 256, 1.0)
    assert (config.policy.clip_low, config.policy.clip_high) == (0.2, 0.2)
    assert (config.prm.lr, config.prm.clip_grad, config.prm.beta, config.prm.loss) == (1e-6, 10.0, 0.05, "ce")
    assert (config.filter.low, config.filter.high) == (0.2, 0.8)
    assert (SFTConfig().optimizer.lr, SFTConfig().batch, SFTConfig().epochs) == (1e-5, 96, 3)


def test_every_setting_is_documented():
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(schemas))
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        for at, field in enumerate(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                name = f"{node.name}.{field.target.id}"
                section = isinstance(field.annotation, ast.Name) and field.annotation.id.endswith("Config")
                overrides = any(
                    field.target.id in vars(schemas)[base.id].model_fields
                    for base in node.bases
                    if isinstance(base, ast.Name) and base.id in vars(schemas) and base.id != "BaseModel"
                )
                after = node.body[at + 1] if at + 1 < len(node.body) else None
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert section or overrides or documented, f"{name} has no docstring"


# Distillation


def test_distillation_takes_no_setting_of_the_paper_s_algorithm_in_silence():
    config = rl(
        algorithm="distill", advantage={"process_weight": 2.0}, prm={"beta": 0.3}, policy={"clip_low": 0.1}
    )
    (warning,) = config.check()
    for key in ("advantage.process_weight", "prm.beta", "policy.clip_low"):
        assert key in warning
    assert rl(algorithm="distill", prm={"minibatch": 64}, policy={"epochs": 4}).check() == []


def test_settings_of_distillation_without_it_are_warned_about():
    (warning,) = rl(distill={"anchor": 0.2}).check()
    assert "distill.anchor" in warning


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout": {"temperature": 0.7}}, "rollout.temperature=1"),
        ({"prm": {"loss": "dpo"}}, "prm.loss=ce"),
        ({"filter": {"low": 0.9, "high": 0.1}}, "filter.low=0.9"),
        ({"engine": {"kind": "server"}}, "engine.urls is empty"),
    ],
)
def test_what_distillation_cannot_do_is_refused(changes: dict, said: str):
    with pytest.raises(ValueError, match=said):
        rl(algorithm="distill", **changes).check()


# The engine


SERVERS = {"kind": "server", "urls": ("http://a:8000",)}


@pytest.mark.parametrize(
    ("engine", "match"),
    [
        ({"kind": "server"}, r"engine\.urls is empty"),
        ({"importance_clip": 0.5}, "shrink"),
        ({"kind": "vllm", "max_staleness": 1, "importance_clip": 2}, r"needs engine\.kind=server"),
        ({**SERVERS, "max_staleness": 1}, r"set engine\.importance_clip=2"),
    ],
)
def test_engines_that_cannot_work_are_refused(engine: dict, match: str):
    with pytest.raises(ValueError, match=match):
        rl(engine=engine).check()


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_vllm_is_not_asked_for_temperatures_that_it_refuses(temperature: float):
    rollout = {"temperature": temperature}
    rl(rollout=rollout).check()
    with pytest.raises(ValueError, match=r"temperatures of 0.01 to 2"):
        rl(rollout=rollout, engine={"kind": "vllm"}).check()
    with pytest.raises(ValueError, match=r"temperatures of 0.01 to 2"):
        GenerateConfig.model_validate(
            NEEDED | {"temperature": temperature, "engine": {"kind": "vllm"}}
        ).check()


@pytest.mark.parametrize(
    ("engine", "keys"),
    [
        ({"kind": "vllm", "gpu_memory": 0.3, "tensor_parallel": 2, "timeout": 9, "importance_clip": 2}, []),
        ({**SERVERS, "timeout": 9, "shared_folder": "s", "max_staleness": 2, "importance_clip": 2}, []),
        ({"importance_clip": 2}, []),
        ({"gpu_memory": 0.3, "timeout": 9}, ["engine.gpu_memory", "engine.timeout"]),
        ({"kind": "vllm", "urls": ("http://a",)}, ["engine.urls"]),
        ({**SERVERS, "tensor_parallel": 2}, ["engine.tensor_parallel"]),
    ],
)
def test_engine_settings_without_effect_are_warned_about(engine: dict, keys: list[str]):
    warnings = rl(engine=engine).check()
    assert warnings == (["no effect under the other settings: " + ", ".join(keys)] if keys else [])


def test_importance_weights_have_no_effect_where_nothing_is_trained():
    engine = EngineConfig.model_validate({**SERVERS, "max_staleness": 1, "importance_clip": 2})
    assert engine.check(1.0, trains=False) == ["engine.max_staleness", "engine.importance_clip"]
