"""What the box tests share: an inventory of boxes, pyinfra as an operator starts it, looks at a box from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import a2s

from tests.boxes.boxes import Box

ROOT = Path(__file__).parent.parent.parent
PYINFRA = Path(sys.executable).with_name("pyinfra")
GAME = {"source": "control", "path": ".boxes/game"}
SERVERS: Mapping[str, Any] = {"3": {"port": 27015, "hostname": "three"}, "4": {"port": 27016, "hostname": "four"}}
# What a deploy manages, less what the running servers themselves change.
MANAGED = (
    "/etc/left4me /usr/local/libexec/left4me /usr/local/lib/systemd /etc/systemd/system /var/lib/left4me/releases "
    "/var/lib/left4me/installation /var/lib/left4me/runtime/*/work /etc/passwd /etc/group"
)


def write_inventory(
    path: Path, boxes: Iterable[Box], user: str = "root", hosts: Mapping[str, Any] | None = None, **data: Any
) -> Path:
    """Write an inventory file of boxes; `data` is every host's, `hosts` what one host has of its own by its name."""
    common = {"game": GAME, "servers": dict(SERVERS), "ssh_config_file": "/dev/null", **data}
    if user != "root":
        common |= {"_sudo": True}
    listed = [
        (
            box.name,
            {
                "ssh_hostname": box.address,
                "ssh_user": user,
                "ssh_key": str(box.ssh_key),
                "ssh_known_hosts_file": str(box.known_hosts),
                "ssh_strict_host_key_checking": "yes",
                **common,
                **((hosts or {}).get(box.name, {})),
            },
        )
        for box in boxes
    ]
    path.write_text(f"boxes = {listed!r}\n", encoding="utf-8")
    return path


def pyinfra(*arguments: str | Path, timeout: float = 300, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run pyinfra in the repository's root, as an operator does."""
    command = [str(PYINFRA), *map(str, arguments)]
    # No spinner, and no agent of whoever runs the tests.
    environment = {key: value for key, value in os.environ.items() if key != "SSH_AUTH_SOCK"}
    environment["PYINFRA_PROGRESS"] = "off"
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False, **kwargs
    )


def deploy(inventory: Path, *arguments: str) -> dict[str, Any]:
    """Deploy, which must succeed, and return pyinfra's results."""
    done = pyinfra(inventory, "deploy.py", "-y", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)["results"]
    return results


def changed(results: Mapping[str, Any]) -> list[str]:
    """Return the names of the operations that changed a host; everything has to have succeeded."""
    assert results["totals"]["error"] == 0, results
    return [each["name"] for each in results["operations"] if each["success"]]


def properties(box: Box, unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit as systemd reports them."""
    out = box.run(f"systemctl show {unit} -p {','.join(names)}").stdout
    return dict(line.split("=", 1) for line in out.splitlines())


def overlays(box: Box) -> list[str]:
    """Return the mount points of left4me's overlays in a box, as its PID 1 has them, read from outside."""
    lines = Path(f"/proc/{box.leader}/mountinfo").read_text(encoding="utf-8").splitlines()
    return [fields[4] for fields in map(str.split, lines) if "/left4me/" in fields[4] and "overlay" in fields]


def inodes(box: Box, paths: str = MANAGED) -> str:
    """Return inode, ctime and name of everything below `paths`: two equal answers mean that nothing was changed."""
    return box.run(f"find {paths} -xdev -printf '%i %C@ %p\\n' | sort -k3").stdout


def name_over_a2s(box: Box, port: int) -> str:
    """Ask a server for its name from outside the box; raises TimeoutError where nobody answers."""
    return str(a2s.info((str(box.address), port), timeout=1.0).server_name)


def wait_for(what: str, condition: Callable[[], bool], limit: float = 20) -> None:
    """Return when `condition` holds; fail after `limit` seconds, saying `what` did not come."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.02)


def wait_for_server(box: Box, port: int, limit: float = 20) -> None:
    """Return when a server answers A2S."""

    def answers() -> bool:
        try:
            return bool(name_over_a2s(box, port))
        except OSError:
            return False

    wait_for(f"{box.name}:{port} answers A2S", answers, limit)
