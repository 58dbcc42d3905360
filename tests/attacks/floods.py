"""A game that floods what its server shares with others, and how long a neighbour's stops take beside it.

The game is a layer's program in the place of srcds_run, inside the real unit. The file `flood` in left4dead2 says what
it floods, and how much.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.boxes.boxes import Box
from tests.integration.ctl import LAYER, LAYERS, layered, state
from tests.integration.harness import wait_for, wait_for_server

FLOODER, NEIGHBOUR = "3", "4"
PORTS = {FLOODER: 27015, NEIGHBOUR: 27016}
FLOODS: Mapping[str, int] = {
    # Processes that each hold as many sockets as they may, and try those that the sandbox hides.
    "sockets": 50,
    "journal": 8,
    "processes": 120,
    "CPU": 200,
    "memory": 1,
    "dirty pages": 2,
    "inodes": 2,
    "disk": 2,
}
"""What a server floods, and by how many processes."""
GAME = rb"""#!/usr/bin/python3 -I
import mmap, os, signal, socket, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.chdir(os.path.join(os.path.dirname(sys.argv[0]), "left4dead2"))
kind, processes, size = open("flood").read().strip().split(":")
size = int(size)
heard, says = os.pipe()

def at_its_height():
    os.write(says, b".")

def sockets(number):
    held = []
    try:
        while True:
            held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            held[-1].connect(("198.18.255.254", 9))
    except OSError:
        held.pop()
    at_its_height()
    while True:
        for path in ("/run/systemd/journal/stdout", "/run/systemd/notify", "/run/dbus/system_bus_socket"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as each:
                each.connect_ex(path)

def journal(number):
    at_its_height()
    while True:
        os.write(1, b"x" * 100 + b"\n")

def forks(number):
    at_its_height()
    while True:
        try:
            if os.fork() == 0:
                os._exit(0)
            os.wait()
        except OSError:
            pass

def cpu(number):
    at_its_height()
    while True:
        pass

def memory(number):
    held = mmap.mmap(-1, size)
    turn = 0
    while True:
        turn += 1
        for page in range(0, size, 4096):
            held[page] = turn % 256
        if turn == 1:
            at_its_height()

def dirty(number):
    block, out = os.urandom(1 << 20), os.open("dirty%d" % number, os.O_WRONLY | os.O_CREAT)
    turn = 0
    while True:
        turn += 1
        for offset in range(0, size, 1 << 20):
            os.pwrite(out, block, offset)
        if turn == 1:
            at_its_height()

def inodes(number):
    tops = ["saved", "/tmp/saved"]
    for top in tops:
        os.makedirs(top, exist_ok=True)
    made = 0
    while tops and made < size:
        for top in list(tops):
            try:
                os.close(os.open("%s/%d-%d" % (top, number, made), os.O_WRONLY | os.O_CREAT))
                made += 1
            except OSError:
                tops.remove(top)
    at_its_height()
    while True:  # goes on at the limit
        for top in ("saved", "/tmp/saved"):
            path = "%s/%d-again" % (top, number)
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
                os.unlink(path)
            except OSError:
                pass

def disk(number):
    block, out = os.urandom(1 << 20), os.open("filled%d" % number, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while os.fstat(out).st_size < size:
            os.write(out, block)
    except OSError:
        pass
    at_its_height()
    while True:
        try:
            os.ftruncate(out, os.fstat(out).st_size - (8 << 20))
            for _ in range(8):
                os.write(out, block)
        except OSError:
            pass

acts = {"sockets": sockets, "journal": journal, "processes": forks, "CPU": cpu, "memory": memory}
acts |= {"dirty pages": dirty, "inodes": inodes, "disk": disk}
open("building", "w").close()
for number in range(int(processes)):
    if os.fork() == 0:
        acts[kind](number)
for number in range(int(processes)):
    os.read(heard, 1)
os.rename("building", "built-up")
while True:
    signal.pause()
"""
UPPER = f"/var/lib/left4me/runtime/{FLOODER}/upper/left4dead2"


def declared(folder: Path, **own: Any) -> dict[str, Any]:
    """Return the data of a host whose server 3 is the flooder, declared stopped; `own` are its further data.

    The flooder's layer is made in `folder`.
    """
    program = folder / "hostile/srcds_run"
    program.parent.mkdir()
    program.write_bytes(GAME)
    program.chmod(0o755)
    layers = {**LAYERS, "hostile": {"source": "control", "path": str(program.parent)}}
    flooder = {"port": PORTS[FLOODER], "layers": ["hostile", LAYER], "state": "stopped", **own}
    return layered({FLOODER: flooder, NEIGHBOUR: {"port": PORTS[NEIGHBOUR]}}, layers=layers)


def stopping(host: Box, server: str = NEIGHBOUR) -> float:
    """Stop a server, and start it again. Return how long the stop took, in seconds, measured on the host."""
    timed = f"begin=$(date +%s%N); l4d2ctl stop {server} >&2; echo $((($(date +%s%N) - begin) / 1000000))"
    seconds = int(host.run(timed, timeout=120).stdout) / 1000
    assert state(host, server) == "inactive"
    assert f"/runtime/{server}/" not in host.run("cat /proc/1/mountinfo").stdout
    host.run(f"l4d2ctl start {server}", timeout=120)
    wait_for_server(host, PORTS[server], 120)
    return seconds


@contextmanager
def flooding(host: Box, kind: str, size: int, processes: int, limit: float) -> Iterator[None]:
    """Have the flooder flood while the block runs.

    The block begins when the flood is at its height; fails if that takes more than `limit` seconds.
    `size` is in bytes, of inodes a number. Afterwards the flooder is stopped, and what it wrote is gone.
    """
    host.run(f"""
        mkdir -p {UPPER}; echo '{kind}:{processes}:{size}' >{UPPER}/flood
        chown -R left4me-{FLOODER}:left4me {UPPER}; l4d2ctl start {FLOODER}
    """)
    try:
        built_up = f"test -e {UPPER}/built-up"
        wait_for(f"the flood of {kind} is built up", lambda: not host.run(built_up, check=False).returncode, limit)
        yield
    finally:
        host.run(f"l4d2ctl stop {FLOODER}; find {UPPER} -delete", timeout=300)
    assert state(host, FLOODER) == "inactive"
    assert host.run(f"pgrep -u left4me-{FLOODER}", check=False).stdout == ""


@dataclass(frozen=True)
class Stops:
    """How long the neighbour's stops took, in seconds: without the flood of a kind, and beside it."""

    kind: str
    quiet: list[float]
    beside: list[float]

    def __str__(self) -> str:
        median, before = statistics.median(self.beside), statistics.median(self.quiet)
        longest, ratio = max(self.beside), median / before
        return f"{self.kind:12} {median:6.2f} s (longest {longest:.2f}), quiet {before:.2f} s: {ratio:.1f} times"


def compared(
    host: Box, kind: str, number: int, *, size: int = 0, processes: int | None = None, limit: float = 60
) -> Stops:
    """Stop the neighbour `number` times without a flood, and as often beside it."""
    quiet = [stopping(host) for _ in range(number)]
    with flooding(host, kind, size, processes or FLOODS[kind], limit):
        return Stops(kind, quiet, [stopping(host) for _ in range(number)])
