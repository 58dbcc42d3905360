"""Layers as they are on a box, seen from outside of it and past left4me's own programs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.boxes.boxes import Box
from tests.integration.ctl import RUNTIME, main_pid
from tests.integration.harness import SERVERS, pyinfra, write_inventory

OVERLAYS = "/var/lib/left4me/overlays"
ABOUT = "-printf '%i %C@ %M %u %g %s %p %l\\n'"
LEFTOVERS = r"find /var/lib/left4me -path '*/merged/*' -prune -o -name '.[ngd]*-*' -print"


def declare(path: Path, box: Box, layers: Mapping[str, Any], *top_first: str, **data: Any) -> Path:
    """Write an inventory whose server 3 has these of the layers, all of them unless said, and server 4 none."""
    servers = {**SERVERS, "3": {**SERVERS["3"], "layers": list(top_first or layers)}}
    return write_inventory(path, [box], **{"layers": dict(layers), "servers": servers, **data})


def control(path: Path) -> dict[str, str]:
    """Return a layer that comes from a directory of this machine."""
    return {"source": "control", "path": str(path)}


def merged(box: Box, name: str, server: str = "3") -> Path:
    """Return where a file of a mounted server can be read from outside."""
    return Path(f"/proc/{box.leader}/root{RUNTIME}/{server}/merged/left4dead2/{name}")


def lowers(box: Box, server: str = "3") -> list[str]:
    """Return the lower directories of a server's mount, the topmost first, as the box's PID 1 has it (mountinfo)."""
    lines = Path(f"/proc/{box.leader}/mountinfo").read_text(encoding="utf-8").splitlines()
    [options] = [line.split()[-1] for line in lines if line.split()[4] == f"{RUNTIME}/{server}/merged"]
    [found] = [each.removeprefix("lowerdir=") for each in options.split(",") if each.startswith("lowerdir=")]
    return found.split(":")


def current(box: Box, layer: str) -> str:
    """Return the path of a layer's current version."""
    return f"{OVERLAYS}/{layer}/" + box.run(f"readlink {OVERLAYS}/{layer}/current").stdout.strip()


def versions(box: Box, layer: str) -> list[str]:
    """Return the paths of all that lies beside a layer's current version, and of that."""
    names = box.run(f"ls -A {OVERLAYS}/{layer}").stdout.split()
    return sorted(f"{OVERLAYS}/{layer}/{name}" for name in names if name != "current")


def about(box: Box, path: str) -> str:
    """Return inode, ctime, mode, owner, size and name of all in a tree: two equal answers mean it is as it was."""
    return box.run(f"find {path}/ {ABOUT} | sort -k7").stdout


def untouched(box: Box, layers: str = "*") -> dict[str, Any]:
    """Return what a deploy that fails at layers leaves as it is: all below them, what runs, and what is mounted."""
    found: dict[str, Any] = {server: (main_pid(box, server), lowers(box, server)) for server in SERVERS}
    return {**found, "files": box.run(f"find {OVERLAYS}/{layers} -mindepth 1 {ABOUT} | sort -k7").stdout}


def deploy_fails(inventory: Path, *said: str) -> None:
    """Deploy, which has to exit with 1 and say exactly these lines, as patterns, of a layer or a refusal."""
    done = pyinfra(inventory, "deploy.py", "-y")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"\] (layer |refused)", line)]
    assert len(lines) == len(said), done.stdout + done.stderr
    for line, pattern in zip(lines, said, strict=True):
        assert re.search(pattern, line), (line, pattern)
