"""Install Debian packages: install_packages.py NAME:ARCHITECTURE…; fails if one is not installed at the end.

While another package manager runs, it waits.
"""

from __future__ import annotations

import sys

from left4me_host import apt

if __name__ == "__main__":
    apt.install(sys.argv[1:])
