"""Which architectures can be used: small models with random weights against plain transformers, as a table.

python benchmarks/architectures.py [NAME ...] > docs/architectures.md

Float32 on a CPU, about a minute. `tests/models/test_architectures.py` checks the same and that the page is up to date.
"""

import sys
import warnings
from pathlib import Path

from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.architectures import ZOO, measure, page

if __name__ == "__main__":
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    print(page({name: measure(name) for name in sys.argv[1:] or ZOO}), end="")
