"""The units as systemd has loaded them."""

from __future__ import annotations

from tests.deployed.hosts import Host
from tests.deployed.pending_states import RESTART, environment_of, is_up
from tests.deployed.promises import (
    CHECK,
    DROP_INS_OF,
    FINISH_RESETS,
    FINISHES,
    LIMITS,
    LINES,
    TEMPLATE,
    broken,
    broken_template,
    commands,
    ports,
)

PAGE = 4096
"""systemd rounds a percentage of the memory down to whole pages."""


def test_the_template_keeps_every_promise(host: Host) -> None:
    wrong = broken_template(host.found["units"][CHECK], host.found["system"])
    text = host.found["entries"].get(TEMPLATE, {}).get("text", "")
    wrong += [f"line {line!r} is missing" for line in sorted(LINES - set(text.splitlines()))]
    host.require([f"{TEMPLATE}: {line}" for line in wrong])


def test_each_instance_keeps_every_promise(host: Host, server: str) -> None:
    name = f"left4me-server@{server}.service"
    wrong = broken(host.found["units"][name], server, host.found["system"])
    host.require([f"{name}: {line}" for line in wrong])


def bytes_of(size: str, memory: int = 0) -> str:
    """Return a size in bytes, as systemd reports it; K, M, G and T are powers of 1024, % is of `memory` in bytes."""
    if size.endswith("%"):
        return str(memory // PAGE * int(size[:-1]) // 100 * PAGE)
    powers = {"K": 1, "M": 2, "G": 3, "T": 4}
    return size if size == "infinity" or size[-1] not in powers else str(int(size[:-1]) * 1024 ** powers[size[-1]])


def seconds_of(percent: int | None) -> str:
    """Return a CPU quota in percent as systemd reports it: CPU time per second."""
    if percent is None:
        return "infinity"
    parts = {"min": percent // 6000, "s": percent // 100 % 60, "ms": percent % 100 * 10}
    return " ".join(f"{number}{unit}" for unit, number in parts.items() if number)


def test_the_slice_has_the_declared_limits(host: Host) -> None:
    unit = host.found["units"]["left4me.slice"]
    expected = {
        "FragmentPath": "/usr/local/lib/systemd/system/left4me.slice",
        "DropInPaths": "",
        "NeedDaemonReload": "no",
        "LoadState": "loaded",
        "CPUWeight": str(host.declares.cpu_weight),
        "MemoryMax": bytes_of(host.declares.memory_max, host.found["memory"]),
        "CPUQuotaPerSecUSec": seconds_of(host.declares.cpu_quota),
    }
    host.require(
        [
            f"left4me.slice: {key} is {unit[key]!r}, must be {expected[key]!r}"
            for key in expected
            if unit[key] != expected[key]
        ]
    )


def test_each_instance_has_the_declared_limits(host: Host, server: str) -> None:
    name, declared = f"left4me-server@{server}.service", host.declares.servers[server]
    unit = host.found["units"][name]
    own = [path for path in unit["DropInPaths"].split() if "/left4me" in path]
    shown = {**{key: unit[key] for key in LIMITS}, "own drop-ins": own}
    expected = {
        "CPUWeight": str(declared.cpu_weight),
        "MemoryMax": bytes_of(declared.memory_max),
        "Nice": str(declared.nice),
        "own drop-ins": [f"/etc/systemd/system/{name}.d/limits.conf", *DROP_INS_OF[host.found["system"]]],
    }
    host.require(
        [f"{name}: {key}: {shown[key]!r}, must be {expected[key]!r}" for key in expected if shown[key] != expected[key]]
    )


def test_the_kernel_has_the_declared_limits(host: Host) -> None:
    """systemd may know a limit, and not have written it into the cgroup of a unit that was running already."""
    servers = {f"left4me-server@{name}.service": server for name, server in host.declares.servers.items()}
    wrong = []
    for unit, shown in host.found["cgroups"].items():
        declared = host.declares if unit == "left4me.slice" else servers.get(unit)
        if declared is None:
            continue  # it is kept for its players, or is no server
        size = bytes_of(declared.memory_max, host.found["memory"])
        memory = "max" if size == "infinity" else str(int(size) // PAGE * PAGE)
        expected = {"cpu.weight": str(declared.cpu_weight), "memory.max": memory}
        wrong += [
            f"{unit}: the kernel has {key} {shown[key]}, must have {expected[key]}: deploy again"
            for key in expected
            if shown[key] != expected[key]
        ]
    host.require(wrong)


def test_each_server_binds_no_port_of_another_one(host: Host, server: str) -> None:
    # Debian 12's systemd is built without BPF, and ignores these settings.
    if host.found["system"] == "debian 12":
        return
    name = f"left4me-server@{server}.service"
    own = {each: int(environment_of(host.found, each).get("LEFT4ME_PORT", 0)) for each in host.declares.present}
    expected = {"SocketBindAllow": {own[server]}, "SocketBindDeny": {host.declares.trial_port, *own.values()}}
    shown = {key: host.found["units"][name].get(key, "") for key in expected}
    wrong = [
        f"{name}: {key} is {shown[key][:200]!r}, must be the ports {sorted(expected[key])}"
        for key in expected
        if ports(shown[key]) != expected[key]
    ]
    if host.found["pins"] is not None and is_up(host.found, server) and RESTART not in host.pending[server]:
        pinned = {f"{server}-bind4", f"{server}-bind6"} <= set(host.found["pins"])
        wrong += [f"{name}: what denies it the ports of others may end: l4d2ctl restart {server}"] * (not pinned)
    host.require(wrong)


def test_each_server_is_confined_by_apparmor(host: Host, server: str) -> None:
    name = f"left4me-server@{server}.service"
    process = host.found["processes"].get(name)
    if host.found["apparmor"] and process and RESTART not in host.pending[server]:
        label, expected = process["confined_by"], "left4me-server (enforce)"
        do = f"deploy, then l4d2ctl restart {server}"
        host.require([f"{name} is confined by {label!r}, must be by {expected!r}: {do}"] * (label != expected))


def test_each_server_starts_with_the_host(host: Host, server: str) -> None:
    name = f"left4me-server@{server}.service"
    unit = host.found["units"][name]
    wrong = []
    if host.declares.servers[server].state == "stopped":
        if unit["UnitFileState"] == "enabled":
            wrong.append(f"{name} is enabled but declared stopped")
    elif unit["UnitFileState"] != "enabled":
        wrong.append(f"{name} is {unit['UnitFileState'] or 'not enabled'}, must be enabled")
    elif "multi-user.target" not in unit["WantedBy"].split():
        wrong.append(f"{name} is enabled on disk but not loaded: systemd needs a daemon-reload")
    host.require(wrong)


def test_the_timer_asks_steam_when_the_data_say_so(host: Host) -> None:
    name, at = "left4me-game.timer", host.declares.update_at
    unit = host.found["units"].get(name, {"ActiveState": "inactive"})
    text = host.found["entries"].get(f"/usr/local/lib/systemd/system/{name}", {}).get("text", "")
    wrong = []
    if (unit["ActiveState"] == "active") != bool(at):
        wrong.append(f"{name} is {unit['ActiveState']} but update_at is {at}")
    if at and f"OnCalendar=*-*-* {at}:00" not in text.splitlines():
        wrong.append(f"{name} must run at {at}")
    host.require(wrong)


def test_resets_are_finished_at_the_boot(host: Host) -> None:
    unit = host.found["units"][FINISH_RESETS]
    shown = {key: unit.get(key, "") for key in FINISHES}
    wrong = [f"{key} is {shown[key]!r}, must be {FINISHES[key]!r}" for key in FINISHES if shown[key] != FINISHES[key]]
    program = "/usr/local/libexec/left4me/left4me-finish-resets"
    if commands(unit.get("ExecStartEx", "")) != [(program, program, "")]:
        wrong.append(f"ExecStart is {unit.get('ExecStartEx')!r}, must be {program}")
    host.require([f"{FINISH_RESETS}: {line}" for line in wrong])


def test_no_unit_has_failed_or_waits_for_a_reload(host: Host) -> None:
    wrong = []
    for name, unit in host.found["units"].items():
        if unit["ActiveState"] == "failed":
            wrong.append(f"{name} has failed: {unit['Result']}")
        if unit["NeedDaemonReload"] != "no":
            wrong.append(f"{name} was changed on disk after systemd loaded it: systemd needs a daemon-reload")
    host.require(wrong)


def test_systemd_finds_nothing_wrong_with_the_units(host: Host) -> None:
    # Other units of the host may have faults of their own.
    wrong = [line for line in host.found["verify"] if "left4me" in line]
    if host.found["verify_exit"] and not wrong:
        wrong = [f"exit {host.found['verify_exit']}", *host.found["verify"]]
    host.require([f"systemd-analyze verify: {line}" for line in wrong])


def test_the_sandbox_is_worth_its_name(host: Host, server: str) -> None:
    exposure = host.found["exposure"][f"left4me-server@{server}.service"]
    if exposure is None or exposure > 1.2:
        host.require([f"server {server}: systemd-analyze security says {exposure}, must be at most 1.2"])
