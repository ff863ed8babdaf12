"""openprime: PRIME (Process Reinforcement through Implicit Rewards, arXiv 2502.01456)."""

__version__ = "0.1.0"
