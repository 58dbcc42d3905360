"""daemon_reload.py UNIT…: print left4me's units as systemd sees them, and whether a daemon-reload is needed, as JSON.

A module of l4d2ctl; deploys also send it as a program. It changes nothing.
NeedDaemonReload is not enough: systemd 252 misses the first drop-in in a new t@3.service.d/, all versions miss a new
symlink in multi-user.target.wants/, and a unit directory that was missing when PID 1 started is not read at all. So
this module compares what systemd has loaded with the disk. It also tells whether the kernel has the limits that systemd
has loaded, which a daemon-reload alone does not write.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from left4me_host import layout

# In systemd's order (systemd.unit(5)); left4me has no generated units, and transient ones only for its jobs.
DIRECTORIES = (layout.OWN_UNITS, "/run/systemd/system", layout.UNITS, "/usr/lib/systemd/system")
PROPERTIES = "Id,LoadState,ActiveState,SubState,UnitFileState,FragmentPath,DropInPaths,WantedBy,NeedDaemonReload"
PROPERTIES += ",ControlGroup,CPUWeight,CPUQuotaPerSecUSec,MemoryMax"
PAGE = os.sysconf("SC_PAGE_SIZE")
_MICROSECONDS = {"min": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1}

EXTENDED = ("nftables.service", "cockpit.socket")
"""Units of other packages that have a drop-in of left4me."""
JOBS = "left4me-job-"
"""The units of jobs are transient: they have no file that systemd could read again."""


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=True).stdout


def template_of(unit: str) -> str:
    """Return the name of an instance's template; for other units, their own name."""
    prefix, at, rest = unit.partition("@")
    return f"{prefix}@.{rest.rpartition('.')[2]}" if at else unit


def fragment(unit: str) -> str:
    """Return the path of a unit's file on disk; empty if there is none."""
    names = [f"{directory}/{name}" for name in dict.fromkeys((unit, template_of(unit))) for directory in DIRECTORIES]
    return next((name for name in names if os.path.exists(name)), "")


def own_drop_ins(unit: str) -> set[str]:
    """Return the paths of the drop-ins on disk of a unit and its template; earlier directories hide later ones."""
    found: dict[str, str] = {}
    for name in (template_of(unit), unit):
        for directory in reversed(DIRECTORIES):
            try:
                files = os.listdir(f"{directory}/{name}.d")
            except FileNotFoundError:
                continue
            found.update({file: f"{directory}/{name}.d/{file}" for file in files if file.endswith(".conf")})
    return set(found.values())


def stale(unit: dict[str, str]) -> bool:
    """Return whether systemd has loaded a unit (its `show` properties) differently from what is on disk."""
    name = unit["Id"]
    own = {f"{name}.d", f"{template_of(name)}.d"}
    loaded = {path for path in unit["DropInPaths"].split() if os.path.basename(os.path.dirname(path)) in own}
    # `systemctl isolate` stops a server whose symlink the target has not loaded, and systemd forgets its Result.
    wants_differ = os.path.lexists(f"{layout.WANTS}/{name}") != ("multi-user.target" in unit["WantedBy"].split())
    return (
        unit["NeedDaemonReload"] == "yes"
        or wants_differ
        or unit["FragmentPath"] != fragment(name)
        or loaded != own_drop_ins(name)
    )


def is_drop_in_stale(unit: dict[str, str]) -> bool:
    """Return whether systemd has not loaded left4me's drop-in of another package's unit as it is on disk."""
    path = f"{layout.OWN_UNITS}/{unit['Id']}.d/left4me.conf"
    exists = os.path.exists(path)
    return (path in unit["DropInPaths"].split()) != exists or (exists and unit["NeedDaemonReload"] == "yes")


def has_other_limits(unit: dict[str, str]) -> bool:
    """Return whether the cgroup of a unit has other limits than systemd has loaded; False where there are none."""
    if not unit.get("ControlGroup"):
        return False  # it does not run, or is a timer
    found = {}
    for name in ("cpu.weight", "cpu.max", "memory.max"):
        try:
            with open(f"/sys/fs/cgroup{unit['ControlGroup']}/{name}", encoding="ascii") as file:
                found[name] = file.read().split()
        except OSError:  # it has just ended, or a container may not limit it
            return False
    size, span = unit["MemoryMax"], unit["CPUQuotaPerSecUSec"]
    memory = str(int(size) // PAGE * PAGE) if size.isdigit() else "max"
    weight = unit["CPUWeight"] if unit["CPUWeight"].isdigit() else "100"  # the kernel's default
    parts = re.findall(r"([\d.]+)(min|ms|us|s)\b", span)
    share = round(sum(float(number) * _MICROSECONDS[name] for number, name in parts))
    quota, period = found["cpu.max"]
    has = "max" if quota == "max" else round(int(quota) * 1_000_000 / int(period))
    return (found["memory.max"], found["cpu.weight"], has) != ([memory], [weight], share if parts else "max")


def look(declared: list[str]) -> dict[str, object]:
    """Return how systemd has loaded left4me's units and the `declared` ones.

    `units` has their properties by name. `reload`: systemd needs a daemon-reload. `limits`: the kernel has other limits
    of CPU or memory than systemd.
    """
    # The instance _check does not exist; it shows how systemd reads the template if no instance is loaded.
    names = {*declared, "left4me-server@_check.service", "left4me.slice", "left4me-finish-resets.service", *EXTENDED}
    listed = systemctl("list-units", "--all", "--plain", "--no-legend", "--no-pager", "left4me*")
    loaded = [line.split()[0] for line in listed.splitlines() if line.split()]
    names |= {name for name in loaded if not name.startswith(JOBS)}
    blocks = systemctl("show", "--no-pager", f"--property={PROPERTIES}", *sorted(names)).strip().split("\n\n")
    shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]
    units = {unit["Id"]: unit for unit in shown}
    extended = [units.pop(name) for name in EXTENDED]
    is_stale = any(map(stale, units.values())) or any(map(is_drop_in_stale, extended))
    return {"reload": is_stale, "limits": any(map(has_other_limits, units.values())), "units": units}


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1:])))
