"""Power cuts amid what left4me does, on full machines: `make soak-vm`, by hand, ROUNDS=15 of each kind on each Debian.

After each the machine boots, the server runs without a human, what a reset put aside is there, the same command again
finishes what was cut off, and doctor finds nothing. After each round of all kinds, verification passes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.game import build
from tests.integration import steam as steams
from tests.integration.ctl import layered
from tests.integration.harness import SERVERS, pyinfra, wait_for, wait_for_server, write_inventory
from tests.integration.steam import Steam
from tests.integration.test_verification import verify
from tests.integration.test_webhook import outside

ROUNDS = int(os.environ.get("ROUNDS", "15"))
UPPER = "/var/lib/left4me/runtime/3/upper/left4dead2"
ON_HOST = {
    "reset": "l4d2ctl reset 3",
    "undo": "l4d2ctl reset --undo 3",
    "attic": "systemctl start left4me-attic.service",
    "update": "l4d2ctl game update",
}
SECONDS = {"reset": 6.0, "undo": 6.0, "attic": 5.0, "update": 40.0, "deploy": 20.0, "layer": 30.0}
"""How long each takes at most on an emulated machine: the cut comes within that time."""


class Machine:
    """A deployed full machine, and what is declared of it."""

    def __init__(self, box: Box, folder: Path, steam: Steam, game: Path) -> None:
        self.box, self.folder, self.steam, self.game = box, folder, steam, game
        self.random = random.Random(box.debian)
        self.count = 0
        self.deploy()

    def inventory(self) -> Path:
        mods = self.folder / "mods/left4dead2/addons"
        if not mods.exists():
            mods.mkdir(parents=True)
            (mods / "0.vpk").write_bytes(b"\x34\x12\xaa\x55")
        servers: dict[str, Any] = {
            "3": {**SERVERS["3"], "hostname": f"evening {self.count}", "layers": ["mods"]},
            "4": SERVERS["4"],
        }
        steam: dict[str, Any] = {"steamcmd_url": self.steam.steamcmd_url, "steamcmd_sha256": self.steam.steamcmd_sha256}
        data = layered(servers) | {"layers": {"mods": {"source": "control", "path": str(mods.parent.parent)}}}
        for server in data["servers"].values():
            server["layers"] = ["mods"]
        return write_inventory(self.folder / "inventory", [self.box], **data, game={"source": "steamcmd"}, **steam)

    def deploy(self) -> None:
        done = pyinfra(self.inventory(), "deploy.py", "-y", timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr

    def write(self, text: str) -> None:
        """Have server 3 write a file, and the disk have it."""
        self.box.run(f"mkdir -p {UPPER} && echo {text} >{UPPER}/evening.txt && sync", timeout=120)

    def texts(self) -> set[str]:
        """Return what server 3 wrote, now and put aside."""
        attic = "/var/lib/left4me/attic/3@*/upper/left4dead2/evening.txt"
        return {*self.box.run(f"cat {UPPER}/evening.txt {attic} 2>/dev/null", check=False).stdout.split()}

    def prepare(self, kind: str) -> None:
        """Bring about that `kind` has something to do."""
        self.count += 1
        self.write(f"text{self.count}")
        if kind == "undo":
            self.box.run("l4d2ctl reset 3", timeout=300)
        if kind == "attic":
            for _ in range(3):
                self.box.run("l4d2ctl reset 3", timeout=300)
        if kind == "layer":
            path = self.folder / "mods/left4dead2/addons" / f"{self.count}.vpk"
            path.write_bytes(b"\x34\x12\xaa\x55" + self.random.randbytes(4_000_000))
        if kind == "update":
            number = str(16_000_000 + self.count)
            self.steam.publish(number, self.game, {"left4dead2/build.txt": number.encode()})

    def cut(self, kind: str) -> None:
        """Start it, and cut the power at a moment chosen by chance."""
        moment = self.random.uniform(0, SECONDS[kind])
        if kind in ON_HOST:
            self.box.run(f"systemd-run --quiet --unit=cut {ON_HOST[kind]}")
            time.sleep(moment)  # the moment is the point
            self.box.crash()
        else:
            command = [".venv/bin/pyinfra", str(self.inventory()), "deploy.py", "-y"]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as deploying:
                time.sleep(moment)
                self.box.crash()
                deploying.kill()

    def again(self, kind: str) -> None:
        if kind in ON_HOST:
            self.box.run(ON_HOST[kind], timeout=600, check=kind in ("attic", "update"))
        else:
            self.deploy()

    def wrong(self, kind: str) -> Iterator[str]:
        """Yield what is not as promised after a cut and a boot."""
        try:
            wait_for_server(self.box, 27015, 180)
        except AssertionError:
            yield f"server 3 is down: {self.box.run('l4d2ctl status; l4d2ctl doctor', check=False).stdout}"
            self.box.run("l4d2ctl reset 3; l4d2ctl start 3", check=False, timeout=300)
        if f"text{self.count}" not in self.texts():
            yield f"text{self.count} is lost: {self.texts()}"
        self.again(kind)
        if kind in ("update", "layer"):  # a running server keeps what it started with
            self.box.run("l4d2ctl restart --all", check=False, timeout=300)
        wait_for("the restarts have ended", lambda: "activating" not in self.box.run("l4d2ctl status").stdout, 120)
        doctor = self.box.run("l4d2ctl doctor", check=False, timeout=120)
        if doctor.returncode:
            yield f"doctor: {doctor.stdout}"

    def unlike_declared(self) -> Iterator[str]:
        """Yield what verification finds."""
        done = verify(self.folder / "inventory")
        if done.returncode:
            yield f"verification: {done.stdout[-2000:]}"


@pytest.fixture(scope="module", params=(12, 13), ids=("debian12", "debian13"))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    debian, game = request.param, build()
    [box] = machines.up([f"test-cut-{debian}"], debian, is_vm=True)
    with steams.serving(outside(box)) as steam:
        steam.publish("16000000", game)
        yield Machine(box, tmp_path_factory.mktemp("fleet"), steam, game)
    box.down()


def test_power_cuts(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for number in range(1, ROUNDS + 1):
        for kind in SECONDS:
            machine.prepare(kind)
            machine.cut(kind)
            machine.box.start()
            found += [f"round {number}, {kind}: {each}" for each in machine.wrong(kind)]
        found += [f"round {number}: {each}" for each in machine.unlike_declared()]
        with capsys.disabled():  # on stderr, which reaches the terminal from a worker of xdist too
            so_far = f"{number} power cuts in each of {', '.join(SECONDS)}, {len(found)} findings"
            print(f"\n{time.strftime('%T')} Debian {machine.box.debian}: {so_far}", *found, sep="\n", file=sys.stderr)
    assert not found, "\n".join(found)
