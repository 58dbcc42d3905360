"""What a deploy reads of a host: all of it in one command, and how systemd sees the units in another."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import gevent
from pyinfra import logger
from pyinfra.api.arguments import ConnectorArguments
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.state import State
from pyinfra.connectors.util import CommandOutput

from left4me import declared, model

SYSTEMS = ("debian 12", "debian 13")
_HERE = Path(__file__).parent
_LIBRARY = _HERE.parent / "files/lib"
# Some that are installed on the host too are asked before that.
_ASKED = [
    _LIBRARY / name for name in ("l4d2ctl/units.py", "content/tree.py", "content/unused.py", "content/workshop.py")
]
_PROGRAMS = {path.stem: path for path in [*_HERE.glob("remote/*.py"), *_ASKED]}


class Command(StringCommand):
    """A command on the host, with its standard input.

    `_timeout` bounds all of it, standard input included: pyinfra's own bounds only the reading of what it prints.
    """

    def __init__(self, *words: str, stdin: Any = None) -> None:
        bits = [QuoteString(word) for word in words]
        if stdin is None:
            super().__init__(*bits)
        else:
            super().__init__(*bits, _stdin=stdin)

    def execute(
        self, state: State, host: PyinfraHost, connector_arguments: ConnectorArguments
    ) -> tuple[bool, CommandOutput]:
        """Run it; raises TimeoutError, which pyinfra reports as this host's."""
        with gevent.Timeout(connector_arguments.get("_timeout"), TimeoutError):
            done: tuple[bool, CommandOutput] = super().execute(state, host, connector_arguments)
        return done


class Program(Command):
    """One of left4me/remote's programs, run on the host with Python's standard library."""

    def __init__(self, name: str, *arguments: str, stdin: Any = None) -> None:
        source = _PROGRAMS[name].read_text(encoding="utf-8")
        super().__init__("python3", "-I", "-c", source, *arguments, stdin=stdin)


class Told(Command):
    """A command whose progress the operator sees as it comes: it takes minutes."""

    def execute(
        self, state: State, host: PyinfraHost, connector_arguments: ConnectorArguments
    ) -> tuple[bool, CommandOutput]:
        """Run it."""
        before, state.print_output = state.print_output, True
        try:
            return super().execute(state, host, connector_arguments)
        finally:
            state.print_output = before


class Entry(TypedDict):
    """What is at a path: `content` is a file's sha256 or a symlink's target."""

    type: str
    mode: int
    owner: str
    group: str
    content: str


class HostState(TypedDict, total=False):
    """The answer of left4me/remote/look.py; on a system that is not in SYSTEMS, or without root, its first three."""

    python: list[int] | None
    system: str
    root: bool
    architecture: str
    init: str
    overlay: bool
    packages: list[str]
    entries: dict[str, Entry]
    users: dict[str, tuple[int, str, str]]
    groups: dict[str, int]
    installation: dict[str, Any] | None
    releases: list[str]
    overlays: dict[str, list[str]]
    runtime: list[str]
    running: dict[str, int]
    ports: dict[str, int]
    mounts: dict[str, list[str]]
    held: list[str]


class Look(FactBase[HostState]):
    """Everything that a deploy compares with what is declared, in one command."""

    def command(self, question: str) -> StringCommand:
        """Return the command; `question` is what look.py reads."""
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


class Listing(FactBase[dict[str, dict[str, str]]]):
    """What is below directories of a host, by directory and name: see tree.py."""

    def command(self, directories: str) -> StringCommand:
        """Return the command; `directories` have blanks between."""
        return Program("tree", *directories.split())

    def process(self, output: list[str]) -> dict[str, dict[str, str]]:
        """Return the answer."""
        answer: dict[str, dict[str, str]] = json.loads(output[-1])
        return answer


class Unused(FactBase[list[str]]):
    """The versions of layers and the builds of the game that nobody uses, by their paths: see unused.py."""

    def command(self) -> StringCommand:
        """Return the command."""
        return Program("unused")

    def process(self, output: list[str]) -> list[str]:
        """Return the answer."""
        answer: list[str] = json.loads(output[-1])
        return answer


class Workshop(FactBase[dict[str, Any]]):
    """What Steam's workshop says of items, asked by the host: see workshop.py."""

    def command(self, api: str, items: str) -> StringCommand:
        """Return the command; `items` are numbers with blanks between."""
        return Program("workshop", api, *items.split())

    def process(self, output: list[str]) -> dict[str, Any]:
        """Return the answer."""
        answer: dict[str, Any] = json.loads(output[-1])
        return answer


class Players(FactBase[dict[str, Any]]):
    """The status of servers that nobody declares any more, by id, as the l4d2ctl of the host has it."""

    def command(self, ids: str) -> StringCommand:
        """Return the command; `ids` have blanks between."""
        ctl = "/usr/local/sbin/l4d2ctl"
        none = f"[ -x {ctl} ] || {{ echo '[]'; exit 0; }};"
        return StringCommand(none, "exec", Command(ctl, "status", "--json", *ids.split()))

    def process(self, output: list[str]) -> dict[str, Any]:
        """Return the answer."""
        return {row["id"]: row for row in json.loads("\n".join(output))}


def _question(host: model.Host) -> str:
    question = {
        "systems": SYSTEMS,
        "paths": [
            *(item.path for item in declared.everything(host)),
            *map(declared.link_of, declared.layers(host)),
            declared.INSTALLATION,
        ],
        "managed": declared.MANAGED,
        "packages": declared.packages(host),
        "uid": host.uid,
        "gid": host.gid,
        "installation": host.game.path if isinstance(host.game, model.GameOnHost) else None,
        "releases": declared.RELEASES,
        "overlays": declared.OVERLAYS,
        "runtime": f"{declared.VAR}/runtime",
        "held": declared.HELD,
        "unfinished": f"{declared.VAR}/runtime/*/reset",
    }
    # As one argument: Linux takes 128 KB, which a hundred servers' paths would fill.
    return base64.b64encode(zlib.compress(json.dumps(question).encode())).decode("ascii")


_seen: dict[tuple[str, type[FactBase[Any]], str, bool], Any] = {}


def refuse(host: PyinfraHost, reason: str) -> NoReturn:
    """Say why a host is not deployed any further, and leave it; the others go on."""
    logger.error(f"{host.print_prefix}{reason}")
    host.state.fail_hosts({host})
    raise gevent.GreenletExit


def ask(host: PyinfraHost, fact: type[FactBase[Any]], **question: str) -> Any:
    """Return a fact as it is now."""
    found = host.get_fact(fact, **question)
    if found is None:  # pyinfra has said why, and would go on with nothing
        refuse(host, f"its state ({fact.__name__}) could not be read, so nothing more is done there: deploy again")
    return found


def once(host: PyinfraHost, fact: type[FactBase[Any]], **question: str) -> Any:
    """Return a fact as it was before this run changed the host: read once, and once more after a question."""
    # Between the plan and the operator's yes to it the host may have changed.
    again = host.state.is_executing and host.state.should_check_for_changes()
    key = (host.name, fact, json.dumps(question), again)
    if key not in _seen:
        _seen[key] = ask(host, fact, **question)
    return _seen[key]


_questions: dict[str, str] = {}


def look(host: PyinfraHost, declares: model.Host) -> HostState:
    """Return the state of a host as it was before this run changed it."""
    if host.name not in _questions:  # every operation comes by here, and a question renders all files
        _questions[host.name] = _question(declares)
    state: HostState = once(host, Look, question=_questions[host.name])
    return state


def workshop(host: PyinfraHost, declares: model.Host) -> dict[str, Any]:
    """Return what Steam says of the workshop items of a host's layers, by their numbers, or of itself (`error`)."""
    layers = [each for each in declared.layers(declares).values() if isinstance(each, model.LayerWorkshop)]
    items = sorted({item for layer in layers for item in layer.items})
    if not items:
        return {}
    found: dict[str, Any] = once(host, Workshop, api=declares.workshop_api, items=" ".join(map(str, items)))
    return found
