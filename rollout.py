"""python rollout.py INVENTORY: deploys to a fleet in waves and verifies each wave; see --help."""

import sys

from left4me.rollout.cli import main

if __name__ == "__main__":
    sys.exit(main())
