"""Facts of pyinfra: a deploy reads a host with programs that it sends, and with l4d2ctl."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

import gevent
from pyinfra import logger
from pyinfra.api.arguments import ConnectorArguments
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.state import State
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import CommandOutput, OutputLine
from pyinfra.context import host

from left4me import answers, manifest, model, pyinfra_hooks, shapes
from left4me.remote.program_text import program_command
from left4me_host import layout
from left4me_host.instance import plain


class Command(StringCommand):
    """A command on the host, with standard input; `stream` shows its output as it arrives.

    `_timeout` limits the whole command. In pyinfra it limits only reading the output, not sending the input.
    """

    def __init__(self, *words: str, stdin: Any = None, stream: bool = False) -> None:
        super().__init__(*map(QuoteString, words), _stdin=stdin)
        self.stream = stream

    def execute(
        self, state: State, host: PyinfraHost, connector_arguments: ConnectorArguments
    ) -> tuple[bool, CommandOutput]:
        """Raises TimeoutError after `_timeout` seconds; pyinfra reports it."""
        connector_arguments.update(self.connector_arguments)
        with gevent.Timeout(connector_arguments.get("_timeout"), TimeoutError):
            return host.run_shell_command(
                self,
                print_output=self.stream or state.print_output,
                print_input=state.print_input,
                **connector_arguments,
            )


class NewLogin(Command):
    """A command on the host over a connection of its own: it fails if nobody can log in any more."""

    def execute(
        self, state: State, host: PyinfraHost, connector_arguments: ConnectorArguments
    ) -> tuple[bool, CommandOutput]:
        """Raises TimeoutError after `_timeout` seconds."""
        connector_arguments.update(self.connector_arguments)
        connector = type(host.connector)(state, host)
        with gevent.Timeout(connector_arguments.get("_timeout"), TimeoutError):
            try:
                connector.connect()
                return connector.run_shell_command(
                    self, print_output=state.print_output, print_input=state.print_input, **connector_arguments
                )
            except ConnectError as error:
                why = f"a new login fails, so the host gets its former firewall back within 30 s: {error}"
                return False, CommandOutput([OutputLine("stderr", plain(why))])
            finally:
                if isinstance(connector, SSHConnector) and connector.client:
                    connector.client.close()


def program(name: str, *arguments: str, stdin: Any = None, by: type[Command] = Command) -> Command:
    """Return the command that runs a program on the host; see program_text.py."""
    return by(*program_command(name, *arguments), stdin=stdin)


class Words(tuple[str, ...]):
    """Arguments of a fact. If the fact fails, pyinfra prints "…" instead of these kilobytes."""

    def __str__(self) -> str:
        return "…"


class Answer(FactBase[str]):
    """A fact: what a program (see program_text.py) prints on the host, for ask()."""

    def command(self, stem: str, words: Sequence[str]) -> StringCommand:
        """Return the command; without python3 it prints {"python": null}."""
        no_python = "command -v python3 >/dev/null || { echo '{\"python\": null}'; exit 0; };"
        return StringCommand(no_python, "exec", program(stem, *words))

    def process(self, output: list[str]) -> str:
        return output[-1]


class Status(FactBase[str]):
    """What `l4d2ctl status --json` prints; [] if the host has no l4d2ctl yet."""

    def command(self, words: Sequence[str]) -> StringCommand:
        """Return the command; `words` are server ids, or empty for all servers that have files on the host."""
        no_ctl = f"[ -x {layout.CTL} ] || {{ echo '[]'; exit 0; }};"
        return StringCommand(no_ctl, "exec", Command(layout.CTL, "status", "--json", *words))

    def process(self, output: list[str]) -> str:
        text = "\n".join(["", *output])  # the login shell may print something first
        return text[max(text.rfind("\n["), 0) :]


def declared_host() -> model.Host:
    """Return the model of the current host. Raises PyinfraError if config.py was not loaded."""
    if host.name not in pyinfra_hooks.MODELS:
        raise PyinfraError("config.py was not loaded: run pyinfra in the root of the repository")
    return pyinfra_hooks.MODELS[host.name]


@cache
def _question(name: str) -> str:
    declares = pyinfra_hooks.MODELS[name]
    question = {
        "systems": shapes.SYSTEMS,
        "paths": [
            # The host's system is not known yet; the newest has all paths that the others have.
            *(item.path for item in manifest.everything(declares, shapes.SYSTEMS[-1])),
            *map(manifest.link_of, manifest.layers(declares)),
            layout.INSTALLATION,
            layout.FAILED_UPDATE,
        ],
        "managed": manifest.MANAGED,
        "packages": manifest.packages(declares),
        "uid": declares.uid,
        "gid": declares.gid,
        "operators": declares.operators,
        "sysctl": [*declares.sysctl],
        "listen": declares.web and declares.web.listen,
        "installation": declares.game.path if isinstance(declares.game, model.GameOnHost) else None,
    }
    # Packed, because Linux limits one argument to 128 KB, which the paths of a hundred servers would exceed.
    return base64.b64encode(zlib.compress(json.dumps(question).encode())).decode("ascii")


_answers: dict[tuple[str, str, tuple[str, ...], bool], Any] = {}


def refuse(reason: str) -> NoReturn:
    """Log the reason and end the run for the current host; the other hosts go on."""
    logger.error(f"{host.print_prefix}{plain(reason)}")
    # Not `host` itself: it is a proxy for the current host of each greenlet.
    host.state.fail_hosts({host.state.inventory.get_host(host.name)})
    raise gevent.GreenletExit


def ask(name: str, *arguments: str) -> Any:
    """Run a program (see program_text.py) on the host and return its answer; of `status`, l4d2ctl's rows by id.

    Ends the run for the current host if the answer is not in shapes.SHAPES.
    """
    words = Words(arguments)
    text = host.get_fact(Status, words=words) if name == "status" else host.get_fact(Answer, stem=name, words=words)
    if text is None:  # pyinfra has logged why, and would continue with None
        refuse(f"cannot read this host ({name}): fix the error above, then deploy again")
    try:
        found = answers.read(text, shapes.SHAPES[name])
        shapes.check_asked(name, arguments, found)
    except answers.Wrong as wrong:
        refuse(f"cannot read this host ({name}): {wrong}")
    return {row["id"]: row for row in found} if name == "status" else found


def once(name: str, *arguments: str) -> Any:
    """Like ask(), but cached before this run changes the host; asks again once the operator has confirmed."""
    # The host may have changed before the operator answered.
    confirmed = host.state.is_executing and host.state.should_check_for_changes()
    key = (host.name, name, arguments, confirmed)
    if key not in _answers:
        _answers[key] = ask(name, *arguments)
    return _answers[key]


def host_state() -> shapes.HostState:
    """Return the current host's state from before this run changed it."""
    state: shapes.HostState = once("gather", _question(host.name))
    return state


def missing_packages() -> list[str]:
    """Return the packages that a deploy must install. Requests to Steam may need some of them."""
    installed = host_state()["packages"]
    return [name for name in manifest.packages(declared_host()) if name not in installed]


def workshop() -> dict[str, Any]:
    """Return ask_workshop.py's answer for the workshop items of all layers; {} without items."""
    declares = declared_host()
    layers = [each for each in manifest.layers(declares).values() if isinstance(each, model.LayerWorkshop)]
    items = sorted({item for layer in layers for item in layer.items})
    found: dict[str, Any] = once("ask_workshop", declares.workshop_api, *map(str, items)) if items else {}
    return found
