"""Install what is missing of Cockpit, and let it listen: set_up_cockpit.py LISTEN.

Its drop-in must be on disk: without it, Cockpit listens on every address as soon as it is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys

from left4me_host import apt, cockpit
from left4me_host.instance import Failed


def set_up(listen: str) -> None:
    """Raises Failed."""
    there = apt.installed([*cockpit.PACKAGES])
    if missing := [name for name in cockpit.PACKAGES if name not in there]:
        apt.install(missing, before=cockpit.record)
    cockpit.reload()  # its drop-in
    if cockpit.listens() != [listen]:
        cockpit.start(listen)
    elif cockpit.is_outdated():
        cockpit.restart()


if __name__ == "__main__":
    os.umask(0o022)
    try:
        set_up(sys.argv[1])
    except (Failed, OSError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
