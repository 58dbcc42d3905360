"""Power cuts amid what left4me does, on full machines: `make soak-vm`, by hand, ROUNDS=15 of each kind on each Debian.

A reset, an undo and the attic's removal run on two servers while the game updates, so that one cut comes amid all
four. After each cut the machine boots, the servers run without a human, what a reset put aside is there, the same
commands again finish what was cut off, and doctor finds nothing. After each round of all kinds, verification passes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box, BoxError
from tests.boxes.game import build
from tests.integration import steam as steams
from tests.integration.ctl import layered
from tests.integration.harness import SERVERS, pyinfra, wait_for, wait_for_server, write_inventory
from tests.integration.steam import Steam
from tests.integration.test_verification import verify
from tests.integration.test_webhook import outside

ROUNDS = int(os.environ.get("ROUNDS", "15"))
PORTS = {"3": 27015, "4": 27016}
UPPER = "/var/lib/left4me/runtime/{}/upper/left4dead2"
ON_HOST = {
    "reset": "l4d2ctl reset 3",
    "undo": "l4d2ctl reset --undo 4",
    "attic": "systemctl start left4me-attic.service",
    "update": "l4d2ctl game update",
}
CUTS = (("deploy",), ("update", "reset", "undo", "attic"), ("layer",))
"""What runs side by side when the power is cut. `layer` is a deploy that builds one."""
SECONDS = {"update": 40.0, "deploy": 20.0, "layer": 30.0}
"""How long the first of each cut takes at most on an emulated machine: the cut comes within that time."""
LATER = 6.0
"""How long the others take at most: they start at most that long before the cut."""
CONTENT = "/usr/local/libexec/left4me/left4me-content"
FILES = 2000
"""Files in each entry of the attic: its removal takes as long as a reset."""


class Machine:
    """A deployed full machine, and what is declared of it."""

    def __init__(self, box: Box, folder: Path, steam: Steam, game: Path) -> None:
        self.box, self.folder, self.steam, self.game = box, folder, steam, game
        self.random = random.Random(box.debian)
        self.count = 0
        self.cuts: Counter[str] = Counter()
        self.amid: Counter[str] = Counter()
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

    def texts(self, server: str) -> set[str]:
        """Return what a server wrote, now and put aside."""
        put_aside = f"/var/lib/left4me/attic/{server}@*/upper/left4dead2"
        files = f"{UPPER.format(server)}/evening.txt {put_aside}/evening.txt"
        return {*self.box.run(f"cat {files} 2>/dev/null", check=False).stdout.split()}

    def prepare(self, kinds: tuple[str, ...]) -> None:
        """Have both servers write a text, and bring about that each of `kinds` has something to do."""
        self.count += 1
        write = "mkdir -p {0} && echo text{1} >{0}/evening.txt"
        steps = [write.format(UPPER.format(server), self.count) for server in PORTS]
        if "attic" in kinds:  # which keeps three: before the text, an entry of many files; more of them at first
            fill = f"mkdir -p {UPPER.format(4)}/many && cd {UPPER.format(4)}/many && seq {FILES} | xargs touch && cd /"
            steps = [fill, "l4d2ctl reset 4"] * (3 if self.count < 3 else 1) + steps
        if "undo" in kinds:
            steps += ["l4d2ctl reset 4"]
        self.box.run(" && ".join([*steps, "sync"]), timeout=300)
        if "layer" in kinds:
            path = self.folder / "mods/left4dead2/addons" / f"{self.count}.vpk"
            path.write_bytes(b"\x34\x12\xaa\x55" + self.random.randbytes(4_000_000))
        if "update" in kinds:
            number = str(16_000_000 + self.count)
            self.steam.publish(number, self.game, {"left4dead2/build.txt": number.encode()})

    def command(self, kinds: tuple[str, ...], moment: float) -> list[str]:
        """Return the command that runs `kinds` side by side and prints `begun`, and each one when it has ended."""
        if kinds[0] in ON_HOST:
            waits = [0.0, *[max(0.0, moment - self.random.uniform(0, LATER))] * (len(kinds) - 1)]
            each = " & ".join(
                f"{{ sleep {wait:.2f}; {ON_HOST[kind]} >&2; echo {kind}; }}"
                for kind, wait in zip(kinds, waits, strict=True)
            )
            return ["ssh", "-F", str(self.box.ssh_config), self.box.name, f"echo begun; {each} & wait"]
        deploy = f".venv/bin/pyinfra {self.inventory()} deploy.py -y >/dev/null && echo {kinds[0]}"
        return ["sh", "-c", f"echo begun; {deploy}"]

    def cut(self, kinds: tuple[str, ...]) -> None:
        """Run `kinds` side by side, cut the power at a moment chosen by chance, and count those that had not ended."""
        moment = self.random.uniform(0, SECONDS[kinds[0]])
        command = self.command(kinds, moment)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0
        ) as running:
            assert running.stdout
            assert running.stdout.readline() == "begun\n"
            time.sleep(moment)  # the moment is the point
            self.box.crash()
            os.killpg(running.pid, signal.SIGKILL)
            ended = running.stdout.read().split()
        self.cuts.update(kinds)
        self.amid.update(set(kinds) - set(ended))

    def boot(self) -> Iterator[str]:
        """Boot after a cut. Yield the end of the console if the machine does not boot, and boot it once more."""
        try:
            self.box.start()
        except BoxError as error:
            console = (self.box.directory / "console.log").read_text(encoding="utf-8", errors="replace")
            yield f"{error}\n{console[-6000:]}"
            self.box.crash()
            self.box.start()

    def again(self, kind: str) -> None:
        if kind in ON_HOST:
            self.box.run(ON_HOST[kind], timeout=600, check=kind in ("attic", "update"))
        else:
            self.deploy()

    def wrong(self, kinds: tuple[str, ...]) -> Iterator[str]:
        """Yield what is not as promised after a cut and a boot."""
        for server, port in PORTS.items():
            try:
                wait_for_server(self.box, port, 180)
            except AssertionError:
                yield f"server {server} is down: {self.box.run('l4d2ctl status; l4d2ctl doctor', check=False).stdout}"
                self.box.run(f"l4d2ctl reset {server}; l4d2ctl start {server}", check=False, timeout=300)
            if f"text{self.count}" not in self.texts(server):
                yield f"text{self.count} of server {server} is lost: {self.texts(server)}"
        for kind in kinds:
            self.again(kind)
        if kinds[0] in ("update", "layer"):  # a running server keeps what it started with
            self.box.run("l4d2ctl restart --all", check=False, timeout=300)
            # What the servers ran on until now is unused, and no deploy has come since.
            self.box.run(f"{CONTENT} prune", timeout=300)
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
        for kinds in CUTS:
            machine.prepare(kinds)
            machine.cut(kinds)
            found += [f"round {number}, {', '.join(kinds)}: {each}" for each in machine.boot()]
            found += [f"round {number}, {', '.join(kinds)}: {each}" for each in machine.wrong(kinds)]
        found += [f"round {number}: {each}" for each in machine.unlike_declared()]
        with capsys.disabled():  # on stderr, which reaches the terminal from a worker of xdist too
            tally = ", ".join(f"{kind} {count} ({machine.amid[kind]} amid)" for kind, count in machine.cuts.items())
            so_far = f"power cuts: {tally}; {len(found)} findings"
            print(f"\n{time.strftime('%T')} Debian {machine.box.debian}: {so_far}", *found, sep="\n", file=sys.stderr)
    assert not found, "\n".join(found)
