"""`python -m openprime` is the command `openprime`."""

from openprime.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
