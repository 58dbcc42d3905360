"""remove_cockpit.py: remove the page and the Cockpit that a deploy installed; print what the operator must know."""

from __future__ import annotations

import subprocess
import sys

from left4me_host import cockpit
from left4me_host.instance import Failed

if __name__ == "__main__":
    try:
        for line in cockpit.remove():
            print(line, flush=True)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
