"""What the model declares, as files, directories and symlinks on the host: one function for each concern."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from left4me import model

ROOT = Path(__file__).parent.parent
USER_PREFIX = "left4me-"
GROUP = "left4me"
PACKAGES = ("libc6:i386", "lib32gcc-s1:amd64", "lib32stdc++6:amd64", "lib32z1:amd64", "util-linux:amd64")
"""What srcds is linked against (it is a 32-bit program), and nsenter."""

ETC = "/etc/left4me"
VAR = "/var/lib/left4me"
RELEASES = f"{VAR}/releases"
INSTALLATION = f"{VAR}/installation"
LIBEXEC = "/usr/local/libexec/left4me"
UNITS = "/usr/local/lib/systemd/system"
OWN_UNITS = "/etc/systemd/system"
WANTS = f"{OWN_UNITS}/multi-user.target.wants"

MANAGED = (ETC, LIBEXEC, *(f"{folder}/{dot}left4me*" for folder in (UNITS, OWN_UNITS, WANTS) for dot in ("", ".")))
"""Where a path that nobody declared is removed; the dot is that of a killed run's temporary file."""


@dataclass(frozen=True)
class Item:
    """Something that has to be on the host; `do` is directory, file or symlink, as left4me/remote/place.py has it."""

    do: str
    path: str
    mode: int
    owner: str = "root"
    group: str = "root"
    text: str = ""
    target: str = ""
    shared: bool = False
    """The system's own directory: made where it is missing, left as it is where it is there."""

    def as_json(self) -> dict[str, Any]:
        """Return what place.py reads."""
        return asdict(self)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(**values)


def unit_of(server: str) -> str:
    """Return the name of a server's instance."""
    return f"left4me-server@{server}.service"


def user_of(server: str) -> str:
    """Return the name of the user that runs a server."""
    return USER_PREFIX + server


def directories(host: model.Host) -> list[Item]:
    """Return the layout of /var/lib/left4me. Lower layers lie where no game can reach them but through its overlay."""
    items = [
        Item("directory", VAR, 0o755),
        Item("directory", RELEASES, 0o700),
        Item("directory", f"{VAR}/overlays", 0o700),
        Item("directory", f"{VAR}/secrets", 0o700),
        Item("directory", f"{VAR}/attic", 0o700),
        Item("directory", f"{VAR}/runtime", 0o755),
    ]
    for server in host.servers:
        runtime = f"{VAR}/runtime/{server}"
        items += [
            Item("directory", runtime, 0o700),
            Item("directory", f"{runtime}/upper", 0o755, owner=user_of(server), group=GROUP),
            Item("directory", f"{runtime}/work", 0o700),
            # Below the mount point lies what the unit binds into merged: systemd would make it there before the mount.
            *(
                Item("directory", f"{runtime}/merged{below}", 0o755)
                for below in ("", "/left4dead2", "/left4dead2/cfg", "/left4dead2/cfg/left4me")
            ),
        ]
    return items


def helper() -> list[Item]:
    """Return the one program that mounts."""
    text = (ROOT / "files/libexec/left4me-overlay").read_text(encoding="utf-8")
    return [
        Item("directory", "/usr/local/libexec", 0o755, shared=True),
        Item("directory", LIBEXEC, 0o755),
        Item("file", f"{LIBEXEC}/left4me-overlay", 0o755, text=text),
    ]


def units(host: model.Host) -> list[Item]:
    """Return the template unit and the slice."""
    template = _render("systemd/left4me-server@.service.j2", user_prefix=USER_PREFIX, group=GROUP)
    return [
        Item("directory", "/usr/local/lib/systemd", 0o755, shared=True),
        Item("directory", UNITS, 0o755, shared=True),
        Item("file", f"{UNITS}/left4me-server@.service", 0o644, text=template),
        Item("file", f"{UNITS}/left4me.slice", 0o644, text=_render("systemd/left4me.slice.j2", host=host)),
    ]


def servers(host: model.Host) -> list[Item]:
    """Return each server's own files, its limits, and the symlink that enables it."""
    items = [Item("directory", ETC, 0o755), Item("directory", f"{ETC}/servers", 0o755)]
    for name, server in host.servers.items():
        values = {"id": name, "server": server, "host": host}
        folder, drop_ins = f"{ETC}/servers/{name}", f"{OWN_UNITS}/{unit_of(name)}.d"
        layers = "".join(f"{layer}\n" for layer in server.layers)
        items += [
            Item("directory", folder, 0o755),
            Item("file", f"{folder}/server.env", 0o644, text=_render("server.env.j2", **values)),
            Item("file", f"{folder}/server.cfg", 0o644, text=_render("server.cfg.j2", **values)),
            Item("file", f"{folder}/layers", 0o644, text=layers),
            Item("directory", drop_ins, 0o755),
            Item("file", f"{drop_ins}/limits.conf", 0o644, text=_render("systemd/limits.conf.j2", **values)),
            Item("directory", WANTS, 0o755, shared=True),
            Item("symlink", f"{WANTS}/{unit_of(name)}", 0o777, target=f"{UNITS}/left4me-server@.service"),
        ]
    return items


def everything(host: model.Host) -> list[Item]:
    """Return all that is declared."""
    return [*directories(host), *helper(), *units(host), *servers(host)]
