"""An operator at a shell: he types commands in the checkout and on his hosts, and reads what they print."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.integration.ctl import LAYERS, PASSWORD, rcon
from tests.integration.harness import ROOT, SERVERS, write_inventory

TYPED_SECONDS = 300
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
        box = self.bare(name)
        self.declare()
        self.types(f"pyinfra {self.inventory} deploy.py -y --limit {box.name}")
        return box

    def declare(self, servers: Mapping[str, Any] | None = None, **data: Any) -> None:
        """Write the inventory of all his hosts: `servers` by id, SERVERS unless said, each with what all have."""
        common = {"layers": ["layer"], "rcon_password": PASSWORD}
        declared = {server: {**common, **own} for server, own in (SERVERS if servers is None else servers).items()}
        write_inventory(self.inventory, self.hosts, servers=declared, **{"layers": LAYERS, **data})

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
