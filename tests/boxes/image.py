"""The bare Debian image under the boxes: made once by mmdebstrap, shared by every box and checkout."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.boxes import mirror
from tests.boxes.system import BoxError, environment, held_locks, locked, tool

CACHE = Path("/var/cache/left4me/boxes")
# systemd and what a box is reached by; python3 is what a deploy asks of a host. The rest the deploy installs.
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "sudo", "iproute2")
ADMIN_UID = 1000
_FINISH = f"""
set -e
useradd --uid {ADMIN_UID} --create-home --shell /bin/bash admin
printf 'admin ALL=(ALL) NOPASSWD: ALL\\n' >/etc/sudoers.d/admin
chmod 0440 /etc/sudoers.d/admin
# Each box gets its own identity.
rm -f /etc/ssh/ssh_host_*_key* /etc/hostname /etc/apt/apt.conf.d/99mmdebstrap
printf '%s\\n' "$BOX_APT" >/etc/apt/apt.conf.d/10mirror
: >/etc/machine-id
# A journal that survives a power cut.
mkdir -p /var/log/journal
# What waits for hardware or for a network that the box already has, and what changes something by itself.
systemctl disable --quiet systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer
"""


def image(debian: int, packages: Sequence[str] = ()) -> Path:
    """Return the root directory of that Debian's image; build it first, with progress on stderr, if it is missing.

    `packages` are installed in it beyond what a bare one has.

    Built beside its place and renamed, so that what is there is whole. Raises BoxError if it cannot be built.
    """
    if debian not in mirror.CODENAMES:
        raise BoxError(f"Debian {debian}: there are boxes of Debian 12 and 13 only")
    included = [*_PACKAGES, *(("ca-certificates",) if mirror.url().startswith("https:") else ()), *packages]
    place = CACHE / f"{debian}-{_recipe(included)}"
    if not place.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        # It holds set-uid programs and, once in use, nothing for other users to look at.
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
        # Whoever is killed, here or there: no process and no mount of a half-built image stays behind.
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
    _say(f"{name}: building (once, about half a minute and 250 MB)")
    said = _run_showing(command, mirror.sources(debian), name)
    if said is not None:
        raise BoxError(f"{name} cannot be built: {said}")
    tool("sync", "--file-system", building, timeout=300)
    building.rename(place)
    _say(f"{name}: done")


def _run_showing(command: list[str], sources: str, name: str) -> str | None:
    """Run it with its messages passed on to stderr; return None, or what it said last if it failed."""
    apt = "\n".join(mirror.carried_options())
    last = "it said nothing"
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
