"""Packages and accounts of a deployed host."""

from __future__ import annotations

from tests.deployed.hosts import Host

PACKAGES = ("libc6:i386", "lib32gcc-s1:amd64", "lib32stdc++6:amd64", "lib32z1:amd64", "util-linux:amd64")
SHELL = "/usr/sbin/nologin"


def test_the_packages_are_installed(host: Host) -> None:
    host.require([f"package {name} is not installed" for name in PACKAGES if name not in host.found["packages"]])


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
