"""A command's folder: what is written down in it, and what may change when the command goes on."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from openprime.config import (
    EvaluateConfig,
    FolderConfig,
    GenerateConfig,
    OfflinePRMConfig,
    PrimeConfig,
    ScoreConfig,
    SFTConfig,
)
from openprime.run.folder import check_folder, flatten, open_folder
from openprime.run.lock import hold, release
from openprime.types import StorageError, UserError


def config(folder: Path, **settings: object) -> PrimeConfig:
    """A configuration whose run lives in `folder`."""
    return PrimeConfig.model_validate({"model": "m", "out": str(folder), "data": {"source": "d"}} | settings)


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    """Commands do when they end."""
    yield
    release()


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
        ({"dtype": "bfloat16"}, "dtype: 'auto' -> 'bfloat16'"),
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


# What is no run's folder


DAMAGED = ["", "null", "3", "- a", "a: [", "\x00\x01", "\ufeff\ttext", "{" * 3000]


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.parametrize("name", ["config.yaml", "versions.json"])
def test_check_folder__damaged_records_are_named_in_a_line(begun: Path, name: str, text: str):
    (begun / name).write_text(text)
    with pytest.raises(
        UserError, match=rf"^{begun / name} is damaged \(.*\): put it back, or choose another"
    ) as error:
        check_folder(config(begun, resume=True), "rl")
    assert "\n" not in str(error.value)


DATA = [b"a", b"", b"c"]


@pytest.mark.parametrize(
    ("data", "grows", "said"),
    [
        (DATA, False, None), (DATA, True, None), ([*DATA, b"d"], True, None),
        ([*DATA, b"d"], False, "3 items then, 4 now. "), (DATA[:2], True, "3 items then, 2 now. "),
        ([], True, "3 items then, 0 now. "), ([b"", b"a", b"c"], True, "3 now, others or in another order"),
        ([b"ac", b"", b""], False, "others or in another order"),
        ([b"x", *DATA[1:], b"d"], True, "3 items then, 4 now"),
    ],
)  # fmt: skip
def test_open_folder__goes_on_with_the_data_that_it_was_begun_with(
    tmp_path: Path, data, grows: bool, said: str | None
):
    open_folder(config(tmp_path / "run"), "rl", DATA)
    before = (tmp_path / "run" / "data.json").read_bytes()
    if said is None:
        open_folder(config(tmp_path / "run", resume=True), "rl", data, grows)
        open_folder(config(tmp_path / "run", resume=True), "rl", data)  # with what had come behind
        return
    with pytest.raises(UserError, match=f"was begun with other data: .*{said}"):
        open_folder(config(tmp_path / "run", resume=True), "rl", data, grows)
    assert (tmp_path / "run" / "data.json").read_bytes() == before


@pytest.mark.parametrize("text", [*DAMAGED, "{}", '{"items": "3", "sha256": 1}', '{"items": 3}'])
def test_open_folder__a_damaged_fingerprint_is_named_in_a_line(tmp_path: Path, text: str):
    open_folder(config(tmp_path / "run"), "rl", DATA)
    (tmp_path / "run" / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.json is damaged|was begun with other data") as error:
        open_folder(config(tmp_path / "run", resume=True), "rl", DATA)
    assert "\n" not in str(error.value)


def test_open_folder__what_cannot_be_a_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for out, error, said in (
        (tmp_path / "file", UserError, "out: .*file is a file: name a folder"),
        (tmp_path / "file" / "below", StorageError, "out: .*below cannot be written: "),
        (tmp_path / "loop", StorageError, "out: .*loop cannot be written: "),
        (tmp_path / ("x" * 300), UserError, "out: .*x cannot be read: .*name too long"),
        (Path("/proc/mine"), StorageError, "out: /proc/mine cannot be written: "),
    ):
        with pytest.raises(error, match=said):
            open_folder(config(out), "rl")
    assert (tmp_path / "file").read_text() == "mine"


# One process at a time


HOLD = """
import sys
from pathlib import Path
from openprime.run.lock import hold
Path(sys.argv[1]).mkdir(exist_ok=True)
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that fills the folder `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


COMMANDS: dict[str, type[FolderConfig]] = {
    "sft": SFTConfig,
    "rl": PrimeConfig,
    "prm": OfflinePRMConfig,
    "generate": GenerateConfig,
    "score": ScoreConfig,
    "evaluate": EvaluateConfig,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_open_folder__another_process_keeps_out_until_it_ends_however_it_ends(
    holder: subprocess.Popen, tmp_path: Path, command: str
):
    told = COMMANDS[command].model_validate({"out": str(tmp_path / "run")})
    for work in (check_folder, open_folder):
        with pytest.raises(
            UserError, match=rf"run is being filled by another process \(process {holder.pid} on"
        ):
            work(told, command)
    assert not (tmp_path / "run" / "config.yaml").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    open_folder(told, command)
    open_folder(told.model_copy(update={"resume": True}), command)  # its own is no other's


def test_hold__ends_with_release_and_not_with_a_child(tmp_path: Path):
    other = [sys.executable, "-c", HOLD, str(tmp_path)]

    def try_it() -> str:
        return subprocess.run(other, input="", capture_output=True, text=True, check=False).stdout

    hold(tmp_path)
    sleeper = subprocess.Popen(["sleep", "60"])  # as workers are started
    hold(tmp_path)
    assert try_it() == ""
    release()
    assert try_it() == "held\n"
    sleeper.kill()
    sleeper.wait()
