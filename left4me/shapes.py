"""The types of what a deploy's programs print on a host; facts.ask() checks each answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from left4me import answers

SYSTEMS = ("debian 12", "debian 13")


class Entry(TypedDict):
    """A path on the host; `content` is the sha256 of a file or the target of a symlink."""

    type: str
    mode: int
    owner: str
    group: str
    content: str


class Installation(TypedDict, total=False):
    """The installation that a build is copied from; {} without srcds_run. See gather.py."""

    name: str
    leads_out: list[str]


class Firewall(TypedDict):
    """The host's firewalls: left4me's version, None if not loaded; the names of others; why nft fails; sshd's ports."""

    version: str | None
    others: list[str]
    refusal: str
    ssh_ports: list[int]


class Cockpit(TypedDict):
    """The output of cockpit.py's state()."""

    recorded: list[str]
    settings: Literal["", "ours", "closed", "open"]
    installed: list[str]
    listens: list[str]
    unbound: Literal["", "in use", "no address"]
    outdated: bool
    root_may: bool
    without_password: list[str]


class HostState(TypedDict, total=False):
    """The output of gather.py. Without root, or on a system not in SYSTEMS, it has only the first three keys."""

    python: list[int] | None
    system: str
    root: bool
    architecture: str
    init: str
    overlay: bool
    project_quotas: int | None
    packages: list[str]
    entries: dict[str, Entry]
    users: dict[str, tuple[int, str, str]]
    groups: dict[str, int]
    installation: Installation
    releases: list[str]
    overlays: dict[str, list[str]]
    runtime: list[str]
    running: dict[str, dict[str, str]]
    ports: dict[str, int]
    mounts: list[str]
    held: list[str]
    revision: str
    firewall: Firewall
    sysctl: dict[str, int | None]
    apparmor: bool | None
    cockpit: Cockpit


def _complete(state: HostState) -> HostState:
    """Check that a state has the keys that it must have. Raises Wrong."""
    keys = {"python"}
    if state.get("python") is not None:
        keys |= {"system", "root"}
        if state.get("system") in SYSTEMS and state.get("root"):
            keys = set(HostState.__annotations__)
    answers.require(state, keys)
    if found := state.get("installation"):
        answers.require(found, Installation.__annotations__)
    return state


class Unit(TypedDict):
    """The properties of a unit that a deploy uses."""

    ActiveState: str
    SubState: str


class Systemd(TypedDict):
    """The output of daemon_reload.py."""

    reload: bool
    limits: bool
    units: dict[str, Unit]


class Item(TypedDict, total=False):
    """A workshop item: see ask_workshop.py."""

    time: int
    size: int
    url: str
    items: list[str]
    why: str


def _usable(found: dict[str, Item]) -> dict[str, Item]:
    """Check that each item is one of the three kinds of ask_workshop.py, and that collections are whole."""
    for item in found.values():
        answers.require(found, item.get("items", ()))
        if "items" not in item and "why" not in item:
            answers.require(item, ("time", "size", "url"))
    return found


class Error(TypedDict):
    error: str


class Nothing(TypedDict):
    """What Answer.command prints on a host without python3."""

    python: None


class NotRoot(TypedDict):
    """The output of `remove_everything.py look` of another user."""

    root: Literal[False]


class Removal(TypedDict):
    """The output of `remove_everything.py look`."""

    root: bool
    refused: list[str]
    running: list[str]
    found: dict[str, list[str]]
    archives: list[str]
    packages: list[str]
    cockpit: bool


class Row(TypedDict):
    """The keys of a row of `l4d2ctl status` that a deploy uses; an older l4d2ctl prints no others."""

    id: answers.Id
    state: str
    held: bool
    port: int | None
    players: int | None
    restart_due: bool
    next_map: bool
    reset_unfinished: NotRequired[bool]


SHAPES: dict[str, TypeAdapter[Any]] = {
    "gather": TypeAdapter(Annotated[HostState, AfterValidator(_complete)]),
    "cockpit": TypeAdapter(Cockpit),
    "daemon_reload": TypeAdapter(Systemd),
    "filetree": TypeAdapter(dict[str, dict[str, str]]),
    "gc": TypeAdapter(list[str]),
    "generation": TypeAdapter(dict[str, dict[str, str]]),
    "ask_workshop": TypeAdapter(Error | Annotated[dict[str, Item], AfterValidator(_usable)]),
    "remove_everything": TypeAdapter(Nothing | NotRoot | Removal),
    "status": TypeAdapter(list[Row]),
}
"""The type of each program's answer."""


def check_asked(name: str, arguments: Sequence[str], found: Any) -> None:
    """Check that an answer has all that it was asked for. Raises Wrong."""
    if name == "daemon_reload":
        answers.require(found["units"], arguments)
    elif name in ("filetree", "generation"):
        answers.require(found, arguments)
    elif name == "ask_workshop" and "error" not in found:
        answers.require(found, arguments[1:])
