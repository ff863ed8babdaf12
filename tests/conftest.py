"""Tiny models are fastest on one thread; several test processes would fight over the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
