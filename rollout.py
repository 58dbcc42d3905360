"""python rollout.py INVENTORY: deploys to a fleet wave by wave, with a proof after each; --help tells how."""

import sys

from left4me.rollout.cli import main

if __name__ == "__main__":
    sys.exit(main())
