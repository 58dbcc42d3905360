"""An operator who types commands in the checkout and on hosts, and reads the output."""

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
    """An operator with a private repository `fleet` beside the checkout, and boxes as hosts."""

    def __init__(self, name: str, folder: Path, debian: int) -> None:
        """Take a short name, the prefix of the names of the boxes, a directory, and the Debian of the hosts."""
        self.name, self.debian = name, debian
        self.fleet = folder / "fleet"
        self.fleet.mkdir(parents=True)
        self.inventory = self.fleet / "inventory"
        self.hosts: list[Box] = []

    def bare(self, name: str = "") -> Box:
        """Start a box with only Debian and sshd, and add it to the hosts."""
        [box] = machines.up([self.name + name], self.debian)
        self.hosts.append(box)
        return box

    def host(self, name: str = "") -> Box:
        """Start a deployed box and add it to the hosts: servers 3 and 4 run on ports 27015 and 27016 with a layer."""
        [box] = deployed.up([self.name + name], self.debian)
        self.hosts.append(box)
        self.declare()
        return box

    def declare(self, servers: Mapping[str, Any] = SERVERS, **data: Any) -> None:
        """Write the inventory: all hosts get `servers` (by id), each with a layer and an RCON password, and `data`."""
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
        """Run a shell command in the checkout and return its output.

        Fails unless it exits with `code`, prints all of `says` and none of `never`. `answers` is its standard input.
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
        return _check(f"$ {command}", done.stdout, done.returncode, code, says=says, never=never)

    @contextmanager
    def begins(self, command: str, at: Path = ROOT, environment: Mapping[str, str] | None = None) -> Iterator[Terminal]:
        """Start a command on a terminal and yield that; kill the command when the block ends."""
        terminal = Terminal(command, at, {**_environment(), **(environment or {})})
        try:
            yield terminal
        finally:
            terminal.close()

    def clones(self, name: str) -> Path:
        """Clone this checkout with its local changes to `name` beside `fleet`; .venv and .boxes are shared."""
        clone = self.fleet.parent / name
        changed = subprocess.run(["git", "diff", "--binary", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        self.types(f"git clone --quiet {ROOT} {clone}")
        if changed:
            subprocess.run(["git", "apply"], cwd=clone, input=changed, check=True)
            self.types(f"{COMMIT} --all --message 'As it is here'", at=clone)
        for shared in (".venv", ".boxes"):
            (clone / shared).symlink_to(ROOT / shared)
        _keep_environment(clone)
        return clone

    def checks_out(self, revision: str, clone: Path) -> None:
        """Check out a revision in a clone of clones()."""
        self.types(f"git checkout --quiet {revision}", at=clone)
        _keep_environment(clone)

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
        """Run a shell command on a host, as `types` does in the checkout."""
        done = box.run(command, user=user, check=False, timeout=seconds)
        return _check(
            f"{box.name}# {command}", done.stdout + done.stderr, done.returncode, code, says=says, never=never
        )

    def plays(self, box: Box, players: int, port: int = 27015) -> None:
        """Set the number of players on the server at `port`."""
        rcon(box, port, f"standin_players {players}")

    def leaves(self) -> None:
        """Remove the hosts."""
        machines.down([each.name for each in machines.boxes() if each.name.startswith(self.name)])


class Terminal:
    """A command on a terminal, and its output so far."""

    def __init__(self, command: str, at: Path, environment: Mapping[str, str]) -> None:
        """Start the command with the terminal as its controlling terminal."""
        self.command = command
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (40, 200))
        shell = ["setsid", "--ctty", "bash", "-c", command]
        self._process = subprocess.Popen(shell, cwd=at, env=environment, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self._output = ""
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        with suppress(OSError):  # the other end is closed
            while data := os.read(self._master, 4096):
                self._output += data.decode(errors="replace").replace("\r\n", "\n")

    def sees(self, text: str, limit: float = 60) -> None:
        """Wait until it has printed `text`."""
        wait_for(f"{self.command} prints {text!r}", lambda: text in ESCAPE.sub("", self._output), limit)

    def types(self, text: str) -> None:
        """Type `text`; chr(3) is Ctrl-C."""
        os.write(self._master, text.encode())

    def ends(self, *says: str, code: int = 0, never: Sequence[str] = (), seconds: float = 60) -> str:
        """Wait until it ends, and check it as Operator.types does."""
        self._process.wait(seconds)
        self._reading.join()
        return _check(f"$ {self.command}", self._output, self._process.returncode, code, says=says, never=never)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join()
        os.close(self._master)


def _keep_environment(clone: Path) -> None:
    """Make requirements.lock no newer than the shared .venv, which make would install again."""
    shutil.copystat(ROOT / "requirements.lock", clone / "requirements.lock")


def _environment() -> dict[str, str]:
    """Return the environment of a shell with .venv activated, without settings of the user who runs the tests."""
    path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key not in ("SSH_AUTH_SOCK", "CI", "COLUMNS")}
    return {**kept, "PATH": path, "PYINFRA_PROGRESS": "off"}


def _check(typed: str, output: str, exit_code: int, code: int, *, says: Sequence[str], never: Sequence[str]) -> str:
    text = ESCAPE.sub("", output)
    missing, unwanted = [each for each in says if each not in text], [each for each in never if each in text]
    assert exit_code == code, f"{typed}\nexit {exit_code}, must be {code}\n{text}"
    assert not missing, f"{typed}\ndoes not print {missing}:\n{text}"
    assert not unwanted, f"{typed}\nprints {unwanted}:\n{text}"
    assert "Traceback (most recent call last)" not in text, f"{typed}\n{text}"
    return text
