"""Hooks into pyinfra, installed by config.py, the first file that pyinfra runs.

pyinfra runs config.py, the inventory and its data, State.init, the connections, deploy.py. Bad data must stop a run
before the connections, so this wraps the second and third step; tests/unit fails if a pyinfra release skips a wrapper.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import gevent.select
import pyinfra_cli.cli
import pyinfra_cli.prints
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra_cli.exceptions import UnexpectedExternalError

from left4me import model, pending, pyinfra_connection, validation

MODELS: dict[str, model.Host] = {}
"""The validated data of each host in this run, by name; filled before the first connection."""

OPTIONS: dict[str, Any] = {}
"""pyinfra's command-line options of this run."""

PENDING: dict[str, list[pending.Pending]] = {}
"""The pending states of each host in this run, by name."""

REMOVAL: dict[str, str] = {}
"""The --data options of remove.py: `remove` confirms the host's name; `keep` is yes or no."""

REFUSED = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def _refuse(lines: Iterable[str]) -> NoReturn:
    for line in lines:
        click.echo(f"refused: {line}", err=True)
    click.echo("No host was contacted and nothing has changed.", err=True)
    sys.exit(REFUSED)


def _where(error: BaseException, filename: str) -> str:
    """Return FILE:LINE where the operator's file raised `error`."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{filename}:{line}" if line else filename


def load_inventory(load: Callable[..., Inventory], inventory: str, *args: Any, **kwargs: Any) -> Inventory:
    """Load an inventory with pyinfra's `load`; exit with code 2 and one line if that fails."""
    if "@" not in inventory:
        if Path(inventory).is_dir():
            _refuse([f"inventory {inventory}: is a directory: give the path of the inventory file in it"])
        if not Path(inventory).is_file():
            _refuse([f"inventory {inventory}: no such file"])
    try:
        return load(inventory, *args, **kwargs)
    except UnexpectedExternalError as error:
        cause = error.exception
        _refuse([f"{_where(cause, error.filename)}: {type(cause).__name__}: {cause}"])
    except SyntaxError as error:
        _refuse([f"{_where(error, '')}: {error.msg}"])
    except PyinfraError as error:
        _refuse([f"inventory {inventory}: {error}"])
    except (AttributeError, TypeError, ValueError) as error:  # pyinfra does not check the file's contents
        _refuse([f"inventory {inventory}: is not a list of hosts that pyinfra can read: {error}"])


def check_hosts(inventory: Inventory, limit: list[PyinfraHost] | None) -> None:
    """Validate every host and fill MODELS; exit with code 2 on mistakes or without a selected host."""
    if OPTIONS.get("dry") and OPTIONS.get("yes"):
        _refuse(["--dry with -y shows nothing, since pyinfra then does not look for changes: remove -y"])
    hosts = list(inventory)
    removes = [each for each in OPTIONS.get("operations", ()) if Path(each).name == "remove.py"]
    if not hosts:
        _refuse(["the inventory has no hosts (this repository's own lists the test boxes that are up: ./box up)"])
    if limit is not None and not limit:
        names = ", ".join(sorted(host.name for host in hosts))
        _refuse([f"--limit and --exclude select no host; the inventory has: {names}"])
    data = {host.name: host.data.dict() for host in hosts}
    if removes:
        _check_removal(limit or hosts)
        data = {name: {key: own[key] for key in own if key not in REMOVAL} for name, own in data.items()}
    try:
        MODELS.update(validation.validate_all(data))
    except validation.InvalidData as invalid:
        _refuse(str(mistake) for mistake in invalid.mistakes)


def _check_removal(hosts: list[PyinfraHost]) -> None:
    """Fill REMOVAL; exit with code 2 unless the options select one host."""
    given = dict(each.split("=", 1) for each in OPTIONS["data"])
    REMOVAL.update({key: given[key] for key in ("remove", "keep") if key in given})
    if len(OPTIONS["operations"]) != 1:
        _refuse(["remove.py cannot run together with other operations: give it alone"])
    if not OPTIONS["limit"] or len(hosts) != 1:
        names = ", ".join(sorted(host.name for host in hosts))
        _refuse([f"remove.py works on one host: add --limit with one of {names}"])
    if REMOVAL.get("keep", "yes") not in ("yes", "no"):
        _refuse(["--data keep= must be yes (the default) or no"])
    name = hosts[0].name
    if OPTIONS["yes"] and REMOVAL.get("remove") != name:
        _refuse([f"remove.py -y does not ask, so confirm the host: add --data remove={name}"])
    if REMOVAL.get("remove", name) != name:
        _refuse([f"--data remove={REMOVAL['remove']} is not the host of --limit, {name}"])


def changes_nothing() -> bool:
    """Return whether pyinfra changes nothing in this run: with --dry, or with --json but without -y."""
    return bool(OPTIONS["dry"] or (OPTIONS["json_output"] and not OPTIONS["yes"]))


def _print_pending() -> None:
    for name, found in PENDING.items():
        for line in pending.lines(found):
            click.echo(f"[{name}] {line}", err=True)


def _print_json(print_json: Callable[[Any], None], payload: Any) -> None:
    """Print pyinfra's JSON result with the pending states added."""
    if isinstance(payload, dict) and "results" in payload:
        payload["pending"] = {name: [asdict(each) for each in found] for name, found in PENDING.items()}
    print_json(payload)


def _patient_input() -> str:
    """Read the operator's answer without stopping the heartbeats; otherwise the hosts free their locks."""
    gevent.select.select([sys.stdin], [], [])
    return input()


def _interrupt(state: State | None, _signal: int, _frame: FrameType | None) -> None:
    half_done = "hosts may be half done. Run the same command again to finish them."
    # Before it executes, pyinfra changes nothing.
    click.echo(f"Interrupted: {half_done if state and state.is_executing else 'nothing has changed.'}", err=True)
    # Not sys.exit: pyinfra would wait for commands on hosts that may never answer.
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def install() -> None:
    load, init = pyinfra_cli.cli.make_inventory, State.init  # type: ignore[attr-defined]

    def checked_init(
        state: State, inventory: Inventory, config: Any, initial_limit: list[PyinfraHost] | None = None
    ) -> None:
        check_hosts(inventory, initial_limit)
        init(state, inventory, config, initial_limit=initial_limit)
        signal.signal(signal.SIGINT, partial(_interrupt, state))

    pyinfra_cli.cli.make_inventory = (  # type: ignore[attr-defined]
        lambda *args, **kwargs: load_inventory(load, *args, **kwargs)
    )
    State.init = checked_init  # type: ignore[method-assign, assignment]
    pyinfra_cli.cli.input = _patient_input  # type: ignore[attr-defined]
    OPTIONS.update(click.get_current_context().params)
    pyinfra_connection.install()
    pyinfra_cli.prints.print_json = partial(_print_json, pyinfra_cli.prints.print_json)
    atexit.register(_print_pending)  # after pyinfra's own results
    signal.signal(signal.SIGINT, partial(_interrupt, None))
