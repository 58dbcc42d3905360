"""A fleet in waves: pyinfra deploys, pytest proves; this has the order, the restarts, and the stop at a bad sign."""

import sys

from left4me.declared import ROOT

sys.path.insert(0, str(ROOT / "files/lib"))  # l4d2ctl
