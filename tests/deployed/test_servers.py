"""The servers of a deployed host, as systemd, the kernel and the game report them."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from tests.deployed.hosts import Host
from tests.deployed.pending_states import DOWN, RESTART, STARTING, VAR, is_up, lowers_of, unit_of

# overlayfs shows an option only if it differs from the kernel's default.
MUST_BE_OFF = {"index": {"on"}, "metacopy": {"on"}, "redirect_dir": {"on"}, "xino": {"on", "auto"}}


def running(host: Host) -> set[str]:
    """Return the ids of all servers that run, declared or not."""
    active = {name for name, unit in host.found["units"].items() if unit["ActiveState"] in ("active", "deactivating")}
    return {name.partition("@")[2].removesuffix(".service") for name in active if "@" in name}


def why_down(host: Host, server: str) -> str:
    """Return why a server must be down, such as `stopped by hand`, or an empty string if it must run."""
    kept = [each.pending for kind, each in host.pending[server].items() if kind in DOWN]
    if is_up(host.found, server):
        # A reset may be running. Other pending states do not apply to a server that is up.
        return "stopped by hand" if host.found["servers"][server]["held"] and not kept else ""
    if host.declares.servers[server].state == "stopped":
        return "declared stopped"
    return "; ".join(kept)


def is_activating(host: Host, server: str) -> bool:
    """Return whether a server is starting and has no process yet."""
    return STARTING in host.pending[server] and host.found["units"][unit_of(server)]["ActiveState"] == "activating"


def mounted(host: Host, server: str) -> list[dict[str, Any]]:
    """Return the overlays that are mounted at a server's mount point."""
    return [each for each in host.found["overlays"] if each["point"] == f"{VAR}/runtime/{server}/merged"]


def test_each_server_runs_or_is_down_for_a_reason(host: Host, server: str) -> None:
    unit = host.found["units"][unit_of(server)]
    state, why = (unit["ActiveState"], unit["SubState"]), why_down(host, server)
    if why:
        return host.require(
            [] if state[0] == "inactive" else [f"{unit_of(server)} is {state[0]}, must be inactive ({why})"]
        )
    is_wrong = state != ("active", "running") and not is_activating(host, server)
    wrong = [f"{unit_of(server)} is {state[0]} ({state[1]}), must be active"] * is_wrong
    return host.require(wrong)


def test_each_server_that_is_down_is_down_wholly(host: Host, server: str) -> None:
    why, merged = why_down(host, server), f"{VAR}/runtime/{server}/merged"
    if not why:
        return
    wrong = [f"{merged} is mounted but server {server} is down ({why})"] * bool(mounted(host, server))
    if host.found["processes"].get(unit_of(server)):
        wrong.append(f"server {server} has a process but is down ({why})")
    wrong += [
        f"process {each['pid']} ({each['comm']}) holds {each['path']} ({each['kind']}) of server {server}, down ({why})"
        for each in host.found["holders"]
        if f"{each['path']}/".startswith(f"{merged}/")
    ]
    host.require(wrong)


def test_each_server_answers_a2s(host: Host, server: str) -> None:
    if why_down(host, server) or STARTING in host.pending[server]:
        return
    answer = host.found["answers"].get(server)
    restarts = host.found["units"][unit_of(server)]["NRestarts"]
    wrong = []
    if answer is None:
        again = (
            f"; systemd restarted it after {restarts} failures: see l4d2ctl logs {server}" if restarts != "0" else ""
        )
        wrong.append(f"server {server} does not answer A2S_INFO on its port{again}")
    elif answer["folder"] != "left4dead2":
        wrong.append(f"another game answers on the port of server {server}: {answer['folder']}")
    host.require(wrong)


def test_each_cfg_that_is_executed_is_there(host: Host, server: str) -> None:
    missing = host.found["missing_cfgs"][server]
    where = "the file is in none of its layers, not in the build and not in its own files"
    host.require([f"server {server}: exec {name}: {where}" for name in missing])


def test_each_server_was_started_as_declared(host: Host, server: str) -> None:
    declared, process = host.declares.servers[server], host.found["processes"].get(unit_of(server))
    if why_down(host, server) or is_activating(host, server):
        return None
    if process is None:
        return host.require([f"server {server} has no process"])
    line: list[str] = process["command"]
    given = dict(pairwise(line))
    wrong = []
    if process["user"] != f"left4me-{server}":
        wrong.append(f"server {server} runs as {process['user']}, must run as left4me-{server}")
    expected = {
        "-ip": host.declares.address,
        "-port": str(declared.port or given.get("-port")),
        "-maxplayers": str(declared.max_players),
        "-tickrate": str(declared.tickrate),
        "+mp_gamemode": declared.gamemode,
        "+map": declared.map,
    }
    arguments = list(declared.arguments)
    record = host.found["servers"][server]["record"]
    if RESTART in host.pending[server] and record:  # until the restart, it must run as recorded
        expected = {key: record.get(name, "") for key, name in RECORDED.items()}
        arguments = record.get("LEFT4ME_ARGUMENTS", "").split()
    if RESTART not in host.pending[server] or record:
        wrong += [
            f"server {server} runs with {key} {given.get(key)}, must be {value}"
            for key, value in expected.items()
            if given.get(key) != value
        ]
        wrong += [f"server {server} runs without {key}" for key in arguments if key not in line]
    wrong += [f"server {server} runs without {key}" for key in ("-norestart", "-strictportbind") if key not in line]
    wrong += [f"server {server} runs another game: {given.get('-game')}"] * (given.get("-game") != "left4dead2")
    return host.require(wrong)


def test_the_kernel_limits_the_disk_of_each_running_server(host: Host, server: str) -> None:
    declared, record = host.declares.servers[server].disk_bytes, host.found["servers"][server]["record"]
    if why_down(host, server) or is_activating(host, server) or (RESTART in host.pending[server] and not record):
        return None  # a start sets the limit
    if RESTART in host.pending[server]:
        declared = int(record.get("LEFT4ME_DISK_MAX", "0"))
    found = host.found["disks"].get(server)
    if not declared or found is None:
        return host.require([f"{VAR}/runtime/{server}/upper is missing"] * (found is None))
    # The kernel shows a limit in blocks of at most 64 KiB, and not more than the filesystem has.
    most, files = min(declared, found["whole"]), declared // 16384
    wrong = []
    if not most - 65536 < found["bytes"] <= most:
        wrong.append(f"server {server} may write {found['bytes']} bytes, must be {most}")
    if found["files"] > files:
        wrong.append(f"server {server} may make {found['files']} files, must be {files}")
    return host.require(wrong)


RECORDED = {
    "-ip": "LEFT4ME_ADDRESS",
    "-port": "LEFT4ME_PORT",
    "-maxplayers": "LEFT4ME_MAX_PLAYERS",
    "-tickrate": "LEFT4ME_TICKRATE",
    "+mp_gamemode": "LEFT4ME_GAMEMODE",
    "+map": "LEFT4ME_MAP",
}


def test_each_overlay_has_the_declared_layers(host: Host, server: str) -> None:
    point, found = f"{VAR}/runtime/{server}/merged", mounted(host, server)
    if why_down(host, server) or is_activating(host, server):
        return None  # another test checks that nothing is mounted
    if len(found) != 1:
        return host.require([f"{point} is mounted {len(found)} times, must be once"])
    options, flags, wrong = found[0]["options"], found[0]["flags"], []
    lowers = ":".join(lowers_of(host.found, host.declares.servers[server]))
    if RESTART in host.pending[server]:
        # Without a record, the layers that it was started with are unknown.
        lowers = host.found["servers"][server]["record"].get("LOWERS", options.get("lowerdir"))
    expected = {
        "lowerdir": lowers,
        "upperdir": f"{VAR}/runtime/{server}/upper",
        "workdir": f"{VAR}/runtime/{server}/work",
    }
    wrong += [
        f"{point}: {key} is {options.get(key)}, must be {expected[key]}"
        for key in expected
        if options.get(key) != expected[key]
    ]
    wrong += [f"{point} is mounted without {flag}" for flag in ("nosuid", "nodev") if flag not in flags]
    wrong += [
        f"{point}: {key} is {options[key]}, must be off" for key, on in MUST_BE_OFF.items() if options.get(key) in on
    ]
    return host.require(wrong)


def test_nothing_is_pending_where_that_is_asked_for(host: Host, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("no_pending"):
        every = [each for kinds in host.pending.values() for each in kinds.values()]
        host.require([f"server {each.server}: {each.pending}; {each.do}" for each in every])


def test_only_running_servers_have_an_overlay(host: Host) -> None:
    expected = {f"{VAR}/runtime/{server}/merged" for server in running(host)}
    points = [each["point"] for each in host.found["overlays"]]
    wrong = [f"an overlay is mounted on {point} but no server runs there" for point in points if point not in expected]
    host.require(wrong)


def test_nobody_holds_the_overlay_of_a_stopped_server(host: Host) -> None:
    wrong = []
    for holder in host.found["holders"]:
        who = f"process {holder['pid']} ({holder['comm']})"
        if holder["detached"]:
            wrong.append(f"{who} holds an overlay that is mounted nowhere: {holder['kind']} {holder['path']}")
        elif (inside := re.match(rf"{VAR}/runtime/([^/]+)/merged", holder["path"])) and inside[1] not in running(host):
            wrong.append(f"{who} holds the overlay of a stopped server: {holder['kind']} {holder['path']}")
    host.require(wrong)
