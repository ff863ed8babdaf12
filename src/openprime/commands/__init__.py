"""The other commands, one file each."""
