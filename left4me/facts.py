"""What a deploy reads of a host: all of it in one command, and how systemd sees the units in another."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn, NotRequired, TypedDict

import gevent
from pyinfra import logger
from pyinfra.api.arguments import ConnectorArguments
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.state import State
from pyinfra.connectors.util import CommandOutput
from pyinfra.context import host

from left4me import manifest, model, pyinfra_hooks
from left4me.remote.program_text import program_command
from left4me_host import layout

SYSTEMS = ("debian 12", "debian 13")


class Command(StringCommand):
    """A command on the host, with its standard input; `stream` shows what it prints as it arrives.

    `_timeout` bounds all of it, standard input included: pyinfra's own bounds only the reading of what it prints.
    """

    def __init__(self, *words: str, stdin: Any = None, stream: bool = False) -> None:
        super().__init__(*map(QuoteString, words), _stdin=stdin)
        self.stream = stream

    def execute(
        self, state: State, host: PyinfraHost, connector_arguments: ConnectorArguments
    ) -> tuple[bool, CommandOutput]:
        """Run it; raises TimeoutError, which pyinfra reports as this host's."""
        connector_arguments.update(self.connector_arguments)
        with gevent.Timeout(connector_arguments.get("_timeout"), TimeoutError):
            return host.run_shell_command(
                self,
                print_output=self.stream or state.print_output,
                print_input=state.print_input,
                **connector_arguments,
            )


def program(name: str, *arguments: str, stdin: Any = None) -> Command:
    """Return the operation's command that runs a program of left4me.remote.program_text on the host."""
    return Command(*program_command(name, *arguments), stdin=stdin)


class Entry(TypedDict):
    """What is at a path: `content` is a file's sha256 or a symlink's target."""

    type: str
    mode: int
    owner: str
    group: str
    content: str
    to_directory: NotRequired[bool]
    """Of a symlink: whether a directory is there."""


class HostState(TypedDict, total=False):
    """The answer of left4me/remote/gather.py; on a system that is not in SYSTEMS, or without root, its first three."""

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
    installation: dict[str, Any]
    releases: list[str]
    overlays: dict[str, list[str]]
    runtime: list[str]
    running: dict[str, dict[str, str]]
    ports: dict[str, int]
    mounts: list[str]
    held: list[str]
    revision: str


class Words(tuple[str, ...]):
    """Arguments of a fact; pyinfra prints those of one that fails, and these are kilobytes that nobody can read."""

    def __str__(self) -> str:
        """Return what stands for them."""
        return "…"


class Answer(FactBase[Any]):
    """What a program of left4me.remote.program_text answers on the host."""

    def command(self, asks: str, words: Sequence[str]) -> StringCommand:
        """Return the command; without a Python the answer is a HostState that says so."""
        no_python = "command -v python3 >/dev/null || { echo '{\"python\": null}'; exit 0; };"
        return StringCommand(no_python, "exec", program(asks, *words))

    def process(self, output: list[str]) -> Any:
        """Return the answer."""
        return json.loads(output[-1])


class Status(FactBase[dict[str, Any]]):
    """The status of servers, by id, as the l4d2ctl of the host has it; of none where there is no l4d2ctl yet."""

    def command(self, words: Sequence[str]) -> StringCommand:
        """Return the command; `words` are ids, none for all that have files on the host."""
        none = f"[ -x {layout.CTL} ] || {{ echo '[]'; exit 0; }};"
        return StringCommand(none, "exec", Command(layout.CTL, "status", "--json", *words))

    def process(self, output: list[str]) -> dict[str, Any]:
        """Return the answer."""
        said = "\n".join(["", *output])  # its shell may print something when it starts
        return {row["id"]: row for row in json.loads(said[said.rindex("\n[") :])}


def declared_host() -> model.Host:
    """Return what the host at hand declares; raises PyinfraError where config.py has not been read."""
    if host.name not in pyinfra_hooks.MODELS:
        raise PyinfraError("config.py was not read: start pyinfra in the repository's root")
    return pyinfra_hooks.MODELS[host.name]


@cache
def _question(name: str) -> str:
    declares = pyinfra_hooks.MODELS[name]
    question = {
        "systems": SYSTEMS,
        "paths": [
            *(item.path for item in manifest.everything(declares)),
            *map(manifest.link_of, manifest.layers(declares)),
            layout.INSTALLATION,
            layout.FAILED_UPDATE,
        ],
        "managed": manifest.MANAGED,
        "packages": manifest.packages(declares),
        "uid": declares.uid,
        "gid": declares.gid,
        "operators": declares.operators,
        "installation": declares.game.path if isinstance(declares.game, model.GameOnHost) else None,
        "releases": layout.RELEASES,
        "overlays": layout.OVERLAYS,
        "runtime": layout.RUNTIME,
        "held": layout.HELD,
        "unfinished": f"{layout.RUNTIME}/*/reset",
    }
    # As one argument: Linux takes 128 KB, which a hundred servers' paths would fill.
    return base64.b64encode(zlib.compress(json.dumps(question).encode())).decode("ascii")


_seen: dict[tuple[str, str, tuple[str, ...], bool], Any] = {}


def refuse(reason: str) -> NoReturn:
    """Say why the host at hand is not deployed any further, and leave it; the others go on."""
    logger.error(f"{host.print_prefix}{reason}")
    # By its name: pyinfra's own `host` is another one in each greenlet, and none when the result is put together.
    host.state.fail_hosts({host.state.inventory.get_host(host.name)})
    raise gevent.GreenletExit


def ask(asks: str, *words: str) -> Any:
    """Return what a program answers now, or l4d2ctl for `status`."""
    of = Words(words)
    found = host.get_fact(Status, words=of) if asks == "status" else host.get_fact(Answer, asks=asks, words=of)
    if found is None:  # pyinfra has said why, and would go on with nothing
        refuse(f"its state ({asks}) could not be read, so nothing more is done there: deploy again")
    return found


def once(asks: str, *words: str) -> Any:
    """Return an answer as it was before this run changed the host: read once, and once more after a question."""
    # Between the plan and the operator's yes to it the host may have changed.
    again = host.state.is_executing and host.state.should_check_for_changes()
    key = (host.name, asks, words, again)
    if key not in _seen:
        _seen[key] = ask(asks, *words)
    return _seen[key]


def host_state() -> HostState:
    """Return the state of the host at hand as it was before this run changed it."""
    state: HostState = once("gather", _question(host.name))
    return state


def missing_packages() -> list[str]:
    """Return what a deploy has to install first: what asking Steam takes may be among it."""
    there = host_state()["packages"]
    return [name for name in manifest.packages(declared_host()) if name not in there]


def workshop() -> dict[str, Any]:
    """Return what Steam says of the workshop items of the layers, by their numbers, or of itself (`error`)."""
    declares = declared_host()
    layers = [each for each in manifest.layers(declares).values() if isinstance(each, model.LayerWorkshop)]
    items = sorted({item for layer in layers for item in layer.items})
    found: dict[str, Any] = once("ask_workshop", declares.workshop_api, *map(str, items)) if items else {}
    return found
