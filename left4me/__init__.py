"""left4me: Left 4 Dead 2 game servers on one's own Debian hosts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "files/lib"))  # content and l4d2ctl, which run on the hosts
