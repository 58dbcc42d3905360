"""What a deploy reads of a host: all of it in one command, and how systemd sees the units in another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import gevent
from pyinfra.api.arguments import ConnectorArguments
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.state import State
from pyinfra.connectors.util import CommandOutput

from left4me import declared, model

SYSTEMS = ("debian 12", "debian 13")
_HERE = Path(__file__).parent
_PROGRAMS = {path.stem: path for path in [*_HERE.glob("remote/*.py"), _HERE.parent / "files/lib/l4d2ctl/units.py"]}


class Program(StringCommand):
    """One of left4me/remote's programs, run on the host with Python's standard library.

    `_timeout` bounds all of it, standard input included: pyinfra's own bounds only the reading of what it prints.
    """

    def __init__(self, name: str, *arguments: str, stdin: Any = None) -> None:
        source = _PROGRAMS[name].read_text(encoding="utf-8")
        bits = [QuoteString(part) for part in (source, *arguments)]
        if stdin is None:
            super().__init__("python3", "-I", "-c", *bits)
        else:
            super().__init__("python3", "-I", "-c", *bits, _stdin=stdin)

    def execute(
        self, state: State, host: PyinfraHost, connector_arguments: ConnectorArguments
    ) -> tuple[bool, CommandOutput]:
        """Run it; raises TimeoutError, which pyinfra reports as this host's."""
        with gevent.Timeout(connector_arguments.get("_timeout"), TimeoutError):
            done: tuple[bool, CommandOutput] = super().execute(state, host, connector_arguments)
        return done


class Entry(TypedDict):
    """What is at a path: `content` is a file's sha256 or a symlink's target."""

    type: str
    mode: int
    owner: str
    group: str
    content: str


class HostState(TypedDict, total=False):
    """The answer of left4me/remote/look.py; its first three only, on a system that is not in SYSTEMS or without root.

    `busy` and these are all there is where another deploy is at work.
    """

    python: list[int] | None
    system: str
    root: bool
    busy: bool
    architecture: str
    init: str
    overlay: bool
    packages: list[str]
    entries: dict[str, Entry]
    users: dict[str, tuple[int, str, str]]
    groups: dict[str, int]
    installation: dict[str, Any] | None
    releases: list[str]
    mounts: dict[str, list[str]]
    held: list[str]


class Look(FactBase[HostState]):
    """Everything that a deploy compares with what is declared, in one command."""

    def command(self, question: str) -> StringCommand:
        """Return the command; `question` is what look.py reads, as JSON."""
        no_python = "command -v python3 >/dev/null || { echo '{\"python\": null}'; exit 0; };"
        return StringCommand(no_python, "exec", Program("look", question))

    def process(self, output: list[str]) -> HostState:
        """Return the answer."""
        answer: HostState = json.loads(output[-1])
        return answer


class Units(FactBase[dict[str, Any]]):
    """How systemd sees left4me's units (`units`, by name), and whether it needs a daemon-reload (`reload`)."""

    def command(self, names: str) -> StringCommand:
        """Return the command; `names` are units of declared servers, with blanks between."""
        return Program("units", *names.split())

    def process(self, output: list[str]) -> dict[str, Any]:
        """Return the answer."""
        answer: dict[str, Any] = json.loads(output[-1])
        return answer


def _question(host: model.Host) -> str:
    question = {
        "systems": SYSTEMS,
        "paths": [
            *(item.path for item in declared.everything(host)),
            *declared.links(host),
            declared.INSTALLATION,
        ],
        "managed": declared.MANAGED,
        "packages": declared.packages(host),
        "uid": host.uid,
        "gid": host.gid,
        "installation": host.game.path if isinstance(host.game, model.GameOnHost) else None,
        "releases": declared.RELEASES,
        "held": declared.HELD,
        "unfinished": f"{declared.VAR}/runtime/*/reset",
    }
    return json.dumps(question)


_seen: dict[tuple[str, bool], HostState] = {}


def look(host: PyinfraHost, declares: model.Host) -> HostState:
    """Return the state of a host as it was before this run changed it: read once, and once more after a question."""
    # Between the plan and the operator's yes to it the host may have changed.
    key = (host.name, host.state.is_executing and host.state.should_check_for_changes())
    if key not in _seen:
        _seen[key] = host.get_fact(Look, question=_question(declares))
    return _seen[key]
