"""What the tests of the stop path do to a box as its operator, and as somebody who plays on it."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.boxes.boxes import Box
from tests.integration.harness import SERVERS, properties, wait_for, write_inventory

LAYER = "rcon"
"""A layer that gives every server that has it an RCON password."""
PASSWORD = "swordfish"
RUNTIME = "/var/lib/left4me/runtime"
ATTIC = "/var/lib/left4me/attic"


def ctl(box: Box, words: str, *, code: int = 0, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run l4d2ctl as root; fail where it does not exit with `code`."""
    done = box.run(f"l4d2ctl {words}", check=False, timeout=timeout)
    assert done.returncode == code, f"l4d2ctl {words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def unit(server: str) -> str:
    """Return the name of a server's unit."""
    return f"left4me-server@{server}.service"


def state(box: Box, server: str) -> str:
    """Return a server's state as systemd reports it."""
    return properties(box, unit(server), "ActiveState")["ActiveState"]


def main_pid(box: Box, server: str) -> str:
    """Return a server's PID as systemd reports it."""
    return properties(box, unit(server), "MainPID")["MainPID"]


def fleet(path: Path, boxes: Iterable[Box], servers: dict[str, Any] | None = None, **data: Any) -> Path:
    """Write an inventory whose servers can be told by RCON what to do, and give each box the layer for it."""
    boxes = list(boxes)
    for box in boxes:
        add_layer(box)
    declared = {server: {"layers": [LAYER], **of_its_own} for server, of_its_own in (servers or SERVERS).items()}
    return write_inventory(path, boxes, servers=declared, **data)


def add_layer(box: Box, name: str = LAYER, version: str = "1", file: str = "left4dead2/cfg/autoexec.cfg") -> None:
    """Make a version of a layer, with one file, and make it current."""
    overlay = f"/var/lib/left4me/overlays/{name}"
    box.run(f"""
        set -e
        mkdir -p $(dirname {overlay}/{version}/{file})
        chmod 0755 /var/lib/left4me
        echo 'rcon_password {PASSWORD}' >{overlay}/{version}/{file}
        # As a release: a directory that the game may write, whichever layer it is seen from.
        chown -R 980:980 {overlay}/{version}
        chmod -R g+rwX {overlay}/{version}
        ln -sfn {version} {overlay}/current
    """)


def rcon(box: Box, port: int, *commands: str) -> None:
    """Execute console commands on a server (https://developer.valvesoftware.com/wiki/Source_RCON_Protocol)."""
    with socket.create_connection((str(box.address), port), timeout=10) as connection:
        stream = connection.makefile("rb")

        def ask(kind: int, body: str) -> None:
            packet = struct.pack("<ii", 1, kind) + body.encode() + b"\0\0"
            connection.sendall(struct.pack("<i", len(packet)) + packet)

        def answer() -> int:
            (size,) = struct.unpack("<i", stream.read(4))
            number: int = struct.unpack("<i", stream.read(size)[:4])[0]
            return number

        ask(3, PASSWORD)
        answer()
        assert answer() == 1, "the RCON password is wrong"
        for command in commands:
            ask(2, command)
            answer()


def wait_for_state(box: Box, server: str, wanted: str, limit: float = 20) -> None:
    """Return when systemd has a server in a state."""
    wait_for(f"server {server} is {wanted}", lambda: state(box, server) == wanted, limit)
