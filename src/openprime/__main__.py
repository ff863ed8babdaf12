"""`python -m openprime` is the command `openprime`."""

import os
import sys

from openprime.cli import main

if __name__ == "__main__":
    status = main()
    if status == 0 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # Threads of process groups may still hold Python's objects, and abort an interpreter that is taken apart.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)
