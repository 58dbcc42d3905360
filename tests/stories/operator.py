"""An operator at a shell: he types commands in the checkout and on his hosts, and reads what they print."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tests.boxes import boxes as machines
from tests.boxes import deployed
from tests.boxes.boxes import Box
from tests.integration.ctl import layered, rcon
from tests.integration.harness import ROOT, SERVERS, wait_for, write_inventory

TYPED_SECONDS = 300
COMMIT = "git -c user.name=olga -c user.email=olga@desk commit --quiet"
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Operator:
    """One operator with a private repository `fleet` beside the checkout, and the boxes that are his hosts."""

    def __init__(self, name: str, folder: Path, debian: int) -> None:
        """Take a short name, which his boxes begin with, a directory of his own, and the Debian of his hosts."""
        self.name, self.debian = name, debian
        self.fleet = folder / "fleet"
        self.fleet.mkdir(parents=True)
        self.inventory = self.fleet / "inventory"
        self.hosts: list[Box] = []

    def bare(self, name: str = "") -> Box:
        """Bring up a machine with Debian and sshd alone, and count it among his hosts."""
        [box] = machines.up([self.name + name], self.debian)
        self.hosts.append(box)
        return box

    def host(self, name: str = "") -> Box:
        """Bring up a host that is deployed: servers 3 and 4 run on ports 27015 and 27016, with a layer each."""
        [box] = deployed.up([self.name + name], self.debian)
        self.hosts.append(box)
        self.declare()
        return box

    def declare(self, servers: Mapping[str, Any] = SERVERS, **data: Any) -> None:
        """Write the inventory of all his hosts: `servers` by id, SERVERS unless said, each with what all have."""
        write_inventory(self.inventory, self.hosts, **layered(servers, **data))

    def types(
        self,
        command: str,
        *says: str,
        code: int = 0,
        never: Sequence[str] = (),
        at: Path = ROOT,
        seconds: float = TYPED_SECONDS,
        answers: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Type a command at a shell in the checkout, which has to exit with `code`; return all that it printed.

        Fails where one of `says` is missing in it or one of `never` is there. `answers` is what he types into it.
        """
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=at,
            env={**_environment(), **(environment or {})},
            input=answers,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        return _judge(f"$ {command}", done.stdout, done.returncode, code, says=says, never=never)

    @contextmanager
    def begins(self, command: str, at: Path = ROOT, environment: Mapping[str, str] | None = None) -> Iterator[Terminal]:
        """Type a command at a terminal, to look on while it works; what is left of it is killed with the block."""
        terminal = Terminal(command, at, {**_environment(), **(environment or {})})
        try:
            yield terminal
        finally:
            terminal.close()

    def clones(self, name: str) -> Path:
        """Clone this checkout as it is now into a directory of that name beside `fleet`; it has the same .venv."""
        there = self.fleet.parent / name
        changed = subprocess.run(["git", "diff", "--binary", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        self.types(f"git clone --quiet {ROOT} {there}")
        if changed:
            subprocess.run(["git", "apply"], cwd=there, input=changed, check=True)
            self.types(f"{COMMIT} --all --message 'As it is here'", at=there)
        for shared in (".venv", ".boxes"):
            (there / shared).symlink_to(ROOT / shared)
        shutil.copystat(ROOT / "requirements.lock", there / "requirements.lock")  # else make renews the .venv
        return there

    def on(
        self,
        box: Box,
        command: str,
        *says: str,
        code: int = 0,
        never: Sequence[str] = (),
        user: Literal["root", "admin"] = "root",
        seconds: float = 60,
    ) -> str:
        """Type a command in a shell on a host, as `types` does it here."""
        done = box.run(command, user=user, check=False, timeout=seconds)
        return _judge(
            f"{box.name}# {command}", done.stdout + done.stderr, done.returncode, code, says=says, never=never
        )

    def plays(self, box: Box, players: int, port: int = 27015) -> None:
        """Have that many people on the server of a port."""
        rcon(box, port, f"standin_players {players}")

    def leaves(self) -> None:
        """Take his hosts away."""
        machines.down([each.name for each in machines.boxes() if each.name.startswith(self.name)])


class Terminal:
    """A command that an operator began at a terminal, and what it has printed so far."""

    def __init__(self, command: str, at: Path, environment: Mapping[str, str]) -> None:
        """Begin it, with the terminal in front of it as a shell would put it there."""
        self.command = command
        self._mine, its = os.openpty()
        termios.tcsetwinsize(its, (40, 200))
        shell = ["setsid", "--ctty", "bash", "-c", command]
        self._process = subprocess.Popen(shell, cwd=at, env=environment, stdin=its, stdout=its, stderr=its)
        os.close(its)
        self._said = ""
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        with suppress(OSError):  # nobody has the other end any more
            while data := os.read(self._mine, 4096):
                self._said += data.decode(errors="replace").replace("\r\n", "\n")

    def sees(self, text: str, limit: float = 60) -> None:
        """Wait until it has printed that."""
        wait_for(f"{self.command} says {text!r}", lambda: text in ESCAPE.sub("", self._said), limit)

    def types(self, text: str) -> None:
        """Type that at it; \x03 is Ctrl-C."""
        os.write(self._mine, text.encode())

    def ends(self, *says: str, code: int = 0, never: Sequence[str] = (), seconds: float = 60) -> str:
        """Wait for its end, and judge it as Operator.types does."""
        self._process.wait(seconds)
        self._reading.join()
        return _judge(f"$ {self.command}", self._said, self._process.returncode, code, says=says, never=never)

    def close(self) -> None:
        """Kill it if it is there still."""
        self._process.kill()
        self._process.wait()
        self._reading.join()
        os.close(self._mine)


def _environment() -> dict[str, str]:
    """As a shell has it in which `. .venv/bin/activate` was typed, without whoever runs the tests."""
    path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key not in ("SSH_AUTH_SOCK", "CI", "COLUMNS")}
    return {**kept, "PATH": path, "PYINFRA_PROGRESS": "off"}


def _judge(typed: str, said: str, was: int, code: int, *, says: Sequence[str], never: Sequence[str]) -> str:
    text = ESCAPE.sub("", said)
    missing, there = [each for each in says if each not in text], [each for each in never if each in text]
    assert was == code, f"{typed}\nexit {was}, must be {code}\n{text}"
    assert not missing, f"{typed}\ndoes not say {missing}:\n{text}"
    assert not there, f"{typed}\nsays {there}:\n{text}"
    assert "Traceback (most recent call last)" not in text, f"{typed}\n{text}"
    return text
