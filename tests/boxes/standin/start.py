"""Starts the stand-in game: `bin/srcds_linux -ISE bin/start.py ARGUMENTS`."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from standin.server import main

sys.exit(main(sys.argv[1:]))
