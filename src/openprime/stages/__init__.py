"""The commands: one file each, each reads top to bottom."""
