"""Run by torchrun from test_checks.py: damaged models are refused by every rank, a sound one is loaded."""

import json
import re
import sys
from pathlib import Path

import torch

from openprime.models.lm import LM, check_scoring
from openprime.models.placement import Placement
from openprime.models.sharding import load_trained
from openprime.ranks import gather, rank
from openprime.types import UserError


def main() -> None:
    """All folders of sys.argv[1]."""
    torch.distributed.init_process_group("gloo")
    folder = Path(sys.argv[1])
    for i, message in enumerate(json.loads((folder / "list.json").read_text())):
        said = ""
        try:
            load_trained(str(folder / f"{i:02}"), Placement())
        except UserError as error:
            said = str(error)
        assert re.search(message.rstrip("\\)"), said), (message, said)
        assert "\n" not in said
        assert len(set(gather(said))) == 1
        if rank() == 0:
            print(f"refused: {said}", flush=True)
    lm = LM(load_trained(str(folder / "sound"), Placement()).eval())
    check_scoring("sound", lm)
    torch.distributed.destroy_process_group()


main()
