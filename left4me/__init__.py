"""left4me runs Left 4 Dead 2 servers on your own Debian hosts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "files/lib"))  # modules that also run on the hosts
