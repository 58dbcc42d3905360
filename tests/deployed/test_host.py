"""Packages and accounts of a deployed host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, collapse_addresses, summarize_address_range

from tests.deployed.hosts import Host

PACKAGES = (
    *("libc6:i386", "lib32gcc-s1:amd64", "lib32stdc++6:amd64", "lib32z1:amd64", "util-linux:amd64", "dbus:amd64"),
    "apparmor:amd64",
)
SHELL = "/usr/sbin/nologin"
FIREWALL = "/etc/left4me/firewall.nft"
RAW = -300
"""The priority `raw` of netfilter, before connection tracking: nft(8)."""


def test_the_packages_are_installed(host: Host) -> None:
    needed = [*PACKAGES, *(["nftables:amd64"] if host.declares.firewall else [])]
    host.require([f"package {name} is not installed" for name in needed if name not in host.found["packages"]])


def test_the_accounts_are_as_declared(host: Host) -> None:
    groups, users, wrong = host.found["groups"], host.found["users"], []
    if groups.get("left4me") != host.declares.gid:
        wrong.append(f"group left4me has gid {groups.get('left4me')}, must have {host.declares.gid}")
    for name in ("left4me", *(f"left4me-{server}" for server in host.declares.instances)):
        if name not in users:
            wrong.append(f"user {name} is missing")
        elif (users[name]["group"], users[name]["shell"]) != ("left4me", SHELL):
            wrong.append(
                f"user {name} is in group {users[name]['group']} with {users[name]['shell']}, must be left4me, {SHELL}"
            )
    if "left4me" in users and users["left4me"]["uid"] != host.declares.uid:
        wrong.append(f"user left4me has uid {users['left4me']['uid']}, must have {host.declares.uid}")
    host.require(wrong)


def test_each_user_has_a_uid_of_its_own(host: Host) -> None:
    owners: dict[int, list[str]] = {}
    for name, user in host.found["users"].items():
        owners.setdefault(user["uid"], []).append(name)
    host.require([f"uid {uid} is shared by {' and '.join(names)}" for uid, names in owners.items() if len(names) > 1])


def test_the_kernel_has_the_declared_settings(host: Host) -> None:
    found = host.found["sysctl"]
    declared = {name: str(value) for name, value in host.declares.sysctl.items()}
    host.require(
        [f"{name} is {value}, must be {declared[name]}" for name, value in found.items() if value != declared[name]]
    )


def networks(listed: list[str]) -> Iterator[IPv4Network]:
    """Yield the networks of addresses, networks and ranges such as 10.0.0.1-10.0.0.9."""
    for each in listed:
        first, dash, last = each.partition("-")
        yield from summarize_address_range(IPv4Address(first), IPv4Address(last)) if dash else [IPv4Network(each)]


def test_the_firewall_is_loaded_as_declared(host: Host) -> None:
    loaded, declares, wrong = host.found["firewall"], host.declares, []
    if not declares.firewall:
        host.require(["a firewall is loaded, but not declared"] if loaded else [])
        return
    if not loaded:
        host.require(["the firewall is not loaded: systemctl restart left4me-firewall"])
        return
    on_disk = re.search(r'^ +comment "(.+)"$', host.found["entries"].get(FIREWALL, {}).get("text", ""), re.MULTILINE)
    if loaded["version"] != (on_disk[1] if on_disk else None):
        wrong.append(f"the loaded firewall is not the one of {FIREWALL}: systemctl restart left4me-firewall")
    if loaded["hooks"] != {"prerouting": RAW, "output": RAW}:
        wrong.append(f"the firewall's hooks are {loaded['hooks']}")
    ports = {declares.trial_port} | {each.port for each in declares.present.values() if each.port}
    if missing := ports - set(loaded["game"]):
        wrong.append(f"the firewall lacks the ports {sorted(missing)}")
    declared = [*collapse_addresses(networks(list(declares.rcon_from)))]
    if declared != (found := [*collapse_addresses(networks(loaded["rcon_from"]))]):
        wrong.append(f"RCON is open to {', '.join(map(str, found))}, must be to {', '.join(map(str, declared))}")
    if sorted(declares.game_may_reach) != sorted(loaded["game_may_reach"]):
        reached = ", ".join(loaded["game_may_reach"])
        wrong.append(f"servers may reach {reached}, must be {', '.join(declares.game_may_reach)}")
    host.require(wrong)
