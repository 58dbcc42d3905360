"""`python -m bench.flood [DEBIAN]`: what floods do to those who use a server, with and without the firewall.

A flood comes from one core in a network namespace of its own on the boxes' bridge, for SECONDS. Meanwhile from this
machine: a client that the server has answered before, clients that are new, players with 30 and 100 packets a second,
and RCON from an allowed address.
"""

from __future__ import annotations

import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.flooder import FROM, INFO, PAYLOADS
from tests.boxes import boxes as machines
from tests.boxes import deployed, game, network
from tests.boxes.boxes import Box
from tests.boxes.system import tool
from tests.integration.ctl import layered, rcon
from tests.integration.harness import deploy, wait_for_server, write_inventory

SECONDS = 8.0
PORT = 27015
NEW_SECONDS = 3.0
"""Within so many seconds a new client must have its answer; it asks every half second."""
ANSWER_SECONDS = 1.0
FLOODS = (
    ("A2S_INFO", ""),
    ("A2S_INFO", "address and port"),
    ("A2S_INFO", "address"),
    ("A2S_INFO with a made-up challenge", "address and port"),
    ("empty", ""),
    ("empty", "address and port"),
    ("split", "address and port"),
    ("1472 bytes", "address and port"),
    ("stranger's game packets", "address and port"),
)
Result = tuple[int, int, list[float]]
"""Tries, tries without an answer, and the milliseconds of the answered ones."""


class Client:
    """A client of one server, on a socket and so a port of its own."""

    def __init__(self, box: Box) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((str(box.address), PORT))
        self.challenge = b""

    def exchange(self, packet: bytes, seconds: float) -> bytes:
        """Send a packet and return the next packet from the server. Raises TimeoutError after `seconds`."""
        self.socket.send(packet)
        self.socket.settimeout(seconds)
        return self.socket.recv(2048)

    def info(self, seconds: float) -> bool:
        """Ask A2S_INFO, and once more if the server wants its challenge back."""
        end = time.monotonic() + seconds
        with suppress(OSError):
            while (left := end - time.monotonic()) > 0:
                answer = self.exchange(INFO + self.challenge, left)
                if answer[4:5] == b"I":
                    return True
                if answer[4:5] == b"A":
                    self.challenge = answer[5:9]
        return False

    def join(self) -> None:
        """Begin to play. Raises TimeoutError."""
        challenge = self.exchange(b"\xff\xff\xff\xffq", 5)[5:9]
        if self.exchange(b"\xff\xff\xff\xffk" + challenge, 5)[4:5] != b"B":
            raise OSError("the server does not let a player in")


def every(interval: float, end: float, attempt: Callable[[], bool]) -> Result:
    """Attempt again and again, at most once in `interval` seconds, until `end`."""
    tries, lost, times = 0, 0, []
    while (begin := time.monotonic()) < end:
        tries += 1
        if attempt():
            times.append((time.monotonic() - begin) * 1000)
        else:
            lost += 1
        time.sleep(max(0.0, begin + interval - time.monotonic()))
    return tries, lost, times


def plays(client: Client, rate: int, end: float) -> Result:
    """Send packets at a rate, as a player does, whether or not answers come; then count what came back."""
    sent: dict[int, float] = {}
    back: dict[int, float] = {}

    def receive() -> None:
        client.socket.settimeout(ANSWER_SECONDS)
        with suppress(OSError):
            while True:
                (number,) = struct.unpack("<I", client.socket.recv(2048)[:4])
                back[number] = time.monotonic()

    receiver = threading.Thread(target=receive)
    receiver.start()
    number = 1
    while (now := time.monotonic()) < end:
        sent[number] = now
        with suppress(ConnectionRefusedError):  # without a firewall, the server may end
            client.socket.send(struct.pack("<I", number) + b"x" * 96)
        number += 1
        time.sleep(1 / rate)
    receiver.join()
    return len(sent), len(sent) - len(back), [(back[each] - sent[each]) * 1000 for each in back]


def newcomer(box: Box) -> bool:
    """Return whether a new client gets an answer within NEW_SECONDS; it asks every half second."""
    client, end = Client(box), time.monotonic() + NEW_SECONDS
    while time.monotonic() < end:
        if client.info(0.5):
            return True
    return False


def uses_rcon(box: Box) -> bool:
    with suppress(OSError, struct.error):
        rcon(box, PORT, "echo left4me")
        return True
    return False


@contextmanager
def flooded(box: Box, kind: str, spoofed: str) -> Iterator[list[str]]:
    """Flood a box's server while the block runs; the list then has one text, the packets per second."""
    rate: list[str] = []
    if not kind:
        yield rate
        return
    words = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-m", "bench.flooder"]
    command = [*words, kind, spoofed, str(box.address), str(PORT), str(SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flooding:
        yield rate
        assert flooding.stdout
        rate.append(flooding.stdout.read().strip())


NAMESPACE = "left4me-flood"


@contextmanager
def flooder(box: Box) -> Iterator[None]:
    """Create a network namespace on the boxes' bridge, and route the box's answers to spoofed addresses there."""
    address = f"{network.gateway().rpartition('.')[0]}.250"
    outer, inner = f"{network.BRIDGE}-f0", f"{network.BRIDGE}-f1"
    steps = (
        ("ip", "netns", "add", NAMESPACE),
        ("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", NAMESPACE),
        ("ip", "link", "set", outer, "master", network.BRIDGE, "up"),
        ("ip", "-n", NAMESPACE, "address", "add", f"{address}/24", "dev", inner),
        ("ip", "-n", NAMESPACE, "link", "set", inner, "up"),
    )
    try:
        for step in steps:
            tool(*step)
        box.run(f"ip route replace {FROM} via {address}")
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", outer], check=False, capture_output=True)


def measure(box: Box, kind: str, spoofed: str) -> str:
    """Return a line of the table: packets per second, newcomers answered, then lost % and p95 in ms of each user."""
    steady, slow, fast = Client(box), Client(box), Client(box)
    if not steady.info(5):
        raise SystemExit(f"{box.name} does not answer before the flood")
    for player in (slow, fast):
        player.join()
        player.exchange(struct.pack("<I", 0), 5)
    found: dict[str, Result] = {}
    new: list[bool] = []
    with flooded(box, kind, spoofed) as rate:
        time.sleep(1)  # the flood is on its way
        end = time.monotonic() + SECONDS - 2
        jobs = {
            "known": lambda: every(0.1, end, lambda: steady.info(ANSWER_SECONDS)),
            "player 30/s": lambda: plays(slow, 30, end),
            "player 100/s": lambda: plays(fast, 100, end),
            "rcon": lambda: every(0.5, end, lambda: uses_rcon(box)),
        }
        threads = [
            threading.Thread(target=lambda name=name, job=job: found.update({name: job()}))
            for name, job in jobs.items()
        ]
        threads += [threading.Thread(target=lambda: new.append(newcomer(box))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    cells = [f"{rate[0] if rate else 0:>8}", f"{sum(new):>2}/10"]
    for name in jobs:
        tries, lost, times = found[name]
        p95 = f"{statistics.quantiles(times, n=20)[-1]:6.1f}" if len(times) > 1 else "     -"
        cells.append(f"{100 * lost / tries:5.1f} {p95}")
    return " | ".join(cells)


def main(debian: int) -> None:
    game.build()
    name = f"bench-flood-{debian}"
    machines.down([each.name for each in machines.boxes() if each.name == name])
    [box] = machines.up([name], debian, deployed.PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        deploy(write_inventory(Path(folder, "inventory"), [box], **layered()))
    users = "new client | known: lost % p95 ms | player 30/s | player 100/s | RCON"
    print(f"Debian {debian}, {SECONDS:.0f} s each\nflood | firewall | packets/s | {users}", flush=True)
    try:
        with flooder(box):
            for kind, spoofed in (("", ""), *FLOODS):
                if kind and kind not in PAYLOADS:
                    raise SystemExit(f"no payload of the name {kind}")
                for firewall, command in (("none", "stop"), ("with", "start")):
                    box.run(
                        f"systemctl {command} left4me-firewall; systemctl reset-failed left4me-server@3; "
                        "systemctl restart left4me-server@3"
                    )
                    wait_for_server(box, PORT)
                    source = f", spoofed {spoofed}" if spoofed else ", one source" if kind else ""
                    print(f"{kind or 'no flood'}{source} | {firewall} | {measure(box, kind, spoofed)}", flush=True)
    finally:
        box.down()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
