"""Models in shares on two ranks are the whole models: weights, log-probabilities, gradients, samples, files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openprime.models.tiny import build_tokenizer
from support import tiny_zoo


@pytest.mark.slow
def test_load_trained__models_in_shares_are_the_whole_models(tmp_path: Path):
    zoo, tokenizer = tmp_path / "zoo", tmp_path / "tokenizer"
    names = tiny_zoo.PLAIN + tiny_zoo.SCALED
    for i, name in enumerate(names):
        tiny_zoo.make(name).save_pretrained(zoo / f"{i:02} {name}" / "whole")
    build_tokenizer(["one two three"], 300).save_pretrained(tokenizer)
    here = Path(__file__).parents[1]
    paths = [str(here), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *torchrun, str(here / "support" / "sharded.py"), str(zoo), str(tokenizer)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("checked ") == len(names)
