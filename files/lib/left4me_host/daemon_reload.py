"""Tell how systemd sees left4me's units, and whether it needs a daemon-reload: daemon_reload.py UNIT…; changes nothing.

A part of l4d2ctl, and sent by a deploy as a program of its own.
NeedDaemonReload alone does not tell: 252 says no after the first drop-in in a new t@3.service.d/, both say no after a
new symlink in multi-user.target.wants/, and a directory of units that was not there when PID 1 started is not read at
all. So what systemd loaded is compared with the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from left4me_host import layout

# In systemd's order (systemd.unit(5)); the generated and transient ones cannot be left4me's.
DIRECTORIES = (layout.OWN_UNITS, "/run/systemd/system", layout.UNITS, "/usr/lib/systemd/system")
PROPERTIES = "Id,LoadState,ActiveState,SubState,UnitFileState,FragmentPath,DropInPaths,WantedBy,NeedDaemonReload"


def systemctl(*arguments: str) -> str:
    """Return what systemctl prints."""
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=True).stdout


def template_of(unit: str) -> str:
    """Return the template of an instance, or the unit itself."""
    prefix, at, rest = unit.partition("@")
    return f"{prefix}@.{rest.rpartition('.')[2]}" if at else unit


def fragment(unit: str) -> str:
    """Return the file that systemd has to read for a unit, as the disk has it."""
    names = [f"{directory}/{name}" for name in dict.fromkeys((unit, template_of(unit))) for directory in DIRECTORIES]
    return next((name for name in names if os.path.exists(name)), "")


def own_drop_ins(unit: str) -> set[str]:
    """Return the drop-ins that the disk has for a unit or its template; a name in an earlier directory hides others."""
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
    """Tell whether what systemd holds of a unit is not what the disk says."""
    name = unit["Id"]
    own = {f"{name}.d", f"{template_of(name)}.d"}
    loaded = {path for path in unit["DropInPaths"].split() if os.path.basename(os.path.dirname(path)) in own}
    # A target that does not know the symlink drops the server: `systemctl isolate` stops it, a stop forgets its result.
    wanted_otherwise = os.path.lexists(f"{layout.WANTS}/{name}") != ("multi-user.target" in unit["WantedBy"].split())
    return (
        unit["NeedDaemonReload"] == "yes"
        or wanted_otherwise
        or unit["FragmentPath"] != fragment(name)
        or loaded != own_drop_ins(name)
    )


def look(declared: list[str]) -> dict[str, object]:
    """Return the units (`units`, by name), and whether a reload is due (`reload`)."""
    # The imaginary instance tells how systemd reads the template where no real one is loaded.
    names = {*declared, "left4me-server@_check.service", "left4me.slice", "left4me-finish-resets.service"}
    listed = systemctl("list-units", "--all", "--plain", "--no-legend", "--no-pager", "left4me*")
    names |= {line.split()[0] for line in listed.splitlines() if line.split()}
    blocks = systemctl("show", "--no-pager", f"--property={PROPERTIES}", *sorted(names)).strip().split("\n\n")
    units = [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]
    return {"reload": any(map(stale, units)), "units": {unit["Id"]: unit for unit in units}}


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1:])))
