"""A run: its folder, console, files, checkpoints, and the launch of its ranks."""
