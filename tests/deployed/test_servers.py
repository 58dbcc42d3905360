"""The servers of a deployed host: what systemd, the kernel and the game itself say."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from tests.deployed.hosts import Host

VAR = "/var/lib/left4me"
# overlayfs names an option only where it differs from the kernel's default.
MUST_BE_OFF = {"index": {"on"}, "metacopy": {"on"}, "redirect_dir": {"on"}, "xino": {"on", "auto"}}


def unit_of(server: str) -> str:
    """Return a server's instance."""
    return f"left4me-server@{server}.service"


def running(host: Host) -> set[str]:
    """Return the ids of all servers that run, declared or not."""
    active = {name for name, unit in host.found["units"].items() if unit["ActiveState"] in ("active", "deactivating")}
    return {name.partition("@")[2].removesuffix(".service") for name in active if "@" in name}


def held(host: Host, server: str) -> bool:
    """Tell whether a server is as it should be where it is down: it is declared so, or an operator stopped it."""
    return host.declares.servers[server].state == "stopped" or f"{VAR}/held/{server}" in host.found["entries"]


def test_each_server_runs_or_was_stopped_by_hand(host: Host, server: str) -> None:
    unit = host.found["units"][unit_of(server)]
    state = (unit["ActiveState"], unit["SubState"])
    if held(host, server):
        return host.require(
            [] if state[0] in ("inactive", "failed") else [f"{unit_of(server)} must be down and is {state[0]}"]
        )
    return host.require(
        [] if state == ("active", "running") else [f"{unit_of(server)} is {state[0]} ({state[1]}), must be active"]
    )


def test_each_server_answers_a2s(host: Host, server: str) -> None:
    if held(host, server):
        return
    answer = host.found["answers"].get(server)
    wrong = []
    if answer is None:
        wrong.append(f"server {server} does not answer A2S_INFO on its port")
    elif answer["folder"] != "left4dead2":
        wrong.append(f"on the port of server {server} answers another game: {answer['folder']}")
    host.require(wrong)


def test_each_server_was_started_as_declared(host: Host, server: str) -> None:
    declared, process = host.declares.servers[server], host.found["processes"].get(unit_of(server))
    if process is None:
        return host.require([] if held(host, server) else [f"server {server} has no process"])
    line: list[str] = process["command"]
    given = dict(pairwise(line))
    wrong = []
    if process["user"] != f"left4me-{server}":
        wrong.append(f"server {server} runs as {process['user']}, must run as left4me-{server}")
    wanted = {
        "-ip": host.declares.address,
        "-port": str(declared.port or given.get("-port")),
        "-maxplayers": str(declared.max_players),
        "-tickrate": str(declared.tickrate),
        "+mp_gamemode": declared.gamemode,
        "+map": declared.map,
        "-game": "left4dead2",
    }
    wrong += [
        f"server {server} runs with {key} {given.get(key)}, declared is {value}: a restart is due"
        for key, value in wanted.items()
        if given.get(key) != value
    ]
    environment = host.found["entries"].get(f"/etc/left4me/servers/{server}/server.env", {}).get("text", "")
    if f'LEFT4ME_GENERATION="{process["generation"]}"' not in environment.splitlines():
        wrong.append(f"server {server} was started with something else than is declared: a restart is due")
    wrong += [
        f"server {server} runs without {key}"
        for key in ("-norestart", "-strictportbind", *declared.arguments)
        if key not in line
    ]
    return host.require(wrong)


def target_of(host: Host, link: str) -> str:
    """Return the path that a relative symlink below /var/lib/left4me names."""
    return f"{link.rpartition('/')[0]}/{host.found['entries'].get(link, {}).get('target', '?')}"


def test_each_overlay_has_the_declared_layers(host: Host, server: str) -> None:
    point = f"{VAR}/runtime/{server}/merged"
    found: list[dict[str, Any]] = [each for each in host.found["overlays"] if each["point"] == point]
    if held(host, server):
        return host.require([f"{point} is mounted, and the server was stopped by hand"] if found else [])
    if len(found) != 1:
        return host.require([f"{point} is mounted {len(found)} times, must be once"])
    options, flags, wrong = found[0]["options"], found[0]["flags"], []
    layers = [target_of(host, f"{VAR}/overlays/{name}/current") for name in host.declares.servers[server].lowers]
    build = host.declares.servers[server].build
    game = f"{VAR}/releases/{build}" if build else target_of(host, f"{VAR}/installation")
    wanted = {
        "lowerdir": ":".join([*layers, game]),
        "upperdir": f"{VAR}/runtime/{server}/upper",
        "workdir": f"{VAR}/runtime/{server}/work",
    }
    wrong += [
        f"{point}: {key} is {options.get(key)}, must be {wanted[key]}{': a restart is due' * (key == 'lowerdir')}"
        for key in wanted
        if options.get(key) != wanted[key]
    ]
    wrong += [f"{point} is mounted without {flag}" for flag in ("nosuid", "nodev") if flag not in flags]
    wrong += [
        f"{point}: {key} is {options[key]}, must be off" for key, on in MUST_BE_OFF.items() if options.get(key) in on
    ]
    return host.require(wrong)


def test_only_running_servers_have_an_overlay(host: Host) -> None:
    expected = {f"{VAR}/runtime/{server}/merged" for server in running(host)}
    points = [each["point"] for each in host.found["overlays"]]
    wrong = [f"an overlay is mounted on {point} and no server runs there" for point in points if point not in expected]
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
