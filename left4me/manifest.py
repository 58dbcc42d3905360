"""Turns a host's model into the paths that the host must have."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from left4me import model, revision
from left4me.remote.generation import generation
from left4me_host import cockpit, firewall, layout

ROOT = Path(__file__).parent.parent
GROUP = "left4me"
_PACKAGES = (
    "libc6:i386",
    "lib32gcc-s1:amd64",
    "lib32stdc++6:amd64",
    "lib32z1:amd64",
    "util-linux:amd64",
    "dbus:amd64",
    "apparmor:amd64",
)

CONTENT = f"{layout.LIBEXEC}/left4me-content"
TIMER = "left4me-game.timer"
_TIMERS = f"{layout.OWN_UNITS}/timers.target.wants"
_FINISH_RESETS = "left4me-finish-resets.service"
_SUDOERS = "/etc/sudoers.d"
SYSCTL = "/etc/sysctl.d/50-left4me.conf"
"""Not left4me.conf: that would override the host's own 99-…conf."""
NEEDRESTART = "/etc/needrestart/conf.d"
COMPLETIONS = "/usr/local/share/bash-completion/completions"

_SYSINIT = f"{layout.OWN_UNITS}/sysinit.target.wants"
NFTABLES = f"{layout.OWN_UNITS}/nftables.service.d"
_FOLDERS = (
    layout.UNITS,
    layout.OWN_UNITS,
    layout.WANTS,
    _TIMERS,
    _SYSINIT,
    NFTABLES,
    cockpit.DROP_INS,
    _SUDOERS,
    NEEDRESTART,
    str(Path(layout.PROFILE).parent),
)
_INTERRUPTED = ("/usr/local/sbin/.l4d2ctl.*", f"{COMPLETIONS}/.l4d2ctl.*", f"{layout.VAR}/.new-*")
MANAGED = (
    layout.ETC,
    layout.LIBEXEC,
    layout.LIB,
    SYSCTL,
    f"{layout.SECRETS}/*",
    *_INTERRUPTED,
    cockpit.PAGE,
    *(f"{folder}/{dot}left4me*" for folder in _FOLDERS for dot in ("", ".")),
)
"""Patterns of paths that a deploy removes if undeclared. Names with a dot are stale temporary files."""


@dataclass(frozen=True)
class Item:
    """A path that the host must have; `do` is directory, file, symlink or secret (see apply_files.py).

    The host creates a secret only if it is missing; a random value replaces the %s in `text`.
    """

    do: str
    path: str
    mode: int
    owner: str = "root"
    group: str = "root"
    text: str = ""
    target: str = ""
    check: tuple[str, ...] = ()
    """A command that must accept the new file before the rename; the file's path is appended."""


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ROOT / "templates"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
)


def _render(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(**values)


def layers(host: model.Host) -> dict[str, model.Layer]:
    """Return the layers that this host's servers use, sorted by name."""
    own = model.LayerOnControl(source="control", path=str(ROOT / "files/layers/admins"))
    known: dict[str, model.Layer] = {**host.layers, model.ADMINS_LAYER: own}
    return {name: known[name] for name in sorted({name for each in host.present.values() for name in each.lowers})}


def link_of(layer: str) -> str:
    """Return the path of the symlink to the current version of a layer."""
    return f"{layout.OVERLAYS}/{layer}/current"


def packages(host: model.Host) -> list[str]:
    """Return the packages for nsenter, systemd-run --wait, srcds (a 32-bit program), AppArmor, and the host's data."""
    sources = [host.game, *layers(host).values()]
    workshop = any(isinstance(each, model.LayerWorkshop) for each in sources)
    urls = [host.webhook, host.workshop_api if workshop else None]
    urls += [host.steamcmd_url if isinstance(host.game, model.GameFromSteam) else None]
    urls += [getattr(each, "url", None) for each in sources]
    tls = any(url.startswith("https:") for url in urls if url)
    needed = ["sudo:amd64"] if host.operators else []
    needed += ["nftables:amd64"] if host.firewall else []
    needed += sorted({name for each in sources for name in each.packages()})
    return [*_PACKAGES, *needed, *(["ca-certificates:all"] if tls else [])]


def directories(host: model.Host) -> list[Item]:
    """Return the directories in /var/lib/left4me. Games reach builds and layers only through overlays."""
    items = [
        Item("directory", layout.VAR, 0o755),
        Item("directory", layout.RELEASES, 0o700),
        Item("directory", layout.OVERLAYS, 0o700),
        Item("directory", layout.SECRETS, 0o700),
        Item("directory", layout.ATTIC, 0o700),
        Item("directory", layout.HELD, 0o755),
        Item("directory", layout.JOBS, 0o700),
        Item("directory", layout.GAME, 0o755),
        Item("directory", layout.VERDICTS, 0o700),
        Item("directory", layout.RUNTIME, 0o755),
    ]
    for server in host.instances:
        runtime = layout.runtime(server)
        items += [
            Item("directory", runtime, 0o700),
            Item("directory", f"{runtime}/upper", 0o755, owner=layout.user(server), group=GROUP),
            Item("directory", f"{runtime}/work", 0o700),
            Item("directory", f"{layout.SECRETS}/{server}", 0o500, owner=layout.user(server)),
            # The unit's BindReadOnlyPaths need these targets; systemd would create them before the overlay mount.
            *(
                Item("directory", f"{runtime}/merged{below}", 0o755)
                for below in ("", "/left4dead2", "/left4dead2/cfg", "/left4dead2/cfg/left4me")
            ),
        ]
    return items


def programs(host: model.Host) -> list[Item]:
    """Return l4d2ctl, the programs in libexec, their library, and the sudoers file for operators."""
    files = ROOT / "files"
    lib = files / "lib"
    folders = sorted({path.parent for path in lib.rglob("*.py")})
    items = [
        Item("directory", layout.LIB, 0o755),
        *(Item("directory", f"{layout.LIB}/{folder.relative_to(lib)}", 0o755) for folder in folders),
        *(_program(path, f"{layout.LIB}/{path.relative_to(lib)}", 0o644) for path in sorted(lib.rglob("*.py"))),
        # The library comes before the programs that import it: an interrupted run leaves old programs.
        Item("directory", layout.LIBEXEC, 0o755),
        *(_program(path, f"{layout.LIBEXEC}/{path.name}", 0o755) for path in sorted(files.glob("libexec/*"))),
        _program(files / "sbin/l4d2ctl", layout.CTL, 0o755),
        _program(files / "completions/l4d2ctl.bash", f"{COMPLETIONS}/l4d2ctl", 0o644),
    ]
    if host.operators:
        text, check = _render("sudoers.j2", host=host), ("/usr/sbin/visudo", "-c", "-q", "-f")
        items.append(Item("file", f"{_SUDOERS}/left4me", 0o440, text=text, check=check))
    return items


def _program(source: Path, path: str, mode: int) -> Item:
    return Item("file", path, mode, text=source.read_text(encoding="utf-8"))


NO_APPARMOR = "no AppArmor here: servers' 32-bit programs may use every address family (docs/threats.md)"


def profile(has_apparmor: bool) -> Item:
    """Return the AppArmor profile of servers. A kernel that has AppArmor loads it before the file is replaced."""
    check = ("/usr/sbin/apparmor_parser", "--replace", "--skip-cache") if has_apparmor else ()
    text = (ROOT / "files/apparmor.d/left4me-server").read_text(encoding="utf-8")
    return Item("file", layout.PROFILE, 0o644, text=text, check=check)


def _template_unit() -> str:
    return _render("systemd/left4me-server@.service.j2", user_prefix=layout.user(""), group=GROUP)


def _is_newer(system: str) -> bool:
    """Return whether a system's systemd can do what Debian 12's rejects (PrivateTmp=) or ignores (SocketBind…=)."""
    return system != "debian 12"


def _sandbox(system: str) -> str:
    """Return the drop-in that completes the sandbox of all servers, "" on Debian 12."""
    return _render("systemd/sandbox.conf.j2") if _is_newer(system) else ""


def _game_unit(act: str) -> str:
    """Return the unit that runs `left4me-game update` or `left4me-game check`."""
    return _render(f"systemd/{layout.GAME_UNIT}.j2", act=act)


def units(host: model.Host, system: str) -> list[Item]:
    """Return the template unit, the slice, the units for attic, resets, webhook and updates; the kernel's settings.

    `system` is one of shapes.SYSTEMS.
    """
    services = ("attic", "finish-resets", "notify@", "restart")
    names = ["left4me.slice", *(f"left4me-{name}.service" for name in services)]
    items = [
        Item("file", f"{layout.UNITS}/left4me-server@.service", 0o644, text=_template_unit()),
        Item("symlink", f"{layout.WANTS}/{_FINISH_RESETS}", 0o777, target=f"{layout.UNITS}/{_FINISH_RESETS}"),
        Item("file", f"{layout.UNITS}/{layout.GAME_UNIT}", 0o644, text=_game_unit("update")),
        Item("file", f"{layout.UNITS}/{layout.CHECK_UNIT}", 0o644, text=_game_unit("check")),
        _program(ROOT / "files/needrestart.conf", f"{NEEDRESTART}/left4me.conf", 0o644),
    ]
    if sandbox := _sandbox(system):
        items += [
            Item("directory", layout.OF_ALL, 0o755),
            Item("file", layout.SANDBOX, 0o644, text=sandbox),
        ]
    if host.sysctl:
        items.append(Item("file", SYSCTL, 0o644, text=_render("sysctl.conf.j2", host=host)))
    if host.update_at:
        names.append(TIMER)
        items.append(Item("symlink", f"{_TIMERS}/{TIMER}", 0o777, target=f"{layout.UNITS}/{TIMER}"))
    if host.firewall:
        names.append(layout.FIREWALL_UNIT)
        target = f"{layout.UNITS}/{layout.FIREWALL_UNIT}"
        items.append(Item("symlink", f"{_SYSINIT}/{layout.FIREWALL_UNIT}", 0o777, target=target))
        items.append(_program(ROOT / "files/nftables.service.d.conf", f"{NFTABLES}/left4me.conf", 0o644))
    return items + [
        Item("file", f"{layout.UNITS}/{name}", 0o644, text=_render(f"systemd/{name}.j2", host=host)) for name in names
    ]


def page(host: model.Host) -> list[Item]:
    """Return the page that Cockpit shows."""
    if not host.web:
        return []
    top = ROOT / "files/cockpit"
    names = sorted(path.relative_to(top) for path in top.rglob("*"))
    return [
        Item("directory", cockpit.PAGE, 0o755),
        *(
            Item("directory", f"{cockpit.PAGE}/{name}", 0o755)
            if (top / name).is_dir()
            else _program(top / name, f"{cockpit.PAGE}/{name}", 0o644)
            for name in names
        ),
    ]


def cockpit_drop_in(web: model.Web) -> Item:
    """Return the drop-in that says where Cockpit listens."""
    return Item("file", cockpit.DROP_IN, 0o644, text=_render("systemd/cockpit.socket.conf.j2", web=web))


def cockpit_settings(web: model.Web) -> Item | None:
    """Return Cockpit's settings for an address that other machines reach, else None."""
    return _program(ROOT / "files/cockpit.conf", cockpit.SETTINGS, 0o644) if web.is_public else None


def firewall_file(host: model.Host, running: Mapping[str, int]) -> Item:
    """Return the file with the firewall's table.

    `running` has the ports, by id, on which servers run now: a server that requires a restart may have another port
    than declared, and a server may be kept for its players though it is no longer declared.
    """
    pairs = {*running.items(), *((name, server.port) for name, server in host.instances.items())}
    owners = sorted((str(port), layout.user(name)) for name, port in pairs)
    values: dict[str, Any] = {
        "host": host,
        "owners": owners,
        "ports": sorted({port for port, _user in owners}),
        "users": sorted({user: port for port, user in owners}.items()),  # counted on one of a user's ports
        "limits": host.firewall_limits,
        "reasons": firewall.DROPPED,
        "elements": _elements,
    }
    version = hashlib.sha256(_render("firewall.nft.j2", **values, version="").encode()).hexdigest()[:12]
    return Item("file", layout.FIREWALL, 0o644, text=_render("firewall.nft.j2", **values, version=version))


def _elements(values: Iterable[str]) -> str:
    """Return the elements of a set of nftables; an empty list would be a syntax error there."""
    listed = ", ".join(value.replace(":", " . ") for value in values)
    return f" elements = {{ {listed} }}" if listed else ""


def firewall_version(item: Item) -> str:
    """Return the version that the kernel shows once the table is loaded."""
    return re.search(r'^ *comment "(.+)"$', item.text, re.MULTILINE)[1]  # type: ignore[index]


def test_instances(host: model.Host, system: str) -> list[Item]:
    """Return the files for smoke tests: the game's settings and the test instances."""
    settings = {"build": host.game.build, "kept": host.builds_kept, "trial_server": host.trial_server}
    settings |= {"source": host.game.source, "url": host.steamcmd_url, "sha256": host.steamcmd_sha256}
    return [
        Item("directory", layout.ETC, 0o755),
        Item("directory", layout.SERVERS, 0o755),
        Item("file", layout.GAME_SETTINGS, 0o644, text=f"{json.dumps(settings, indent=2)}\n"),
        *(item for name, server in host.test_instances.items() for item in _instance(host, name, server, system)),
    ]


def servers(host: model.Host, system: str) -> list[Item]:
    """Return the servers' files: configuration, limits, denied ports, and the symlinks that enable their units."""
    items = [Item("file", layout.WEBHOOK, 0o600, text=f"{host.webhook}\n")] if host.webhook else []
    items += [item for name, server in host.present.items() for item in _instance(host, name, server, system)]
    if _is_newer(system):
        denied = [host.trial_port, *(server.port for server in host.present.values() if server.port)]
        # After the drop-ins that allow each server its own: in an interrupted deploy, none must lose its port.
        text = _render("systemd/ports.conf.j2", denied=_ranges(denied))
        items.append(Item("file", layout.DENIED_PORTS, 0o644, text=text))
    return items


def _ranges(ports: Iterable[int]) -> list[str]:
    """Return ports and ranges of ports, such as 27015-27017: systemd takes at most 128 rules."""
    found: list[tuple[int, int]] = []
    for port in sorted(ports):
        if found and port == found[-1][1] + 1:
            found[-1] = (found[-1][0], port)
        else:
            found.append((port, port))
    return [f"{first}-{last}" if first < last else f"{first}" for first, last in found]


def _instance(host: model.Host, name: str, server: model.Server, system: str) -> list[Item]:
    secret = _secret(name, server)
    values = {"id": name, "server": server, "host": host, "secret": Path(secret.path).name}
    values["restricts_ports"] = _is_newer(system)
    folder, drop_ins = f"{layout.SERVERS}/{name}", f"{layout.OWN_UNITS}/{layout.unit(name)}.d"
    limits, environment = _render("systemd/limits.conf.j2", **values), _render("server.env.j2", **values)
    environment += f'LEFT4ME_GENERATION="{generation(_template_unit(), limits + _sandbox(system), environment)}"\n'
    texts = {
        "server.env": environment,
        "server.cfg": _render("server.cfg.j2", **values, digest=_digest_of_cfg(values)),
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
            # Only root and the game may read server.cfg, which may have secret cvars.
            Item("file", f"{folder}/{name}", 0o640, group=GROUP, text=text)
            if name == "server.cfg"
            else Item("file", f"{folder}/{name}", 0o644, text=text)
            for name, text in texts.items()
            if text or name in ("layers", "keep")
        ),
        Item("directory", drop_ins, 0o755),
        Item("file", f"{drop_ins}/limits.conf", 0o644, text=limits),
    ]
    if server.state == "running":
        target = f"{layout.UNITS}/left4me-server@.service"
        items.append(Item("symlink", f"{layout.WANTS}/{layout.unit(name)}", 0o777, target=target))
    return items


def _digest_of_cfg(values: dict[str, Any]) -> str:
    """Return a server.cfg's digest, which the game echoes to show which version it has read."""
    return hashlib.sha256(_render("server.cfg.j2", **values, digest="").encode()).hexdigest()[:12]


def _secret(name: str, server: model.Server) -> Item:
    """Return the cfg file with a server's RCON password, which only the game and root can read."""
    password = server.rcon_password.get_secret_value() if server.rcon_password else "%s"
    do, file = ("file", "rcon-given.cfg") if server.rcon_password else ("secret", "rcon.cfg")
    path, text = f"{layout.SECRETS}/{name}/{file}", f'rcon_password "{password}"\n'
    return Item(do, path, 0o400, owner=layout.user(name), text=text)


def noted_revision() -> list[Item]:
    """Return the file with the deployed revision; its mtime is the time of the deploy."""
    return [Item("file", layout.REVISION, 0o644, text=f"{revision.checked_out()}\n")]


def everything(host: model.Host, system: str) -> list[Item]:
    """Return all that a host with this system must have; ports that only the host knows are missing."""
    table = [firewall_file(host, {})] if host.firewall else []
    of_system = [item for group in (units, test_instances, servers) for item in group(host, system)]
    web = [cockpit_drop_in(host.web), cockpit_settings(host.web)] if host.web else []
    rest = [*page(host), *table, *filter(None, web), *noted_revision()]
    return [*directories(host), *programs(host), profile(has_apparmor=False), *of_system, *rest]
