"""A command's folder: what is written down in it, and what may change when the command goes on."""

import json
from pathlib import Path

import pytest
import yaml

from openprime.config import EvaluateConfig, GenerateConfig, PrimeConfig, SFTConfig
from openprime.run.folder import check_folder, flatten, open_folder
from openprime.types import UserError


def config(folder: Path, **settings: object) -> PrimeConfig:
    """A configuration whose run lives in `folder`."""
    return PrimeConfig.model_validate({"model": "m", "out": str(folder), "data": {"source": "d"}} | settings)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run of `rl` with the settings of `config`."""
    return open_folder(config(tmp_path / "run"), "rl")


def test_open_folder__writes_down_what_the_command_was_told_and_made_with(tmp_path: Path):
    told = config(tmp_path / "a" / "b", steps=7, prm={"beta": 0.3})
    folder = open_folder(told, "rl")
    assert PrimeConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text())) == told
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["stage"] == "rl"
    assert {"openprime", "torch", "transformers", "python", "platform"} <= set(versions)


def test_open_folder__one_in_use_is_refused(begun: Path):
    before = (begun / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"holds a run already: go on with --resume, or choose another --out"):
        open_folder(config(begun, steps=3), "rl")
    assert (begun / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"dtype": "bfloat16"}, "dtype: 'float32' -> 'bfloat16'"),
        ({"model": "other"}, "model: 'm' -> 'other'"),
        ({"prm": {"beta": 0.1}}, "prm.beta: 0.05 -> 0.1"),
        ({"rollout": {"prompts": 8}}, "rollout.prompts: 256 -> 8"),
        ({"data": {"source": "other"}}, "data.source: 'd' -> 'other'"),
        ({"advantage": {"whiten": True}}, "advantage.whiten: None -> True"),
        ({"seed": 3, "prm": {"beta": 1.0}}, "prm.beta: 0.05 -> 1.0; seed: 0 -> 3"),
    ],
)
def test_open_folder__goes_on_with_the_settings_that_it_was_begun_with(begun: Path, settings: dict, key: str):
    """Every one that has changed is named."""
    before = (begun / "config.yaml").read_bytes()
    with pytest.raises(UserError) as error:
        open_folder(config(begun, resume=True, **settings), "rl")
    said = str(error.value).split("was begun with other settings: ")[1].split(". Resume")[0]
    assert sorted(said.split("; ")) == sorted(key.split("; "))
    assert (begun / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "settings", [{"steps": 1000}, {"save_every": 7}, {"keep": 9}, {"sample_every": 1}, {"wandb": "w"}]
)
def test_open_folder__what_changes_no_result_may_change(begun: Path, settings: dict):
    open_folder(config(begun, resume=True, **settings), "rl")
    kept = yaml.safe_load((begun / "config.yaml").read_text())
    assert all(kept[key] == value for key, value in settings.items())


def test_open_folder__neither_a_new_setting_nor_their_order_is_a_change(begun: Path):
    """A run begun by an older version lacks a key; the others still meet their own values."""
    settings = yaml.safe_load((begun / "config.yaml").read_text())
    del settings["prm"]["beta"]
    (begun / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=True))
    with pytest.raises(UserError, match=r"other settings: seed: 0 -> 1\. Resume"):
        open_folder(config(begun, resume=True, seed=1), "rl")
    open_folder(config(begun, resume=True), "rl")


def test_open_folder__another_command_is_refused_whatever_their_settings_have_in_common(
    begun: Path, tmp_path: Path
):
    shared = {"model": "m", "out": str(begun), "data": {"source": "d"}, "resume": True}
    with pytest.raises(UserError, match=r"other settings: command: 'rl' -> 'sft'"):
        open_folder(SFTConfig.model_validate(shared), "sft")
    shared = {"model": "m", "out": str(tmp_path / "other"), "max_response_tokens": 8}
    open_folder(GenerateConfig.model_validate(shared | {"data": {"source": "d"}}), "generate")
    with pytest.raises(UserError, match=r"other settings: command: 'generate' -> 'evaluate'"):
        check_folder(
            EvaluateConfig.model_validate(shared | {"benchmark": ("clock",), "resume": True}), "evaluate"
        )


def test_check_folder__makes_nothing(tmp_path: Path):
    check_folder(config(tmp_path / "new"), "rl")
    assert not (tmp_path / "new").exists()
    open_folder(config(tmp_path / "new", resume=True), "rl")  # what has not begun, begins
    with pytest.raises(UserError, match="holds a run already"):
        check_folder(config(tmp_path / "new"), "rl")
    check_folder(config(tmp_path / "new", resume=True), "rl")


def test_flatten__settings_have_dotted_keys():
    assert flatten({"a": 1, "b": {"c": None, "d": {"e": [1]}}}) == [("a", 1), ("b.c", None), ("b.d.e", [1])]
