"""What the tests of the stop path do to a box as its operator, and as somebody who plays on it."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.boxes.boxes import Box
from tests.integration.harness import SERVERS, properties, wait_for, write_inventory

LAYER = "layer"
LAYERS = {LAYER: {"source": "control", "path": "tests/boxes/layer"}}
PASSWORD = "swordfish"
RUNTIME = "/var/lib/left4me/runtime"
ATTIC = "/var/lib/left4me/attic"


CHANGES = re.compile(r"(start|stop|restart|reset)\b|game (rollback|update(?! --check))|doctor .*--fix")
BEGUN = re.compile(r"^job (\d+) is running; to follow it from elsewhere: l4d2ctl jobs -f \1\n", re.MULTILINE)
SUCCEEDED = re.compile(r"^job \d+ succeeded in \d+\.\d\d s\n\Z", re.MULTILINE)
FAILED = re.compile(r"^job \d+ (failed after \d+\.\d\d s|was cancelled|was interrupted)\n\Z", re.MULTILINE)


def ctl(box: Box, words: str, *, code: int = 0, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run l4d2ctl as root; fail where it does not exit with `code`, or does not say last how its job ended.

    What it says of its job is left out of what this returns.
    """
    done = box.run(f"l4d2ctl {words}", check=False, timeout=timeout)
    assert done.returncode == code, f"l4d2ctl {words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return without_job(words, done)


def without_job(words: str, done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Return what l4d2ctl printed but for the lines on its job; fail if it succeeded and does not say so last."""
    code = done.returncode
    if not CHANGES.match(words) or code == 2 or "--help" in words:
        assert not re.search(r"^job \d", done.stdout, re.MULTILINE) or words.startswith("jobs")
        return done
    is_json = "--json" in words
    out, err = (text if is_json else BEGUN.sub("", text) for text in (done.stdout, done.stderr))
    if is_json:
        err = BEGUN.sub("", err)
    if code == 0 and not is_json:
        assert SUCCEEDED.search(out), done.stdout
    elif code == 0:
        assert SUCCEEDED.search(err), done.stderr
    out, err = SUCCEEDED.sub("", out), (SUCCEEDED if code == 0 else FAILED).sub("", err)
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line of a command that was refused before it was a job."""
    [line] = done.stderr.splitlines()
    assert done.stdout == ""
    return line


def jobs(box: Box) -> list[dict[str, Any]]:
    """Return the jobs of a box, latest first."""
    found: list[dict[str, Any]] = json.loads(ctl(box, "jobs --json").stdout)
    return found


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
    """Write an inventory whose servers can be told by RCON what to do, and have a layer."""
    return write_inventory(path, boxes, **layered(servers or SERVERS, **data))


def layered(servers: Mapping[str, Any] = SERVERS, **data: Any) -> dict[str, Any]:
    """Return the data of a host whose servers have a layer, and a password for RCON, beside their own."""
    common = {"layers": [LAYER], "rcon_password": PASSWORD}
    return {"layers": LAYERS, **data, "servers": {server: {**common, **own} for server, own in servers.items()}}


def add_version(box: Box, version: str, layer: str = LAYER) -> str:
    """Make a copy of a layer's current version and make it current, as a deploy would; return the one before."""
    folder = f"/var/lib/left4me/overlays/{layer}"
    before = box.run(f"readlink {folder}/current").stdout.strip()
    box.run(f"cd {folder} && cp -a {before}/. {version} && ln -sfn {version} current")
    return before


def rcon(box: Box, port: int, *commands: str, seconds: float = 10) -> None:
    """Execute console commands on a server (https://developer.valvesoftware.com/wiki/Source_RCON_Protocol).

    Each answer must come within `seconds`.
    """
    with socket.create_connection((str(box.address), port), timeout=seconds) as connection:
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


def game_writes(box: Box, name: str, text: str, server: str = "3") -> None:
    """Write a file in a running server's left4dead2 as its game does."""
    as_the_game = f"setpriv --reuid left4me-{server} --regid left4me --clear-groups"
    lines = f"mkdir -p $(dirname {name}); echo {text} >{name}"
    box.run(f"cd {RUNTIME}/{server}/merged/left4dead2 && {as_the_game} sh -c '{lines}'")


def wait_for_state(box: Box, server: str, wanted: str, limit: float = 20) -> None:
    """Return when systemd has a server in a state."""
    wait_for(f"server {server} is {wanted}", lambda: state(box, server) == wanted, limit)
