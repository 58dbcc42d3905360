"""Write what `make status` finds as one HTML file that needs nothing else.

The file opens from a disk and from any web server. Its texts come from hosts, which may be in others' hands: everything
is escaped, and the content security policy allows only the style and the script in the file.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from left4me import model
from left4me.manifest import ROOT
from left4me.pending import Pending, lines, pending
from left4me_host.instance import plain
from left4me_host.status import Status, table

WIDEST = 200
"""Characters in a cell: one server must not make the table wide for all."""
ALL_OPEN = 50
"""A page with at most this many servers shows all of them at once; otherwise the reader opens a host."""
MOST_PLAYERS = 255
"""A2S has one byte for the number of players; a larger number of a host is wrong."""


class Unwritable(Exception):
    """The file cannot be written; the message is one line."""


@dataclass(frozen=True)
class Server:
    """A row of the page; `cells` are those of the terminal's table, with the declared hostname as the second."""

    id: str
    cells: Sequence[str]
    down: bool
    pending: bool

    @property
    def rank(self) -> int:
        return 0 if self.down else 1 if self.pending else 2


@dataclass(frozen=True)
class Host:
    """What was found on a host; `reason` says why it did not answer, or is empty."""

    name: str
    reason: str
    url: str
    """Where browsers reach its Cockpit; empty if unknown."""
    declared: int
    """How many servers its data have."""
    servers: Sequence[Server]
    attention: Sequence[str]
    """What needs attention, each line with the command that helps."""
    players: int
    slots: int

    @property
    def down(self) -> int:
        return sum(server.down for server in self.servers)

    @property
    def pending(self) -> int:
        return sum(server.pending for server in self.servers)

    @property
    def rank(self) -> int:
        return 0 if self.reason else 1 if self.down else 2 if self.pending else 3


def check(path: str) -> None:
    """Raise Unwritable if write() cannot write there, without a trace in the directory."""
    if not path:
        raise Unwritable("HTML= needs a path, such as HTML=fleet.html")
    target = Path(path)
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(target.lstat().st_mode):
                raise Unwritable(f"HTML={path}: is there and is no regular file; give the path of a file")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        reason = f"cannot write in {target.parent}: {error.strerror}"
        raise Unwritable(f"HTML={path}: {reason}; give a path in a directory that you can write to") from None


def write(path: str, text: str) -> None:
    """Replace a file by rename, so that a web server never sends half of it. Raises Unwritable."""
    target = Path(path)
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            try:
                file.write(text.encode())
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise Unwritable(f"HTML={path}: cannot write it: {error.strerror}; the page is as it was before") from None


def host(name: str, found: list[Status] | Exception, declares: model.Host) -> Host:
    """Return what the page says of a host: its servers, or why it did not answer."""
    url = (declares.web and declares.web.url) or ""
    if not url.startswith(("https://", "http://")):  # a browser would run javascript:
        url = ""
    declared = len(declares.present)
    if isinstance(found, Exception):
        return Host(name, str(found), url, declared, [], [], 0, 0)
    waiting = pending(map(vars, found), declares)
    named = {each.server for each in waiting}
    failures = [failure for row in found if (failure := _failure(row, declares.servers.get(row.id), named))]
    down = {each.server for each in failures}
    hostnames = {server: each.hostname for server, each in declares.servers.items()}
    servers = [
        Server(
            first, [first, hostnames.get(first, "-"), *(cell[:WIDEST] for cell in rest)], first in down, first in named
        )
        for first, *rest in table(found)[1:]
    ]
    return Host(
        name,
        "",
        url,
        declared,
        sorted(servers, key=lambda server: (server.rank, int(server.id) if server.id.isdigit() else math.inf)),
        lines([*failures, *waiting]),
        sum(_players(row.players) for row in found),
        sum(_players(row.slots) for row in found),
    )


def _players(count: int | None) -> int:
    return min(max(count or 0, 0), MOST_PLAYERS)


def _failure(row: Status, declared: model.Server | None, named: Iterable[str]) -> Pending | None:
    """Return why a server is down, if it is; `named` are the servers with a pending state."""
    if row.state == "failed":
        return Pending("failed", row.id, "l4d2ctl logs ")
    if declared is None or declared.state != "running":
        return None
    if row.state.startswith("auto-restart"):
        return Pending("crashed, starts again", row.id, "l4d2ctl logs ")
    if row.state == "inactive" and row.id not in named:  # otherwise the pending state says why
        return Pending("not running", row.id, "l4d2ctl start ")
    return Pending("does not answer", row.id, "l4d2ctl logs ") if row.unanswered_since else None


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else plain(str(value))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ROOT / "templates"),
    undefined=jinja2.StrictUndefined,
    autoescape=True,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _inline(name: str) -> tuple[Markup, str]:
    """Return a file of templates/ to put into the page, and what the page's policy allows it by."""
    text = (ROOT / "templates" / name).read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).digest()
    return Markup(text), f"'sha256-{base64.b64encode(digest).decode()}'"


def render(hosts: Iterable[Host], inventory: str, limits: Sequence[str], when: datetime) -> str:
    """Return the page; hosts and servers that need attention come first. `when` has a time zone."""
    hosts = sorted(hosts, key=lambda host: host.rank)
    style, style_source = _inline("fleet.css")
    script, script_source = _inline("fleet.js")
    return _TEMPLATES.get_template("fleet.html.j2").render(
        hosts=hosts,
        # An absolute path would tell the readers of a served page about this machine.
        inventory="/".join(Path(inventory).absolute().parts[-2:]),
        limits=limits,
        when=when,
        headings=["ID", "HOSTNAME", *table([])[0][1:]],
        all_open=sum(len(host.servers) for host in hosts) <= ALL_OPEN,
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src {style_source}; script-src {script_source}; base-uri 'none'; "
        "form-action 'none'",
    )
