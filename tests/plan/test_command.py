"""`openprime plan`: the numbers of the published recipe by hand, advice that works, what is said where it fails."""

import json
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.config import RLConfig, find_config, read_config
from openprime.plan.command import advise, changes

RECIPE = "configs/rl/eurus-2-7b-prime.yaml"
MODEL = ("--architecture", "configs/models/qwen2.5-math-7b")
P = 7_615_616_512


def planned(capsys: pytest.CaptureFixture, *args: str) -> dict:
    """The plan as JSON."""
    assert main(["plan", *args, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_plan__files_of_the_package_are_found_from_any_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    here = planned(capsys, RECIPE, *MODEL)
    monkeypatch.chdir(tmp_path)
    assert planned(capsys, RECIPE, *MODEL) == here


def test_plan__the_published_recipe_by_hand(capsys: pytest.CaptureFixture):
    found = planned(capsys, RECIPE, *MODEL)
    assert found["fits"]
    assert found["peak"] == pytest.approx(60.8, abs=0.05)  # as docs/scaling.md says
    for phase in ("sampling", "reference", "prm", "policy"):
        sizes = found["phases"][phase]
        assert sizes["weights"] == pytest.approx(3 * 4 * P / 8 / 2**30)
        assert sizes["optimiser"] == pytest.approx(2 * 8 * P / 8 / 2**30)
    assert found["phases"]["policy"]["gradients"] == pytest.approx(4 * P / 8 / 2**30)
    assert found["checkpoint"] == pytest.approx(
        2 * 12 * P / 2**30
    )  # weights and two moments of policy and PRM
    assert found["checkpoint_seconds"] == pytest.approx(2 * 12 * P / 2**30 / 2)
    assert found["checkpoints"] == 3
    assert found["steps"] == 592
    step = found["step"]
    # Half of the groups pass, and the recipe draws 1.5 standard deviations of their number more.
    assert step["sampled_tokens"] == pytest.approx((256 + 1.5 * (256 * 0.5) ** 0.5) / 0.5 * 4 * 1536)
    assert step["trained_tokens"] == 1024 * 2048
    # Forward, backward and recomputing are four passes of two models, the reference's is one: 9 x 2 P a token.
    read = 1024 * (512 / 4 + 1535)  # four responses share their prompt
    assert step["training_flops"] == pytest.approx(9 * 2 * P * read, rel=0.12)
    seconds = found["seconds"]
    assert list(seconds) == ["sampling", "policy", "prm", "reference", "weights"]
    # 0.67 x 0.4^1.5 more draws, whose longest response has 3,072 tokens of 2 P bytes each.
    more = 0.67 * 0.4**1.5 * 3072 * 2 * P / 1.6e12
    assert seconds["sampling"] == pytest.approx(step["sampling_flops"] / (8 * 312e12 * 0.1) + more)
    assert seconds["weights"] == pytest.approx(2 * P / 3e9)
    # Products of 6.5G weights of the blocks, forward alone, by 8 GPUs at 60 % of their peak.
    products = 2 * 6_525_288_448 * read / (8 * 312e12 * 0.6)
    assert found["parts"]["reference"]["products"] == pytest.approx(products, rel=1e-3)
    assert seconds["policy"] == seconds["prm"] > 3.5 * seconds["reference"]
    assert found["hours"] == pytest.approx(592 * sum(seconds.values()) / 3600)
    assert found["cost"] == pytest.approx(found["hours"] * 8 * 2)


def test_plan__a_slower_disk_takes_longer(capsys: pytest.CaptureFixture):
    found = planned(capsys, RECIPE, *MODEL, "--disk-bandwidth", "0.5")
    assert found["checkpoint_seconds"] == pytest.approx(2 * found["checkpoint"])


def test_plan__copies_of_models_have_fewer_ranks_each(capsys: pytest.CaptureFixture):
    flat, copies = (
        planned(capsys, RECIPE, *MODEL, "--gpus", "16", "--set", f"parallel.replicas={n}")["phases"]["policy"]
        for n in (1, 2)
    )
    for part, size in flat.items():
        shared = part in ("weights", "optimiser", "gradients")
        assert copies[part] == pytest.approx(2 * size if shared else size)


def test_plan__measured_rates_take_the_place_of_assumed_ones(capsys: pytest.CaptureFixture):
    rates = ["--tokens-per-second=20000", "--pass-rate=0.25", "--response-tokens=800", "--mfu=0.4"]
    found = planned(capsys, RECIPE, *MODEL, *rates, "--prompt-tokens=200", "--price-per-gpu-hour=3")
    step = found["step"]
    drawn = (256 + 1.5 * (256 * 0.75) ** 0.5) / 0.25 * 4
    assert step["sampled_tokens"] == pytest.approx(drawn * 800)
    assert step["sampling_seconds"] == pytest.approx(drawn * 800 / 20000)
    assert step["training_seconds"] == pytest.approx(step["training_flops"] / (8 * 312e12 * 0.4))
    assert found["parts"] == {}
    assert found["cost"] == pytest.approx(found["gpu_hours"] * 3)
    assert any("20,000 tokens/s, as measured" in line for line in found["assumed"])


def test_plan__what_auto_samples_with_is_said(capsys: pytest.CaptureFixture):
    own = planned(capsys, RECIPE, *MODEL, "--set", "engine.kind=transformers")
    auto = planned(capsys, RECIPE, *MODEL, "--set", "engine.kind=auto")
    assert auto["phases"] == own["phases"]
    assert auto["changes"] == own["changes"]
    assert own["notes"] == []
    assert auto["notes"][0].endswith("with it: --set engine.kind=vllm")


@pytest.mark.parametrize(
    ("args", "together"),
    [
        (("--gpus=8", "--set", "engine.kind=transformers"), False),
        (("--gpus=2",), False),
        (("--gpus=8", "--set", "parallel.replicas=8"), False),
        (("--gpus=1", "--gpu-memory=46"), True),  # one change is not enough
    ],
)
def test_plan__every_advice_makes_it_fit(
    capsys: pytest.CaptureFixture, args: tuple[str, ...], together: bool
):
    found = planned(capsys, RECIPE, *MODEL, *args)
    assert not found["fits"]
    advice = [" ".join(changes) for changes in found["changes"]]
    assert (len(advice) == 1) == together
    for change in advice:
        words = change.split()
        gpus = words[words.index("--gpus") :][:2] if "--gpus" in words else []
        settings = [word for word in (*args, *words) if "=" in word and not word.startswith("--")]
        flags = [arg for arg in args if arg.startswith("--") and "=" in arg]
        again = planned(capsys, RECIPE, *MODEL, *flags, *gpus, *(["--set", *settings] if settings else []))
        assert again["fits"], change
        assert again["changes"] == []
        assert again["peak"] < found["peak"]


def test_advise__adapters_take_the_place_of_offloading_which_they_cannot_have():
    def fits(settings: list[str]) -> bool:
        joined = " ".join(settings)
        assert not ("lora.rank" in joined and "cpu_offload" in joined)
        return "lora.rank" in joined and "engine.gpu_memory" in joined

    run = read_config(RLConfig, find_config(RECIPE))
    (found,) = advise(changes(run, 8), fits)
    assert found[-2:] == ["engine.gpu_memory=0.3", "policy.lora.rank=32 prm.lora.rank=32"]


def test_plan__settings_can_be_changed_on_the_command_line(capsys: pytest.CaptureFixture):
    found = planned(capsys, RECIPE, *MODEL, "--set", "policy.lora.rank=32", "prm.lora.rank=32", "steps=7")
    assert found["models"]["policy"]["own"] > P
    assert found["models"]["prm"]["own"] < 0.02 * P
    assert found["models"]["reference"]["own"] == 0
    assert found["steps"] == 7
    adapters = found["models"]["policy"]["own"] - P + found["models"]["prm"]["own"]  # whole on every GPU
    assert found["phases"]["policy"]["weights"] == pytest.approx(4 * (P / 8 + adapters) / 2**30)
    assert set(planned(capsys, RECIPE, *MODEL, "--set", "algorithm=outcome")["models"]) == {"policy"}


def test_plan__the_table_says_what_fits_and_what_was_assumed(capsys: pytest.CaptureFixture):
    model = ("--architecture", "configs/models/qwen2.5-0.5b")
    assert main(["plan", "configs/rl/lora-24gb.yaml", "--gpus", "1", "--gpu-memory", "24", *model]) == 0
    out = " ".join(capsys.readouterr().out.split())
    said = (
        "policy: 494,032,768 parameters",
        "on a base that is there already",
        "fits:",
        "a checkpoint: 0.",
        "half of the longest",
    )
    assert all(words in out for words in (*said, "GPU hours"))


def test_plan__steps_of_other_commands_follow_from_the_rows(capsys: pytest.CaptureFixture):
    sft = planned(capsys, "configs/sft/eurus-2-7b.yaml", *MODEL, "--rows", "229763")
    assert sft["steps"] == 3 * -(-229_763 // 96)  # three epochs, each with a short last step
    prm = planned(capsys, "configs/prm/eurus-prm-7b.yaml", *MODEL)
    assert prm["steps"] == 0
    assert any("give --rows" in line for line in prm["assumed"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([RECIPE, "--set", "model=/nowhere/at/all"], "a config.json with --architecture"),
        ([RECIPE, *MODEL, "--set", "polcy.lr=1"], "unknown key polcy"),
        ([RECIPE, *MODEL, "--set", "steps=0"], "--set: steps: "),
        ([RECIPE, *MODEL, "--set", "steps"], "expected key=value"),
        ([RECIPE, *MODEL, "--set", "parallel.replicas=3"], "8 ranks cannot be divided"),
        (["nothing.yaml"], "no such configuration file"),
        ([], "config is not set"),
    ],
)
def test_plan__what_cannot_be_planned_is_named(args: list[str], said: str, capsys: pytest.CaptureFixture):
    assert main(["plan", *args]) == 2
    assert said in capsys.readouterr().err


def test_plan__a_file_elsewhere_needs_its_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "my.yaml"
    path.write_text(Path(RECIPE).read_text())
    assert main(["plan", str(path), *MODEL]) == 2
    assert "give --stage" in capsys.readouterr().err
    assert planned(capsys, str(path), *MODEL, "--stage", "rl")["steps"] == 592
