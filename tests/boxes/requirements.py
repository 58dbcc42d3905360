"""What boxes need of this machine, and its installation by apt where that is possible."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

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
    "quakestat": "qstat",  # what the stand-in game is asked with, by somebody else's program
}
_WITHOUT = "./box list, make lint and the unit tests work without"


def missing_requirements() -> list[str]:
    """The Debian packages that boxes need and this machine lacks."""
    path = environment()["PATH"]
    wanted = {package for program, package in _PROGRAMS.items() if shutil.which(program, path=path) is None}
    # A keyring from before Debian 13 cannot check its packages.
    if not Path(KEYRING).exists() or not list(Path(KEYRING).parent.glob("debian-archive-trixie-stable.*")):
        wanted.add("debian-archive-keyring")
    return sorted(wanted)


def ensure() -> None:
    """Have what boxes need, installed by apt if it is missing.

    Raises BoxError with one line that says what is missing and what works without, if that cannot be done here.
    """
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise BoxError(f"boxes need Linux on x86_64, this is {system} on {machine}; {_WITHOUT}")
    if os.geteuid() != 0:
        raise BoxError(f"boxes need root (namespaces, overlay mounts): run it as root; {_WITHOUT}")
    missing = missing_requirements()
    if missing and shutil.which("apt-get") is None:
        raise BoxError(f"missing here: {', '.join(missing)} (Debian's names), and no apt to install it; {_WITHOUT}")
    if missing:
        # apt waits for dpkg's lock, but not for that of its index.
        with locked(Path("/run/left4me-requirements.lock")):
            if missing := missing_requirements():
                _install(missing)


def _install(packages: list[str]) -> None:
    print(f"installing what boxes need: {', '.join(packages)}", file=sys.stderr, flush=True)
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"]
    install = [*apt, "install", "--yes", "--no-install-recommends", *packages]
    said = _quietly(install)
    if said.returncode != 0:
        # The index of a fresh machine is empty or old; judge by the installation alone.
        _quietly([*apt, "update"])
        said = _quietly(install)
    if said.returncode != 0 or missing_requirements():
        last = (said.stderr.strip() or said.stdout.strip() or "it said nothing").splitlines()[-1]
        raise BoxError(f"apt-get could not install {', '.join(packages)}: {last}; {_WITHOUT}")


def _quietly(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False)


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
