"""Have systemd apply the files in sysctl.d, and check the kernel's values: load_sysctl.py JSON.

The JSON maps names to the declared values. Fails if the kernel then has another value.
"""

from __future__ import annotations

import json
import subprocess
import sys

from left4me_host import procfs


def main(declared: dict[str, int]) -> None:
    command = ["systemctl", "restart", "systemd-sysctl.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pairs = [(name, procfs.sysctl(name), wanted) for name, wanted in declared.items()]
    if wrong := [f"{name} is {found}, not {wanted}" for name, found, wanted in pairs if found != wanted]:
        look = "a file that systemd reads later sets it (systemd-analyze cat-config sysctl.d), or the kernel refuses it"
        sys.exit(f"{'; '.join(wrong)}: {done.stderr.strip() or look}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
