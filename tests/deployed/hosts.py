"""A host of the inventory, and what was read from it."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import testinfra.host  # type: ignore[import-untyped]
from pydantic import TypeAdapter
from testinfra.backend.base import BaseBackend  # type: ignore[import-untyped]

from left4me import answers, connection, model
from left4me_host.instance import plain
from tests.deployed.found import FOUND
from tests.deployed.pending_states import Pending, unit_of
from tests.deployed.promises import CHECK, FINISH_RESETS, PROPERTIES

READER = Path(__file__).with_name("reader.py").read_text(encoding="utf-8")
READ_SECONDS = 120  # a hundred servers on a slow host take about 12 s

LINES, LONGEST = 200, 10_000
"""How many lines of a failed test are shown, and how many characters of each."""
SSH_FAILED = 255
"""The exit code of ssh if it cannot run the command (ssh(1), "EXIT STATUS")."""


class NotRead(Exception):
    """Why a host could not be read, in one line."""


@dataclass(frozen=True)
class Target:
    """A host of the inventory: how to reach it, and what its data declares."""

    name: str
    connection: Mapping[str, Any] = field(repr=False)
    declares: model.Host

    def ask(self, question: Mapping[str, Any], shape: TypeAdapter[Any], seconds: float = READ_SECONDS) -> Any:
        """Run reader.py on the host and return its answer, which must have this type. Raises NotRead."""
        # `timeout` limits it on the host; ssh detects a frozen host.
        command = f"echo {connection.MARK}; timeout {seconds:.0f} python3 -I -X utf8 -c %s %s"
        try:
            # A host that is in others' hands may ignore its own limit.
            done = testinfra.host.Host(_Backend(self, seconds + 30)).run(command, READER, json.dumps(question))
        except answers.Wrong as wrong:
            raise NotRead(str(wrong)) from None
        except subprocess.TimeoutExpired:
            raise NotRead(f"no answer within {seconds:.0f} s") from None
        if done.rc == SSH_FAILED:
            raise NotRead(connection.reason(done.stderr))
        if done.rc != 0:
            reason = f"no answer within {seconds:.0f} s" if done.rc == 124 else connection.reason(done.stderr)
            raise NotRead(f"{reason} (exit {done.rc})")
        try:
            return answers.read(connection.answer(done.stdout), shape)
        except ValueError as error:
            raise NotRead(str(error)) from None

    def read(self, grace: float) -> dict[str, Any]:
        """Read the host with reader.py; `grace` is how long a server may take to answer, in seconds. Raises NotRead."""
        found = self.ask(self.question(grace), FOUND, READ_SECONDS + grace)
        servers = set(self.declares.present)
        try:
            answers.require(found["units"], {CHECK, FINISH_RESETS, "left4me.slice", *map(unit_of, servers)})
            answers.require(found["servers"], servers)
            answers.require(found["missing_cfgs"], servers)
            answers.require(found["exposure"], map(unit_of, servers))
        except answers.Wrong as wrong:
            raise NotRead(str(wrong)) from None
        # systemctl leaves out properties that a kind of unit does not have.
        return {**found, "units": {name: defaultdict(str, unit) for name, unit in found["units"].items()}}

    def where(self, server: str) -> tuple[str, int | None]:
        """Return address and port for queries on the host itself; the port is None if the host chose it."""
        address = self.declares.address
        return "127.0.0.1" if address == "0.0.0.0" else address, self.declares.servers[server].port

    def question(self, grace: float) -> dict[str, Any]:
        """Return the question for reader.py; `grace` is how long a server may take to answer, in seconds."""
        return {
            "servers": list(self.declares.present),
            "grace": grace,
            "properties": PROPERTIES,
            "exec": {
                server: {"names": about.exec, "lowers": [*map(_current, about.lowers), _build(about.build)]}
                for server, about in self.declares.present.items()
            },
            "sysctl": list(self.declares.sysctl),
            # In a copied installation, links that point outside are broken inside a server.
            "links": self.declares.game.source == "host",
            # Content is read only for layers whose source is here; the other versions are checked by name.
            "trees": {
                layer: layer not in self.declares.layers or self.declares.layers[layer].source == "control"
                for layer in {layer for server in self.declares.present.values() for layer in server.lowers}
            },
        }


class _Backend(BaseBackend):  # type: ignore[misc]
    """A testinfra backend that connects as everything else here does."""

    NAME = "left4me"

    def __init__(self, target: Target, seconds: float) -> None:
        super().__init__(target.name)
        self._target, self._seconds = target, seconds

    def run(self, command: str, *args: str, **_kwargs: Any) -> Any:
        words = ["sh", "-c", self.quote(command, *args)]
        ssh = connection.command(self._target.name, self._target.connection, *words)
        # All commands here print UTF-8; testinfra would first ask the host for its locale.
        done = answers.run(ssh, self._seconds, answers.MOST)
        return self.result(done.returncode, command.encode(), done.stdout, done.stderr)


def _current(layer: str) -> str:
    return f"/var/lib/left4me/overlays/{layer}/current"


def _build(name: str | None) -> str:
    return f"/var/lib/left4me/releases/{name}" if name else "/var/lib/left4me/installation"


@dataclass(frozen=True)
class Host:
    name: str
    declares: model.Host
    found: Mapping[str, Any]
    """The answer of reader.py."""
    pending: Mapping[str, Mapping[str, Pending]]
    """The pending states by server and kind."""

    def require(self, wrong: list[str]) -> None:
        """Fail with these lines, prefixed with the host's name, if there are any."""
        if wrong:
            shown = [plain(line[:LONGEST]) for line in wrong[:LINES]]
            shown += [f"and {len(wrong) - LINES} more"] * (len(wrong) > LINES)
            pytest.fail("\n".join(f"{self.name}: {line}" for line in shown), pytrace=False)
