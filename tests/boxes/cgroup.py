"""A cgroup for each box, so that the systemd in one box never sees the units of another.

If systemd is PID 1, it creates a transient unit with a delegated cgroup. Otherwise the directories are made here, under
/sys/fs/cgroup (v2) or its `systemd` and `unified` hierarchies (hybrid).
"""

import contextlib
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.boxes.system import BoxError, tool

_ROOT = Path("/sys/fs/cgroup")
# sd_booted(3): this directory exists exactly if systemd is PID 1.
SYSTEMD = Path("/run/systemd/system").is_dir()
_V2 = _ROOT if (_ROOT / "cgroup.controllers").exists() else _ROOT / "unified"
_HIERARCHIES = [_V2] if _V2 == _ROOT else [_V2, _ROOT / "systemd"]
_ENTER = """
for place in $1; do echo $$ >"$place/cgroup.procs" || exit 1; done
log=$2; shift 2
exec setsid --fork "$@" >>"$log" 2>&1
"""


@dataclass(frozen=True)
class Group:
    """The processes in a cgroup: those of a box or of the proxy."""

    name: str

    @property
    def _below(self) -> str:
        return f"system.slice/{self.name}.service" if SYSTEMD else self.name

    @property
    def path(self) -> Path:
        """The directory in the cgroup v2 hierarchy; missing unless the box runs or waits for cleanup."""
        return _V2 / self._below

    def alive(self) -> bool:
        """Return whether it has a process; needs no privileges."""
        try:
            return "populated 1" in (self.path / "cgroup.events").read_text()
        except OSError:
            return False

    def start(self, argv: list[str], log: Path) -> None:
        """Start a program in it, detached from the caller, with standard output and error in ``log``."""
        if SYSTEMD:
            output = [f"--property=Standard{which}=append:{log}" for which in ("Output", "Error")]
            unit = [f"--unit={self.name}", "--collect", "--quiet", "--property=Delegate=yes", *output]
            tool("systemd-run", *unit, "--", *argv)
            return
        places = [hierarchy / self._below for hierarchy in _HIERARCHIES]
        for place in places:
            try:
                place.mkdir(exist_ok=True)
            except OSError as error:
                raise BoxError(f"{place}: {error.strerror}: boxes need a writable cgroup hierarchy") from None
        tool("/bin/sh", "-c", _ENTER, "enter", " ".join(map(str, places)), log, *argv, detaches=True)

    def wait_empty(self, seconds: float) -> None:
        """Wait until it has no process. Raises BoxError after ``seconds``."""
        deadline = time.monotonic() + seconds
        try:
            with (self.path / "cgroup.events").open() as events:
                poller = select.poll()
                poller.register(events, select.POLLPRI)
                while "populated 1" in events.read():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise BoxError(f"{self.name}: processes still running after {seconds:.0f} s")
                    poller.poll(left * 1000)
                    events.seek(0)
        except OSError:
            # systemd has removed it meanwhile.
            if self.alive():
                raise

    def remove(self) -> None:
        """Kill its processes and remove it, if it exists."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")
        self.wait_empty(30)
        if SYSTEMD:
            # systemd removes the unit some time after its last process ends; a new one needs the name.
            tool("/bin/sh", "-c", 'systemctl stop "$0" 2>/dev/null || test $? = 5', f"{self.name}.service")
            return
        for hierarchy in _HIERARCHIES:
            for directory in _deepest_first(hierarchy / self._below):
                directory.rmdir()


def groups(prefix: str) -> list[Group]:
    """Return the cgroups of this machine whose name starts with ``prefix``."""
    parents = [h / "system.slice" for h in _HIERARCHIES] if SYSTEMD else _HIERARCHIES
    found = {path.name.removesuffix(".service") for parent in parents for path in parent.glob(prefix + "*")}
    return [Group(name) for name in sorted(found)]


def _deepest_first(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        for child in directory.iterdir():
            if child.is_dir():
                yield from _deepest_first(child)
        yield directory
