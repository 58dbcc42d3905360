"""The files of a deployed host: all that must exist, and nothing else in the managed directories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from left4me import model
from tests.deployed.hosts import Host
from tests.deployed.test_servers import running

ROOT = Path(__file__).parent.parent.parent
ECHO = r"echo left4me: server\.cfg [0-9a-f]{12} was read"
"""The last line of a server.cfg; the digits identify its content."""
HELPER = "/usr/local/libexec/left4me/left4me-overlay"
UNITS = "/usr/local/lib/systemd/system"
OWN = "/etc/systemd/system"
VAR = "/var/lib/left4me"
TIMER = "left4me-game.timer"
FIREWALL = "/etc/left4me/firewall.nft"
FIREWALL_UNIT = f"{UNITS}/left4me-firewall.service"
NFTABLES = f"{OWN}/nftables.service.d/left4me.conf"
PROGRAMS = ("attic", "content", "finish-resets", "game", "notify", "remove", "restart")
# Type, mode, owner, group; {id} is the id of a server.
LAYOUT = {
    "/etc/apparmor.d/left4me-server": ("file", "0644", "root", "root"),
    "/etc/left4me": ("directory", "0755", "root", "root"),
    "/etc/left4me/game": ("file", "0644", "root", "root"),
    "/etc/left4me/revision": ("file", "0644", "root", "root"),
    "/etc/left4me/servers": ("directory", "0755", "root", "root"),
    "/etc/needrestart/conf.d/left4me.conf": ("file", "0644", "root", "root"),
    "/usr/local/libexec/left4me": ("directory", "0755", "root", "root"),
    HELPER: ("file", "0755", "root", "root"),
    **{f"/usr/local/libexec/left4me/left4me-{name}": ("file", "0755", "root", "root") for name in PROGRAMS},
    "/usr/local/sbin/l4d2ctl": ("file", "0755", "root", "root"),
    "/usr/local/share/bash-completion/completions/l4d2ctl": ("file", "0644", "root", "root"),
    "/usr/local/lib/left4me": ("directory", "0755", "root", "root"),
    "/usr/local/lib/left4me/left4me_host": ("directory", "0755", "root", "root"),
    "/usr/local/lib/left4me/left4me_host/source_kinds": ("directory", "0755", "root", "root"),
    f"{UNITS}/left4me-server@.service": ("file", "0644", "root", "root"),
    f"{UNITS}/left4me.slice": ("file", "0644", "root", "root"),
    **{
        f"{UNITS}/left4me-{name}.service": ("file", "0644", "root", "root")
        for name in ("attic", "finish-resets", "game", "game-check", "notify@", "restart")
    },
    f"{OWN}/multi-user.target.wants/left4me-finish-resets.service": ("symlink", "0777", "root", "root"),
    VAR: ("directory", "0755", "root", "root"),
    f"{VAR}/releases": ("directory", "0700", "root", "root"),
    f"{VAR}/overlays": ("directory", "0700", "root", "root"),
    f"{VAR}/secrets": ("directory", "0700", "root", "root"),
    f"{VAR}/attic": ("directory", "0700", "root", "root"),
    f"{VAR}/game": ("directory", "0755", "root", "root"),
    f"{VAR}/game/verdicts": ("directory", "0700", "root", "root"),
    f"{VAR}/held": ("directory", "0755", "root", "root"),
    f"{VAR}/jobs": ("directory", "0700", "root", "root"),
    f"{VAR}/runtime": ("directory", "0755", "root", "root"),
    f"{VAR}/installation": ("symlink", "0777", "root", "root"),
}
SERVER_LAYOUT = {
    "/etc/left4me/servers/{id}": ("directory", "0755", "root", "root"),
    "/etc/left4me/servers/{id}/server.env": ("file", "0644", "root", "root"),
    "/etc/left4me/servers/{id}/server.cfg": ("file", "0640", "root", "left4me"),
    "/etc/left4me/servers/{id}/layers": ("file", "0644", "root", "root"),
    "/etc/left4me/servers/{id}/keep": ("file", "0644", "root", "root"),
    "/etc/left4me/servers/{id}/restart": ("file", "0644", "root", "root"),
    "/etc/left4me/servers/{id}/secret": ("directory", "0755", "root", "root"),
    VAR + "/secrets/{id}": ("directory", "0500", "left4me-{id}", "root"),
    OWN + "/left4me-server@{id}.service.d": ("directory", "0755", "root", "root"),
    OWN + "/left4me-server@{id}.service.d/limits.conf": ("file", "0644", "root", "root"),
    VAR + "/runtime/{id}": ("directory", "0700", "root", "root"),
    VAR + "/runtime/{id}/upper": ("directory", "0755", "left4me-{id}", "left4me"),
    VAR + "/runtime/{id}/work": ("directory", "0700", "root", "root"),
}
# The drop-ins of all servers, by the host's system.
OF_ALL = f"{OWN}/left4me-server@.service.d"
OF_A_SYSTEM = {
    "debian 12": {},
    "debian 13": {
        OF_ALL: ("directory", "0755", "root", "root"),
        f"{OF_ALL}/ports.conf": ("file", "0644", "root", "root"),
        f"{OF_ALL}/sandbox.conf": ("file", "0644", "root", "root"),
    },
}
OF_A_SERVER = re.compile(
    rf"(?:/etc/left4me/servers/|{VAR}/secrets/|{OWN}/(?:multi-user\.target\.wants/)?left4me-server@)"
    r"([a-z0-9_-]+)(?:\.service(?:\.d)?)?(?:/.*)?"
)
# The system's directories above the programs that root runs.
ON_THE_WAY = (
    *("/etc", "/usr", "/usr/local", "/usr/local/lib", "/usr/local/lib/systemd", "/usr/local/libexec"),
    "/usr/local/sbin",
)
# Files that are identical on the host and in this repository.
AS_HERE = {
    "/etc/apparmor.d/left4me-server": "files/apparmor.d/left4me-server",
    HELPER: "files/libexec/left4me-overlay",
    **{f"/usr/local/libexec/left4me/left4me-{name}": f"files/libexec/left4me-{name}" for name in PROGRAMS},
    "/usr/local/sbin/l4d2ctl": "files/sbin/l4d2ctl",
    "/usr/local/share/bash-completion/completions/l4d2ctl": "files/completions/l4d2ctl.bash",
    **{
        f"/usr/local/lib/left4me/{name}": f"files/lib/{name}"
        for name in (str(path.relative_to(ROOT / "files/lib")) for path in (ROOT / "files/lib").rglob("*.py"))
    },
}


PAGE = "/usr/local/share/cockpit/left4me"
PAGE_FILES = [path.name for path in (ROOT / "files/cockpit").glob("*.*")]
# Files of a Cockpit, which may be somebody else's: test_web.py.
OF_COCKPIT = {"/usr/local/share/cockpit", "/etc/cockpit/cockpit.conf", "/etc/cockpit/disallowed-users"}
IF_WEB = {f"{OWN}/cockpit.socket.d/left4me.conf", f"{VAR}/web-packages"}


def layout(host: Host) -> dict[str, tuple[str, ...]]:
    """Return type, mode, owner and group of every expected path."""
    declares = host.declares
    wanted: dict[str, tuple[str, ...]] = {**LAYOUT, **OF_A_SYSTEM[host.found["system"]]}
    wanted |= {path: ("file", "0644", "root", "root") for path in AS_HERE if path not in LAYOUT}
    if declares.operators:
        wanted |= {"/etc/sudoers.d/left4me": ("file", "0440", "root", "root")}
    if declares.sysctl:
        wanted |= {"/etc/sysctl.d/50-left4me.conf": ("file", "0644", "root", "root")}
    if declares.webhook:
        wanted |= {"/etc/left4me/webhook": ("file", "0600", "root", "root")}
    if declares.update_at:
        wanted |= {f"{UNITS}/{TIMER}": ("file", "0644", "root", "root")}
        wanted |= {f"{OWN}/timers.target.wants/{TIMER}": ("symlink", "0777", "root", "root")}
    if declares.firewall:
        wanted |= dict.fromkeys((FIREWALL, FIREWALL_UNIT, NFTABLES), ("file", "0644", "root", "root"))
        wanted |= {f"{OWN}/sysinit.target.wants/left4me-firewall.service": ("symlink", "0777", "root", "root")}
    if declares.web:
        wanted |= {PAGE: ("directory", "0755", "root", "root")}
        wanted |= {f"{PAGE}/{name}": ("file", "0644", "root", "root") for name in PAGE_FILES}
    for server, declared in declares.instances.items():
        wanted |= {
            path.format(id=server): tuple(value.format(id=server) for value in values)
            for path, values in SERVER_LAYOUT.items()
        }
        secret = "rcon-given.cfg" if declared.rcon_password else "rcon.cfg"
        wanted[f"{VAR}/secrets/{server}/{secret}"] = ("file", "0400", f"left4me-{server}", "root")
        if declared.build:
            wanted[f"/etc/left4me/servers/{server}/build"] = ("file", "0644", "root", "root")
        if declared.admins:
            wanted[f"/etc/left4me/servers/{server}/admins_simple.ini"] = ("file", "0644", "root", "root")
        if declared.state == "running":
            enabled = f"{OWN}/multi-user.target.wants/left4me-server@{server}.service"
            wanted[enabled] = ("symlink", "0777", "root", "root")
    return wanted


def statements(text: str, comment: str) -> list[str]:
    """Return the lines that are neither empty nor comments."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(comment)]


def test_everything_is_there_with_its_owner_and_mode(host: Host) -> None:
    entries, wrong = host.found["entries"], []
    for path, wanted in layout(host).items():
        if path not in entries:
            wrong.append(f"{path} is missing")
            continue
        found = tuple(entries[path][key] for key in ("type", "mode", "owner", "group"))
        if found != wanted:
            wrong.append(f"{path} is {' '.join(found)}, must be {' '.join(wanted)}")
    host.require(wrong)


def test_nothing_else_is_in_the_managed_places(host: Host) -> None:
    # `candidate` exists during a smoke test and after a failed one; ext4 has a `lost+found` if VAR is its own.
    allowed = {*layout(host), *ON_THE_WAY, *OF_COCKPIT, f"{VAR}/candidate", f"{VAR}/lost+found"}
    allowed |= IF_WEB if host.declares.web else set()
    free = re.compile(
        rf"{VAR}/(releases|overlays|attic|held|runtime)/[^.].*|/run/systemd/transient/left4me-job-[0-9]+\.service"
    )
    # A running server that is no longer declared is kept while it has players.
    kept = running(host) - set(host.declares.servers)
    unexpected = [
        path
        for path in host.found["entries"]
        if path not in allowed
        and not free.fullmatch(path)
        and not ((own := OF_A_SERVER.fullmatch(path)) and own[1] in kept)
    ]
    host.require([f"{path} is unexpected: the deploy does not create it" for path in unexpected])


def test_nobody_but_root_can_change_what_root_runs(host: Host) -> None:
    entries, wrong = host.found["entries"], []
    for path in ON_THE_WAY:
        if path not in entries:
            wrong.append(f"{path} is missing")
        elif entries[path]["owner"] != "root" or int(entries[path]["mode"], 8) & 0o002:
            wrong.append(
                f"{path} is {entries[path]['mode']} of {entries[path]['owner']}: others could replace its files"
            )
    host.require(wrong)


def test_the_programs_are_those_of_this_repository(host: Host) -> None:
    wrong = []
    page = {f"{PAGE}/{name}": f"files/cockpit/{name}" for name in PAGE_FILES if host.declares.web}
    for path, ours in {**AS_HERE, **page}.items():
        wanted = hashlib.sha256((ROOT / ours).read_bytes()).hexdigest()
        found = host.found["entries"].get(path, {}).get("sha256")
        if found != wanted:
            wrong.append(f"{path} has sha256 {found}, must be {wanted}")
    host.require(wrong)


def test_the_operators_and_the_webhook_are_the_declared_ones(host: Host) -> None:
    wanted = {
        "/etc/sudoers.d/left4me": f"%{host.declares.operators} ALL=(root) NOPASSWD: /usr/local/sbin/l4d2ctl",
        "/etc/left4me/webhook": host.declares.webhook or "",
    }
    there = {path: host.found["entries"][path].get("text", "") for path in wanted if path in host.found["entries"]}
    host.require(
        [
            f"{path} must have exactly the declared line"
            for path in there
            if statements(there[path], "#") != [wanted[path]]
        ]
    )


def test_an_upgrade_of_a_library_restarts_no_server(host: Host) -> None:
    path, wanted = "/etc/needrestart/conf.d/left4me.conf", ["$nrconf{override_rc}->{qr(^left4me-)} = 0;"]
    found = statements(host.found["entries"].get(path, {}).get("text", ""), "#")
    host.require([] if found == wanted else [f"{path} has {found}, must have {wanted}"])


def test_each_server_has_its_declared_files(host: Host, server: str) -> None:
    declared, folder = host.declares.servers[server], f"/etc/left4me/servers/{server}"
    texts = {name: host.found["entries"].get(f"{folder}/{name}", {}).get("text", "") for name in FILES}
    found = {name: statements(texts[name], comment) for name, comment in FILES.items()}
    # The generation is a digest made by the deploy; its parts are checked here and in systemd.
    found["server.env"] = [line for line in found["server.env"] if not GENERATION.fullmatch(line)]
    port = re.search(r'^LEFT4ME_PORT="(\d+)"$', texts["server.env"], re.MULTILINE)
    wanted = {
        "server.env": [
            f'LEFT4ME_ADDRESS="{host.declares.address}"',
            f'LEFT4ME_PORT="{declared.port or (port[1] if port else "")}"',
            f'LEFT4ME_MAX_PLAYERS="{declared.max_players}"',
            f'LEFT4ME_MAP="{declared.map}"',
            f'LEFT4ME_GAMEMODE="{declared.gamemode}"',
            f'LEFT4ME_TICKRATE="{declared.tickrate}"',
            f'LEFT4ME_ARGUMENTS="{" ".join(declared.arguments)}"',
            *([f'LEFT4ME_DISK_MAX="{declared.disk_bytes}"'] if declared.disk_bytes else []),
        ],
        # The last line for a cvar counts, so the fixed settings come last.
        "server.cfg": [
            *(f"exec {name}" for name in declared.exec),
            *(f'{name} "{value}"' for name, value in declared.cvars.items()),
            f'hostname "{declared.hostname}"',
            'sv_lan "0"',
            f"exec left4me/secret/{'rcon-given.cfg' if declared.rcon_password else 'rcon.cfg'}",
            # Of the digest only the form is known here.
            ([line for line in found["server.cfg"][-1:] if re.fullmatch(ECHO, line)] or [ECHO])[0],
        ],
        "admins_simple.ini": [f'"{admin}" "99:z"' for admin in declared.admins],
        "layers": [*(["left4me-admins"] if declared.admins else []), *declared.layers],
        "keep": list(declared.keep),
        "restart": [declared.restart],
        "build": [declared.build] if declared.build else [],
    }
    host.require(
        [
            f"{folder}/{name} has {found[name]}, must have {wanted[name]}"
            for name in FILES
            if found[name] != wanted[name]
        ]
    )


FILES = {"server.env": "#", "server.cfg": "//", "admins_simple.ini": "//", "layers": "#", "keep": "#"}
FILES |= {"restart": "#", "build": "#"}
GENERATION = re.compile(r'LEFT4ME_GENERATION="[0-9a-f]{16}"')


def test_each_port_is_in_the_range_and_nobody_elses(host: Host) -> None:
    first, last = host.declares.port_range
    owners: dict[int, str] = {}
    wrong = []
    for path, entry in host.found["entries"].items():
        if found := re.search(r'^LEFT4ME_PORT="([0-9]{1,5})"$', entry.get("text", ""), re.MULTILINE):
            port, server = int(found[1]), path.split("/")[-2]
            if server.startswith("_"):
                continue  # smoke tests run one at a time and share a port
            if owners.setdefault(port, server) != server:
                wrong.append(f"servers {owners[port]} and {server} have the same port, {port}")
            if server in host.declares.present and not first <= port <= last:
                wrong.append(f"server {server} has port {port}, must be from {first} to {last}")
    host.require(wrong)


def test_no_rcon_password_is_where_it_must_not_be(host: Host, server: str) -> None:
    if server not in host.found["leaks"]:
        host.require(
            [f"server {server} has no RCON password in {VAR}/secrets/{server}: remove the files there and deploy"]
        )
    places = host.found["leaks"][server]
    host.require([f"the RCON password of server {server} is readable in {place}" for place in places])


def test_each_server_is_enabled_by_our_unit(host: Host, server: str) -> None:
    path = f"{OWN}/multi-user.target.wants/left4me-server@{server}.service"
    target = host.found["entries"].get(path, {}).get("target")
    wanted = f"{UNITS}/left4me-server@.service" if host.declares.servers[server].state == "running" else None
    host.require([] if target == wanted else [f"{path} points to {target}, must point to {wanted}"])


LOOKS = {"left4dead2", *(f"left4dead2_dlc{number}" for number in (1, 2, 3)), "update", "hl2", "bin", "platform"}
LOOKS |= {"srcds_run", "srcds_linux"}
ADMINS = model.LayerOnControl(source="control", path=str(ROOT / "files/layers/admins"))


def test_each_layer_has_its_declared_content(host: Host) -> None:
    wrong = []
    for layer in sorted({layer for server in host.declares.present.values() for layer in server.lowers}):
        link = f"{VAR}/overlays/{layer}/current"
        name = host.found["entries"].get(link, {}).get("target")
        about = host.found["entries"].get(f"{VAR}/overlays/{layer}/{name}", {})
        state = tuple(about.get(key) for key in ("type", "mode", "owner", "group"))
        if state != ("directory", "0775", "left4me", "left4me"):
            wrong.append(f"{link} points to {name}, which is {state}, must be a directory 0775 of left4me")
        source, found = host.declares.layers.get(layer, ADMINS), host.found["trees"].get(layer, {})
        if damaged := [f"layer {layer}: {line}" for line in _differences(source, name, found)]:
            repair = f"stop the servers that use it, remove {VAR}/overlays/{layer}/{name}, deploy"
            wrong += [*damaged, f"layer {layer}: if a deploy does not repair it: {repair}"]
    host.require(wrong)


def _differences(source: model.Layer, name: str, found: dict[str, list[Any]]) -> Iterator[str]:
    """Yield what is wrong with version `name` of a layer, whose files are `found`."""
    if isinstance(source, model.LayerOnControl):
        wanted = {str(Path(source.into or "") / each): about for each, about in _tree(Path(source.path)).items()}
        differ = sorted(each for each in {*wanted, *found} if wanted.get(each) != found.get(each))
        yield from (f"{each} differs from {source.path}" for each in differ[:10])
    elif isinstance(source, model.LayerWorkshop):
        # Only Steam knows the items of a collection; the name of the version is a digest of its items.
        items = {each: re.fullmatch(r"left4dead2/addons/([0-9]+)\.vpk", each) for each in found}
        yield from (f"{each} is not a workshop item" for each, number in sorted(items.items()) if not number)
        # Only of items that Steam delivered: others are skipped.
        if name != _digest({number[1]: found[each][1] for each, number in items.items() if number}):
            yield "an item is missing or its file was changed"
    elif name != _version(source):
        yield f"its version is {name}, must be {_version(source)}"
    elif not found:
        yield f"version {name} is empty"
    elif not LOOKS.intersection(each.partition("/")[0] for each in found):
        yield f"version {name} has no files in left4dead2/, where the game looks: set `into` or `strip`"


def _version(source: model.Layer) -> str:
    """Return the name of a version: a digest of all that determines its content."""
    named_by = ("source", *source.named_by, *(["into"] if source.into else []))
    return _digest({key: getattr(source, key) for key in named_by})


def _digest(facts: dict[str, object]) -> str:
    """Return the first eight base32 characters of the SHA-256 of facts as JSON."""
    digest = hashlib.sha256(json.dumps([facts], sort_keys=True).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:8]


def _tree(top: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in top.rglob("*"):
        if {".git", ".hg", ".svn"}.intersection(path.relative_to(top).parts):
            continue
        if path.is_symlink():
            found[str(path.relative_to(top))] = ["symlink", str(path.readlink())]
        elif path.is_file():
            found[str(path.relative_to(top))] = ["file", hashlib.sha256(path.read_bytes()).hexdigest()]
    return found


def test_nothing_is_left_of_servers_that_nobody_declares(host: Host) -> None:
    active = {name for name, unit in host.found["units"].items() if unit["ActiveState"] == "active"}
    wrong = []
    for path in host.found["entries"]:
        found = re.fullmatch(rf"{VAR}/runtime/([^/]+)", path)
        if found and found[1] not in host.declares.instances and f"left4me-server@{found[1]}.service" not in active:
            wrong.append(f"{path} belongs to no declared or running server")
    host.require(wrong)


def test_the_current_release_is_one_of_the_declared_source(host: Host) -> None:
    link = host.found["entries"].get(f"{VAR}/installation", {}).get("target", "")
    game, wrong = host.declares.game, []
    # With source steamcmd, an older release stays current until the first update.
    name = (
        re.escape(game.build) if game.build else r"[\w.-]+" if game.source == "steamcmd" else rf"{game.source}-[\w.-]+"
    )
    if not re.fullmatch(f"releases/{name}", link):
        wrong.append(f"{VAR}/installation points to {link!r}, must point to a build of source {game.source} ({name})")
    release = host.found["entries"].get(f"{VAR}/{link}", {})
    found = tuple(release.get(key) for key in ("type", "mode", "owner", "group"))
    wanted = ("directory", "0775", "left4me", "left4me")
    if found != wanted:
        wrong.append(f"{VAR}/{link} is {found}, must be {wanted}")
    host.require(wrong)
