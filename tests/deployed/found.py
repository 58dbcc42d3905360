"""The answers of reader.py. A host may be in others' hands, so each is checked against these types."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from left4me.answers import Count, Id, Pair


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("it is no absolute path")
    return path


Path = Annotated[str, AfterValidator(_absolute)]
"""Not a pattern: pydantic would refuse a path that is not UTF-8."""


class Entry(TypedDict):
    type: str
    mode: Annotated[str, Field(pattern=r"\A[0-7]{4}\z")]
    owner: str
    group: str
    target: NotRequired[str]
    since: NotRequired[str]
    sha256: NotRequired[str]
    text: NotRequired[str]


class Held(TypedDict):
    since: str
    by: str


class Circumstances(TypedDict):
    """Of a server: what its pending states follow from."""

    record: dict[str, str]
    age: float | None
    since: str
    held: Held | None
    reset: str
    declared: str
    unread: str


class Mount(TypedDict):
    point: str
    flags: list[str]
    options: dict[str, str]


class Holder(TypedDict):
    pid: Count
    comm: str
    kind: str
    path: str
    detached: bool


class Process(TypedDict):
    user: str
    command: list[str]
    confined_by: str


class A2S(TypedDict):
    map: str
    folder: str
    players: Count
    bots: Count


class Disk(TypedDict):
    """Sizes in bytes: as statvfs(3) shows them at an upper, where a project's limit counts, and at /var/lib/left4me."""

    bytes: Count
    files: Count
    whole: Count


class User(TypedDict):
    uid: Count
    group: str
    shell: str


class Firewall(TypedDict):
    """The loaded table: its comment, its hooks with their priorities, and the elements of three sets."""

    version: str
    hooks: dict[str, int]
    game: list[Count]
    rcon_from: list[str]
    game_may_reach: list[str]


class Listening(TypedDict):
    at: str
    by: list[str]


class Web(TypedDict):
    packages: list[str]
    socket: dict[str, str]
    listening: list[Listening]


class Found(TypedDict):
    """What was read of a host."""

    system: Literal["debian 12", "debian 13"]
    servers: dict[Id, Circumstances]
    entries: dict[Path, Entry]
    overlays: list[Mount]
    holders: list[Holder]
    units: dict[str, dict[str, str]]
    verify: list[str]
    verify_exit: Count
    exposure: dict[str, float | None]
    users: dict[str, User]
    groups: dict[str, Count]
    firewall: Firewall | None
    sysctl: dict[str, str | None]
    apparmor: bool
    pins: list[str] | None
    web: Web
    memory: Count
    disks: dict[Id, Disk]
    cgroups: dict[str, dict[str, str]]
    packages: list[str]
    leaks: dict[str, list[str]]
    trees: dict[str, dict[str, Pair[str | Count]]]
    links_out: dict[str, str]
    missing_cfgs: dict[str, list[str]]
    processes: dict[str, Process | None]
    answers: dict[str, A2S | None]


FOUND = TypeAdapter(Found)


class Refused(TypedDict):
    refused: str


class Stopped(TypedDict):
    ActiveState: str
    ExecStopPostEx: str


class Cycled(TypedDict):
    """The figures of a stop, and what came after it."""

    seconds: float
    holders: list[Holder]
    unit: Stopped
    left: list[str]
    holders_left: list[Holder]
    start: str
    answer: A2S | None


CYCLED: TypeAdapter[Any] = TypeAdapter(Refused | Cycled)
