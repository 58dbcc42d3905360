"""A host of the inventory, and what was read of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra.host  # type: ignore[import-untyped]
from testinfra.backend.base import BaseBackend  # type: ignore[import-untyped]

from left4me import connection, model
from tests.deployed.pending_states import Pending
from tests.deployed.promises import PROPERTIES

READER = Path(__file__).with_name("reader.py").read_text(encoding="utf-8")
READ_SECONDS = 120  # a hundred servers on a slow host take a tenth of it


SSH_FAILED = 255
"""The exit code of ssh where it reaches no command (ssh(1), "EXIT STATUS")."""


class NotRead(Exception):
    """Why a host could not be read, in one line."""


@dataclass(frozen=True)
class Target:
    """A host of the inventory: how to reach it, and what its data declares."""

    name: str
    connection: Mapping[str, Any]
    declares: model.Host

    def ask(self, question: Mapping[str, Any], seconds: float = READ_SECONDS) -> dict[str, Any]:
        """Run reader.py on the host and return its answer. Raises NotRead."""
        # `timeout` bounds it there; ssh gives up on a host that freezes.
        command = f"echo {connection.MARK}; timeout {seconds:.0f} python3 -I -X utf8 -c %s %s"
        done = testinfra.host.Host(_Backend(self)).run(command, READER, json.dumps(question))
        if done.rc == SSH_FAILED:
            raise NotRead(connection.reason(done.stderr))
        if done.rc != 0:
            reason = f"no answer within {seconds:.0f} s" if done.rc == 124 else connection.reason(done.stderr)
            raise NotRead(f"{reason} (exit {done.rc})")
        try:
            answer: dict[str, Any] = json.loads(connection.answer(done.stdout))
        except ValueError as error:
            raise NotRead(str(error)) from None
        return answer

    def where(self, server: str) -> tuple[str, int | None]:
        """Return address and port at which a server is asked on its own host; the host knows a port that was free."""
        address = self.declares.address
        return "127.0.0.1" if address == "0.0.0.0" else address, self.declares.servers[server].port

    def question(self, grace: float) -> dict[str, Any]:
        """Return what the reader is asked; `grace` is how long a server may take to answer, in seconds."""
        return {
            "servers": list(self.declares.present),
            "grace": grace,
            "properties": PROPERTIES,
            "exec": {
                server: {"names": about.exec, "lowers": [*map(_current, about.lowers), _build(about.build)]}
                for server, about in self.declares.present.items()
            },
            # Of a copy of an installation on the host: what leads out of it is not there for a server.
            "links": self.declares.game.source == "host",
            # What only its source knows is not read: an archive's name says what has to be in it.
            "trees": {
                layer: layer not in self.declares.layers or self.declares.layers[layer].source == "control"
                for layer in {layer for server in self.declares.present.values() for layer in server.lowers}
            },
        }


class _Backend(BaseBackend):  # type: ignore[misc]
    """testinfra's way to a host, which is that of all else."""

    NAME = "left4me"

    def __init__(self, target: Target) -> None:
        super().__init__(target.name)
        self._target = target

    def run(self, command: str, *args: str, **_kwargs: Any) -> Any:
        words = ["sh", "-c", self.quote(command, *args)]
        way = connection.command(self._target.name, self._target.connection, *words)
        done = subprocess.run(
            way.words, env=way.full_environment, input=way.stdin.encode(), capture_output=True, check=False
        )
        # UTF-8, as all that is asked here answers in it; testinfra would ask the host for its locale first.
        out, err = (each.decode(errors="replace") for each in (done.stdout, done.stderr))
        return self.result(done.returncode, command.encode(), out, err)


def _current(layer: str) -> str:
    return f"/var/lib/left4me/overlays/{layer}/current"


def _build(name: str | None) -> str:
    return f"/var/lib/left4me/releases/{name}" if name else "/var/lib/left4me/installation"


@dataclass(frozen=True)
class Host:
    """A host that has been read."""

    name: str
    declares: model.Host
    found: Mapping[str, Any]
    """The answer of reader.py."""
    pending: Mapping[str, Mapping[str, Pending]]
    """What left4me itself brought about, by server and kind."""

    def require(self, wrong: list[str]) -> None:
        """Fail with these lines if there are any, each with the host's name."""
        if wrong:
            pytest.fail("\n".join(f"{self.name}: {line}" for line in wrong), pytrace=False)
