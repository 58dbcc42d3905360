"""The Debian image under the boxes: built once by mmdebstrap, shared by all boxes and checkouts."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.boxes import mirror
from tests.boxes.system import BoxError, environment, held_locks, locked, tool

CACHE = Path("/var/cache/left4me/boxes")
# systemd, access to the box, and python3, which a deploy requires. The deploy installs the rest.
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "sudo", "iproute2")
ADMIN_UID = 1000
_FINISH = f"""
set -e
useradd --uid {ADMIN_UID} --create-home --shell /bin/bash admin
printf 'admin ALL=(ALL) NOPASSWD: ALL\\n' >/etc/sudoers.d/admin
chmod 0440 /etc/sudoers.d/admin
# Each box gets an identity of its own.
rm -f /etc/ssh/ssh_host_*_key* /etc/hostname /etc/apt/apt.conf.d/99mmdebstrap
printf '%s\\n' "$BOX_APT" >/etc/apt/apt.conf.d/10mirror
: >/etc/machine-id
# A persistent journal.
mkdir -p /var/log/journal
# Units that wait for a network, which a box has from the start, or that change the box.
systemctl disable --quiet systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer
"""


def image(debian: int, packages: Sequence[str] = ()) -> Path:
    """Return the root directory of a Debian's image with additional `packages`. Builds it if it is missing.

    It is built under a temporary name, with progress on stderr. Raises BoxError if the build fails.
    """
    if debian not in mirror.CODENAMES:
        raise BoxError(f"Debian {debian} is not supported: use 12 or 13")
    included = [*_PACKAGES, *(("ca-certificates",) if mirror.url().startswith("https:") else ()), *packages]
    place = CACHE / f"{debian}-{_recipe(included)}"
    if not place.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        # It has set-uid programs; other users must not reach them.
        CACHE.chmod(0o700)
        with locked(CACHE / f".{place.name}.lock"):
            if not place.is_dir():
                _build(debian, included, place)
    return place


def _recipe(packages: list[str]) -> str:
    parts = [*packages, _FINISH, mirror.url(), *mirror.carried_options()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def _build(debian: int, packages: list[str], place: Path) -> None:
    building = place.with_name(f".{place.name}.building")
    if building.exists():
        shutil.rmtree(building)
    options = mirror.carried_options()
    if proxy := mirror.upstream_proxy():
        options.append(f'Acquire::http::Proxy "{proxy}";')
    command = [
        # After a kill on either side, no process and no mount of the build remains.
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
        f"--include={','.join(packages)}",
        f"--architectures=amd64{',i386' if any(name.endswith(':i386') for name in packages) else ''}",
        *(f"--aptopt={option}" for option in options),
        '--customize-hook=chroot "$1" /bin/sh -c "$BOX_FINISH"',
        *(mirror.CODENAMES[debian], str(building), "-"),
    ]
    name = f"image of Debian {debian}"
    _say(f"{name}: building (once; takes about 30 seconds and 250 MB)")
    error = _run_with_progress(command, mirror.sources(debian), name)
    if error is not None:
        raise BoxError(f"{name}: the build failed: {error}")
    tool("sync", "--file-system", building, timeout=300)
    building.rename(place)
    _say(f"{name}: done")


def _run_with_progress(command: list[str], sources: str, name: str) -> str | None:
    """Run mmdebstrap and show its progress on stderr; return its last error message if it failed, else None."""
    apt = "\n".join(mirror.carried_options())
    last = "no error message"
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(BOX_FINISH=_FINISH, BOX_APT=apt),
        pass_fds=held_locks(),
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(sources)
        process.stdin.close()
        for line in process.stderr:
            if line.startswith("I: ") and line.rstrip().endswith("..."):
                _say(f"{name}: {line[3:].strip()}")
            elif line.startswith("E: "):
                last = line[3:].strip()
    return None if process.returncode == 0 else last


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
