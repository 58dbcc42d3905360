"""The programs that boxes need on this machine, and their installation by apt."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.boxes.mirror import KEYRING
from tests.boxes.system import BoxError, environment, locked

# program → Debian package
_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "journalctl": "systemd",
    "ip": "iproute2",
    "tinyproxy": "tinyproxy-bin",
    "ssh": "openssh-client",
    "gpgv": "gpgv",
    "quakestat": "qstat",  # a third-party A2S client, to check the stand-in game
}
FOR_MACHINES = {"qemu-system-x86_64": "qemu-system-x86", "mkfs.ext4": "e2fsprogs"}
"""What full machines need in addition."""
_WITHOUT = "./box list, make lint and the unit tests work without boxes"


def missing_requirements(more: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Return the Debian packages that boxes need and that are missing here; `more` is like _PROGRAMS."""
    path, programs = environment()["PATH"], {**_PROGRAMS, **more}
    missing = {package for program, package in programs.items() if shutil.which(program, path=path) is None}
    # A keyring from before Debian 13 does not have its keys.
    if not Path(KEYRING).exists() or not list(Path(KEYRING).parent.glob("debian-archive-trixie-stable.*")):
        missing.add("debian-archive-keyring")
    return sorted(missing)


def ensure(more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Install missing packages by apt, with those of `more`. Raises BoxError if this machine cannot run boxes."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise BoxError(f"boxes need Linux on x86_64; this is {system} on {machine}; {_WITHOUT}")
    if os.geteuid() != 0:
        raise BoxError(f"boxes need root for namespaces and overlay mounts; run this as root; {_WITHOUT}")
    missing = missing_requirements(more)
    if missing and shutil.which("apt-get") is None:
        raise BoxError(
            f"missing Debian packages: {', '.join(missing)}, and there is no apt to install them; {_WITHOUT}"
        )
    if missing:
        # apt waits for dpkg's lock, but not for the lock on its index.
        with locked(Path("/run/left4me-requirements.lock")):
            if missing := missing_requirements(more):
                _install(missing)
            if missing := missing_requirements(more):
                raise BoxError(f"missing after their installation: {', '.join(missing)}; {_WITHOUT}")


def _install(packages: list[str]) -> None:
    print(f"installing packages for boxes: {', '.join(packages)}", file=sys.stderr, flush=True)
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"]
    install = [*apt, "install", "--yes", "--no-install-recommends", *packages]
    done = _quietly(install)
    if done.returncode != 0:
        # The index of a fresh machine is empty or old. If the update fails, so does the installation.
        _quietly([*apt, "update"])
        done = _quietly(install)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise BoxError(f"apt-get could not install {', '.join(packages)}: {last}; {_WITHOUT}")


def _quietly(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    env = environment(DEBIAN_FRONTEND="noninteractive")
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False)
