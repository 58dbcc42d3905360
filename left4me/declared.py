"""What the model declares, as files, directories and symlinks on the host: one function for each concern."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from left4me import model
from left4me.remote.generation import generation

ROOT = Path(__file__).parent.parent
USER_PREFIX = "left4me-"
GROUP = "left4me"
_PACKAGES = ("libc6:i386", "lib32gcc-s1:amd64", "lib32stdc++6:amd64", "lib32z1:amd64", "util-linux:amd64")

ETC = "/etc/left4me"
VAR = model.VAR
OVERLAYS = f"{VAR}/overlays"
SECRETS = f"{VAR}/secrets"
RELEASES = f"{VAR}/releases"
INSTALLATION = f"{VAR}/installation"
HELD = f"{VAR}/held"
GAME = f"{VAR}/game"
LIBEXEC = "/usr/local/libexec/left4me"
CONTENT = f"{LIBEXEC}/left4me-content"
CTL = "/usr/local/sbin/l4d2ctl"
LIB = "/usr/local/lib/left4me"
UNITS = "/usr/local/lib/systemd/system"
OWN_UNITS = "/etc/systemd/system"
WANTS = f"{OWN_UNITS}/multi-user.target.wants"
TIMERS = f"{OWN_UNITS}/timers.target.wants"
TIMER = "left4me-game.timer"
FINISH_RESETS = "left4me-finish-resets.service"

SUDOERS = "/etc/sudoers.d"
NEEDRESTART = "/etc/needrestart/conf.d"
_FOLDERS = (UNITS, OWN_UNITS, WANTS, TIMERS, SUDOERS, NEEDRESTART)
COMPLETIONS = "/usr/local/share/bash-completion/completions"
_LEFTOVERS = ("/usr/local/sbin/.l4d2ctl.*", f"{COMPLETIONS}/.l4d2ctl.*", f"{VAR}/.new-*")
MANAGED = (
    ETC,
    LIBEXEC,
    LIB,
    f"{SECRETS}/*",
    *_LEFTOVERS,
    *(f"{folder}/{dot}left4me*" for folder in _FOLDERS for dot in ("", ".")),
)
"""Where a path that nobody declared is removed; the dot is that of a killed run's temporary file."""


@dataclass(frozen=True)
class Item:
    """Something that has to be on the host; `do` is directory, file, symlink or secret, as place.py has it.

    A secret is a file that is made on the host where it is missing, with something random for the %s in its text.
    """

    do: str
    path: str
    mode: int
    owner: str = "root"
    group: str = "root"
    text: str = ""
    target: str = ""
    check: tuple[str, ...] = ()
    """A command that must accept the new file, whose name follows, before it is put in place."""
    shared: bool = False
    """The system's own directory: made where it is missing, left as it is where it is there."""


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ROOT / "templates"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
)


def _render(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(**values)


def unit_of(server: str) -> str:
    """Return the name of a server's instance."""
    return f"left4me-server@{server}.service"


def user_of(server: str) -> str:
    """Return the name of the user that runs a server."""
    return USER_PREFIX + server


def layers(host: model.Host) -> dict[str, model.Layer]:
    """Return the layers that servers of this host have, by name."""
    own = model.LayerOnControl(source="control", path=str(ROOT / "files/layers/admins"))
    known: dict[str, model.Layer] = {**host.layers, model.ADMINS_LAYER: own}
    return {name: known[name] for name in sorted({name for each in host.present.values() for name in each.lowers})}


def link_of(layer: str) -> str:
    """Return the symlink that names the current version of a layer."""
    return f"{OVERLAYS}/{layer}/current"


def packages(host: model.Host) -> list[str]:
    """Return what srcds is linked against (it is a 32-bit program), nsenter, and what this host's data needs."""
    sources = list(layers(host).values())
    git = any(isinstance(each, model.LayerGit) for each in sources)
    workshop = any(isinstance(each, model.LayerWorkshop) for each in sources)
    asked = [host.webhook, host.workshop_api if workshop else None]
    asked += [host.steamcmd_url if isinstance(host.game, model.GameFromSteam) else None]
    asked += [getattr(each, "url", None) for each in [host.game, *sources]]
    tls = any(address.startswith("https:") for address in asked if address)
    needed = {"sudo:amd64": bool(host.operators), "git:amd64": git, "ca-certificates:all": tls}
    return [*_PACKAGES, *(name for name, is_needed in needed.items() if is_needed)]


def directories(host: model.Host) -> list[Item]:
    """Return the layout of /var/lib/left4me. Lower layers lie where no game can reach them but through its overlay."""
    items = [
        Item("directory", VAR, 0o755),
        Item("directory", RELEASES, 0o700),
        Item("directory", OVERLAYS, 0o700),
        Item("directory", SECRETS, 0o700),
        Item("directory", f"{VAR}/attic", 0o700),
        Item("directory", HELD, 0o755),
        Item("directory", GAME, 0o755),
        Item("directory", f"{GAME}/verdicts", 0o700),
        Item("directory", f"{VAR}/runtime", 0o755),
    ]
    for server in host.instances:
        runtime = f"{VAR}/runtime/{server}"
        items += [
            Item("directory", runtime, 0o700),
            Item("directory", f"{runtime}/upper", 0o755, owner=user_of(server), group=GROUP),
            Item("directory", f"{runtime}/work", 0o700),
            Item("directory", f"{SECRETS}/{server}", 0o500, owner=user_of(server)),
            # Below the mount point lies what the unit binds into merged: systemd would make it there before the mount.
            *(
                Item("directory", f"{runtime}/merged{below}", 0o755)
                for below in ("", "/left4dead2", "/left4dead2/cfg", "/left4dead2/cfg/left4me")
            ),
        ]
    return items


def programs(host: model.Host) -> list[Item]:
    """Return the programs on the host: the one that mounts, the operator's tool, and what they start."""
    files = ROOT / "files"
    items = [
        Item("directory", "/usr/local/libexec", 0o755, shared=True),
        Item("directory", LIBEXEC, 0o755),
        *(_program(path, f"{LIBEXEC}/{path.name}", 0o755) for path in sorted(files.glob("libexec/*"))),
        Item("directory", LIB, 0o755),
        *(Item("directory", f"{LIB}/{name}", 0o755) for name in ("content", "l4d2ctl")),
        *(
            _program(path, f"{LIB}/{path.relative_to(files / 'lib')}", 0o644)
            for path in sorted(files.glob("lib/*/*.py"))
        ),
        _program(files / "sbin/l4d2ctl", CTL, 0o755),
        *(
            Item("directory", f"/usr/local/share{below}", 0o755, shared=True)
            for below in ("", "/bash-completion", "/bash-completion/completions")
        ),
        _program(files / "completions/l4d2ctl", f"{COMPLETIONS}/l4d2ctl", 0o644),
    ]
    if host.operators:
        text, check = _render("sudoers.j2", host=host), ("/usr/sbin/visudo", "-c", "-q", "-f")
        items.append(Item("file", f"{SUDOERS}/left4me", 0o440, text=text, check=check))
    return items


def _program(source: Path, path: str, mode: int) -> Item:
    return Item("file", path, mode, text=source.read_text(encoding="utf-8"))


def _template_unit() -> str:
    return _render("systemd/left4me-server@.service.j2", user_prefix=USER_PREFIX, group=GROUP)


def units(host: model.Host) -> list[Item]:
    """Return the template unit, the slice, and what works by itself: attic, resets at the boot, webhook, updates."""
    services = ("attic", "finish-resets", "game", "notify@", "restart")
    names = ["left4me.slice", *(f"left4me-{name}.service" for name in services)]
    items = [
        Item("directory", "/usr/local/lib/systemd", 0o755, shared=True),
        Item("directory", UNITS, 0o755, shared=True),
        Item("file", f"{UNITS}/left4me-server@.service", 0o644, text=_template_unit()),
        Item("directory", WANTS, 0o755, shared=True),
        Item("symlink", f"{WANTS}/{FINISH_RESETS}", 0o777, target=f"{UNITS}/{FINISH_RESETS}"),
        Item("directory", "/etc/needrestart", 0o755, shared=True),
        Item("directory", NEEDRESTART, 0o755, shared=True),
        _program(ROOT / "files/needrestart.conf", f"{NEEDRESTART}/left4me.conf", 0o644),
    ]
    if host.update_at:
        names.append(TIMER)
        items.append(Item("directory", TIMERS, 0o755, shared=True))
        items.append(Item("symlink", f"{TIMERS}/{TIMER}", 0o777, target=f"{UNITS}/{TIMER}"))
    return items + [
        Item("file", f"{UNITS}/{name}", 0o644, text=_render(f"systemd/{name}.j2", host=host)) for name in names
    ]


def trials(host: model.Host) -> list[Item]:
    """Return what has to be there before a build of the game is tried: how it comes, and the files of the trials."""
    told = {"build": host.game.build, "kept": host.builds_kept, "trial_server": host.trial_server}
    told |= {"source": host.game.source, "url": host.steamcmd_url, "sha256": host.steamcmd_sha256}
    return [
        Item("directory", ETC, 0o755),
        Item("directory", f"{ETC}/servers", 0o755),
        Item("file", f"{ETC}/game", 0o644, text=f"{json.dumps(told, indent=2)}\n"),
        *(item for name, server in host.trials.items() for item in _instance(host, name, server)),
    ]


def servers(host: model.Host) -> list[Item]:
    """Return each server's own files, its limits, and the symlink that enables it."""
    items = [Item("file", f"{ETC}/webhook", 0o600, text=f"{host.webhook}\n")] if host.webhook else []
    return items + [item for name, server in host.present.items() for item in _instance(host, name, server)]


def _instance(host: model.Host, name: str, server: model.Server) -> list[Item]:
    secret = _secret(name, server)
    values = {"id": name, "server": server, "host": host, "secret": Path(secret.path).name}
    folder, drop_ins = f"{ETC}/servers/{name}", f"{OWN_UNITS}/{unit_of(name)}.d"
    limits, environment = _render("systemd/limits.conf.j2", **values), _render("server.env.j2", **values)
    environment += f'LEFT4ME_GENERATION="{generation(_template_unit(), limits, environment)}"\n'
    texts = {
        "server.env": environment,
        "server.cfg": _render("server.cfg.j2", **values),
        "layers": "".join(f"{layer}\n" for layer in server.lowers),
        "keep": "".join(f"{path}\n" for path in server.keep),
        "restart": f"{server.restart}\n",
        "build": f"{server.build}\n" if server.build else "",
        "admins_simple.ini": _render("admins_simple.ini.j2", **values) if server.admins else "",
    }
    items = [
        Item("directory", folder, 0o755),
        Item("directory", f"{folder}/secret", 0o755),
        secret,
        *(
            # Of all that a server's directory holds, the cvars may be secrets, such as sv_password.
            Item("file", f"{folder}/{name}", 0o640, group=GROUP, text=text)
            if name == "server.cfg"
            else Item("file", f"{folder}/{name}", 0o644, text=text)
            for name, text in texts.items()
            if text or name in ("layers", "keep")
        ),
        Item("directory", drop_ins, 0o755),
        Item("file", f"{drop_ins}/limits.conf", 0o644, text=limits),
        Item("directory", WANTS, 0o755, shared=True),
    ]
    if server.state == "running":
        target = f"{UNITS}/left4me-server@.service"
        items.append(Item("symlink", f"{WANTS}/{unit_of(name)}", 0o777, target=target))
    return items


def _secret(name: str, server: model.Server) -> Item:
    """Return the cfg file with a server's RCON password, in a directory where only the game and root can read."""
    given = server.rcon_password.get_secret_value() if server.rcon_password else "%s"
    do, path = ("file", "rcon-given.cfg") if server.rcon_password else ("secret", "rcon.cfg")
    path, owner, text = f"{SECRETS}/{name}/{path}", user_of(name), f'rcon_password "{given}"\n'
    return Item(do, path, 0o400, owner=owner, text=text)


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    """Ask git about this checkout; raises FileNotFoundError where there is no git."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT), *words]
    return subprocess.run(git, capture_output=True, text=True, check=False)


@cache
def revision() -> str:
    """Return the commit that is checked out here, with a + where the checkout differs from it."""
    try:
        done = _git("describe", "--always", "--exclude=*", "--dirty=+")
    except FileNotFoundError:
        return "unknown"
    return "unknown" if done.returncode else done.stdout.strip()  # what git made is not here


_ASKS = threading.Lock()


@cache
def _merge_base(theirs: str, ours: str) -> subprocess.CompletedProcess[str]:
    return _git("merge-base", theirs, ours)


def history(other: str) -> str:
    """Tell what a revision, such as a host's, is to this checkout's.

    `newer`, `diverged`, `missing` where git does not have it here; nothing where it is part of it, or nobody knows.
    """
    theirs, ours = other.removesuffix("+"), revision().removesuffix("+")
    if "unknown" in (theirs, ours) or theirs in ("", ours):
        return ""
    if not re.fullmatch("[0-9a-f]{4,64}", theirs):
        return "missing"
    with _ASKS:  # one git for a fleet, whose hosts are looked at side by side
        done = _merge_base(theirs, ours)
    if done.returncode > 1:
        return "missing"
    if done.stdout.startswith(theirs):
        return ""
    return "newer" if done.stdout.startswith(ours) else "diverged"


def deployed() -> list[Item]:
    """Return the note of the revision that a host is at; when it came there is the file's own time."""
    return [Item("file", f"{ETC}/revision", 0o644, text=f"{revision()}\n")]


def everything(host: model.Host) -> list[Item]:
    """Return all that is declared."""
    return [*directories(host), *programs(host), *units(host), *trials(host), *servers(host), *deployed()]
