"""Resets in a row are never busy: the postmortem's symptom came with every one of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.boxes.boxes import Box
from tests.integration.harness import devices, having, overlays, rounds, wait_for_server, write_inventory

PORTS = {str(number): 27014 + number for number in range(1, 9)}
SERVERS = {server: {"port": port, "hostname": f"server {server}"} for server, port in PORTS.items()}


@pytest.fixture(scope="module")
def inventory(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the inventory of the module's box, with eight servers."""
    return write_inventory(tmp_path_factory.mktemp("fleet") / "inventory", [box], servers=SERVERS)


def merged(servers: Iterable[str]) -> list[str]:
    return sorted(f"/var/lib/left4me/runtime/{server}/merged" for server in servers)


def systemd_said(box: Box, since: str) -> list[str]:
    """Return what systemd wrote of the servers' ends since a cursor: how each was, and whatever went wrong in one."""
    script = f"journalctl --sync; journalctl -o cat --after-cursor='{since}' _PID=1"
    lines = box.run(script, timeout=120).stdout.splitlines()
    # An ExecStopPost= that does not exit 0 is logged with its code and status, and its unit ends as failed.
    words = ("Deactivated successfully", "Failed", "code=", "timed out", "Killing")
    return [line for line in lines if "left4me-server@" in line and any(word in line for word in words)]


def reset(box: Box, servers: list[str], times: int) -> None:
    """Reset running servers, all at the same time, so many times; look at each end of it."""
    box.run(f"l4d2ctl start {' '.join(servers)}")
    cursor = box.run("journalctl --quiet --lines=1 --show-cursor").stdout.splitlines()[-1].removeprefix("-- cursor: ")
    together = " & ".join(f"{{ l4d2ctl reset {server} || echo failed {server}; }}" for server in servers)
    for _ in range(times):
        for server in servers:
            wait_for_server(box, PORTS[server])
        done = box.run(f"{together} & wait", timeout=120)
        assert (done.stdout.count("in all"), done.stderr) == (len(servers), ""), done.stdout + done.stderr
        assert "failed" not in done.stdout
        assert box.run("systemctl list-units --failed --no-legend").stdout == ""
        assert sorted(path for path in overlays(box) if path.split("/")[-2] in servers) == merged(servers)
        assert {server: having(box, server, runs=True) for server in servers} == {server: [] for server in servers}
        assert {server: len(devices(box, server)) for server in servers} == dict.fromkeys(servers, 1)
    box.run(f"l4d2ctl stop {' '.join(servers)}")
    assert [path for path in overlays(box) if path in merged(servers)] == []
    assert {server: having(box, server) for server in servers} == {server: [] for server in servers}
    ends = systemd_said(box, cursor)
    good = [f"left4me-server@{server}.service: Deactivated successfully." for server in servers] * (times + 1)
    assert sorted(ends) == sorted(good)
    print(f"{times} rounds of {len(servers)}: {len(ends)} stops, each unmounted, with ExecStopPost 0")


@pytest.mark.soak
def test_resets_in_a_row_of_one_server_are_never_busy(deployed: Box) -> None:
    reset(deployed, ["3"], rounds(20, 500))


@pytest.mark.soak
def test_resets_in_a_row_of_eight_servers_at_the_same_time_are_never_busy(deployed: Box) -> None:
    reset(deployed, list(SERVERS), rounds(3, 50))
