"""tests/deployed itself: it passes on what a deploy made, finds what was damaged, and changes nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.boxes.boxes import Box
from tests.deployed.promises import LINES, PROPERTIES, TEMPLATE, broken_template
from tests.integration.harness import (
    ROOT,
    SERVERS,
    deploy,
    inodes,
    properties,
    wait_for,
    wait_for_server,
    write_inventory,
)

SERVER = "left4me-server@3"
RUNTIME = "/var/lib/left4me/runtime"
MERGED = f"{RUNTIME}/3/merged"
AUTOEXEC = f"{MERGED}/left4dead2/cfg/autoexec.cfg"


def verify(inventory: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests/deployed as an operator does."""
    pytest_program = str(Path(sys.executable).with_name("pytest"))
    command = [pytest_program, "tests/deployed", "--inventory", str(inventory), "--color=no", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def must_pass(inventory: Path, *arguments: str) -> str:
    """Verify, and return what it said."""
    done = verify(inventory, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout
    return done.stdout


def must_fail(inventory: Path, finding: str, *arguments: str) -> str:
    """Verify, which has to fail with a line that matches, and without a traceback; return what it said."""
    done = verify(inventory, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(finding, done.stdout), done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.fixture
def up(deployed: Box) -> Box:
    """Return the deployed box with both servers answering."""
    wait_for_server(deployed, 27015)
    wait_for_server(deployed, 27016)
    return deployed


def test_a_deployed_host_passes_as_root_and_as_admin_with_sudo(up: Box, inventory: Path, tmp_path: Path) -> None:
    said = must_pass(inventory, "-v")
    assert f"test_each_server_answers_a2s[{up.name}/3] PASSED" in said
    assert f"test_the_accounts_are_as_declared[{up.name}] PASSED" in said
    must_pass(write_inventory(tmp_path / "inventory", [up], user="admin"))


def test_it_changes_nothing(up: Box, inventory: Path) -> None:
    def state() -> tuple[str, list[str], str]:
        units = up.run("systemctl show 'left4me*' -p Id,MainPID,NRestarts,ActiveEnterTimestampMonotonic").stdout
        blocks = sorted(block.strip() for block in units.split("\n\n"))  # systemd lists them in no order
        return inodes(up), blocks, up.run("systemctl show -p UnitsLoadStartTimestampMonotonic").stdout

    before = state()
    must_pass(inventory)
    assert state() == before


@pytest.mark.parametrize("end", ["reboot", "power cut"])
def test_it_passes_again_after_a_reboot_and_a_power_cut(up: Box, inventory: Path, end: str) -> None:
    if end == "reboot":
        up.reboot()
    else:
        up.crash()
        up.start()
    for port in (27015, 27016):
        wait_for_server(up, port)
    must_pass(inventory)


HELPER = "/usr/local/libexec/left4me/left4me-overlay"
SECRET = "/var/lib/left4me/secrets/3/rcon.cfg"
OWN = f"/etc/systemd/system/{SERVER}.service.d"
DROP_IN = "/etc/systemd/system/left4me-server@.service.d"
DAMAGES = {
    "a mode": ("chmod 0775 /etc/left4me/servers/3", "/etc/left4me/servers/3 is directory 0775 root root"),
    "an owner": ("chown root /var/lib/left4me/runtime/3/upper", "runtime/3/upper is directory 0755 root left4me"),
    "the helper": (f"echo '# altered' >> {HELPER}", f"{HELPER} has sha256"),
    "a foreign file": ("touch /usr/local/libexec/left4me/more", "/usr/local/libexec/left4me/more is unexpected"),
    "a hidden leftover": ("touch /etc/left4me/servers/3/.layers.0123", r"/3/\.layers\.0123 is unexpected"),
    "a line of the unit": (
        f"sed -i /^RestrictNamespaces=/d {TEMPLATE} && systemctl daemon-reload",
        "RestrictNamespaces is 'no', must be 'yes'",
    ),
    "a line that systemd has not read": (f"sed -i /^ProtectClock=/d {TEMPLATE}", "systemd needs a daemon-reload"),
    "a foreign drop-in": (
        f"mkdir -p {DROP_IN} && printf '[Service]\\nTimeoutStopSec=60\\n' > {DROP_IN}/x.conf"
        " && systemctl daemon-reload",
        "TimeoutStopUSec is '1min', must be '15s'",
    ),
    "a limit": (
        f"sed -i s/MemoryMax=.*/MemoryMax=1G/ /etc/systemd/system/{SERVER}.service.d/limits.conf"
        " && systemctl daemon-reload",
        "MemoryMax: '1073741824', must be '2147483648'",
    ),
    "a stop": (f"systemctl stop {SERVER}", rf"{SERVER}.service is inactive \(dead\), must be active"),
    "disabled": (f"systemctl disable {SERVER}", f"{SERVER}.service is disabled, must be enabled"),
    "resets that no boot finishes": (
        "systemctl disable left4me-finish-resets",
        "left4me-finish-resets.service: UnitFileState is 'disabled', must be 'enabled'",
    ),
    "another port": (
        "sed -i s/27016/27017/ /etc/left4me/servers/4/server.env",
        r"/etc/left4me/servers/4/server.env has .*27017.*, must have .*27016",
    ),
    "another release": (
        "ln -sfn releases/none /var/lib/left4me/installation",
        "must point to a build of source control",
    ),
    "the mode of a secret": (f"chmod 0444 {SECRET}", f"{SECRET} is file 0444 left4me-3 root, must be file 0400"),
    "a password in a unit": (
        f"sed 's/rcon_password /[Service]\\nEnvironment=X=/' {SECRET} >{OWN}/x.conf && systemctl daemon-reload",
        f"the RCON password of server 3 is readable in systemctl show {SERVER}",
    ),
    "what the game is told": (
        "sed -i /^sv_lan/d /etc/left4me/servers/3/server.cfg",
        "/etc/left4me/servers/3/server.cfg has .*, must have .*sv_lan",
    ),
    "a leftover": (f"mkdir {RUNTIME}/x", f"{RUNTIME}/x belongs to no declared or running server"),
    "a login": ("usermod --shell /bin/sh left4me-3", "user left4me-3 is in group left4me with /bin/sh"),
}


# Several at once that do not hide each other; a soak takes each by itself.
FILES = ["a mode", "an owner", "the helper", "a foreign file", "a hidden leftover", "another port", "another release"]
SECRETS = ["the mode of a secret", "a password in a unit", "what the game is told"]
UNITS = ["a line of the unit", "a foreign drop-in", "a limit", "disabled", "resets that no boot finishes"]
TOGETHER = [
    [*FILES, *SECRETS, *UNITS, "a leftover", "a login"],
    ["a stop", "a line that systemd has not read"],
]
CASES = [[damage] for damage in DAMAGES] if os.environ.get("SOAK") else TOGETHER


@pytest.mark.soak
@pytest.mark.parametrize("damages", CASES, ids=lambda damages: damages[0])
def test_damages_are_found_by_name_and_the_next_deploy_heals_them(up: Box, inventory: Path, damages: list[str]) -> None:
    for damage in damages:
        up.run(DAMAGES[damage][0])
    done = verify(inventory)
    deploy(inventory)
    assert done.returncode == 1, done.stdout
    for damage in damages:
        assert re.search(f"{up.name}: .*{DAMAGES[damage][1]}", done.stdout), f"{damage}: {done.stdout}"
    wait_for_server(up, 27015)
    must_pass(inventory)


def test_each_damage_is_in_a_case() -> None:
    assert sorted(DAMAGES) == sorted(damage for damages in CASES for damage in damages)


def test_a_password_in_the_journal_is_found(up: Box, inventory: Path) -> None:
    up.run(f"systemd-cat cat {SECRET} && journalctl --sync")
    try:
        said = must_fail(inventory, f"{up.name}: the RCON password of server 3 is readable in the journal")
        assert up.run(f"cut -d'\"' -f2 {SECRET}").stdout.strip() not in said
    finally:
        up.run("journalctl --rotate && rm -f /var/log/journal/*/*@* /run/log/journal/*/*@*")
    must_pass(inventory)


def test_a_server_without_a_password_is_found(up: Box, inventory: Path) -> None:
    up.run(f"truncate --size=0 {SECRET}")
    must_fail(inventory, f"{up.name}: server 3 has no RCON password in /var/lib/left4me/secrets/3: remove")
    up.run(f"rm {SECRET}")
    deploy(inventory)
    must_pass(inventory)


def test_a_server_that_is_enabled_and_declared_stopped_is_found(up: Box, tmp_path: Path) -> None:
    servers = {**SERVERS, "3": {**SERVERS["3"], "state": "stopped"}}
    inventory = write_inventory(tmp_path / "inventory", [up], servers=servers)
    must_fail(inventory, f"{SERVER}.service is enabled but declared stopped")


INSTALL = """import json, sys
for name, text in json.load(sys.stdin).items():
    with open("/run/systemd/system/" + name, "w") as file:
        file.write(text)
"""


def test_each_line_of_the_unit_is_missed(up: Box) -> None:
    text = up.run(f"cat {TEMPLATE}").stdout
    # One assignment a line, continued lines joined.
    lines = [line for line in text.replace("\\\n", "").splitlines() if line and not line.startswith("#")]
    removed = {f"mutant{number}": line for number, line in enumerate(lines) if not line.startswith("[")}
    mutants = {
        f"{name}@.service": "\n".join(each for each in lines if each != line) + "\n" for name, line in removed.items()
    }
    try:
        up.run(f"python3 -I -c {shlex.quote(INSTALL)} && systemctl daemon-reload", input=json.dumps(mutants).encode())
        instances = " ".join(f"{name}@_check.service" for name in removed)
        blocks = up.run(f"systemctl show --all {instances} -p {','.join(['Id', *PROPERTIES])}").stdout.split("\n\n")
        unseen = []
        for block in blocks:
            shown: dict[str, str] = {}
            for line in block.splitlines():
                key, _, value = line.partition("=")
                shown[key] = f"{shown[key]}\n{value}" if key in shown else value
            line = removed[shown["Id"].partition("@")[0]]
            # Debian 13's drop-in does not apply to a mutant, because of its name.
            if not [each for each in broken_template(shown, "debian 12") if not each.startswith("FragmentPath")]:
                unseen.append(line)
        assert set(unseen) == LINES
        assert len(blocks) == len(removed)
    finally:
        up.run("rm /run/systemd/system/mutant*@.service && systemctl daemon-reload")


@contextmanager
def holder(box: Box) -> Iterator[None]:
    """Hold a server's overlay by the working directory of a process that is not the server's."""
    box.run(f"systemd-run --quiet --unit=holder --property=Type=exec --working-directory={MERGED} sleep 300")
    try:
        yield
    finally:
        box.run("systemctl stop holder")


def test_a_mount_that_was_only_detached_is_found(up: Box, inventory: Path) -> None:
    with holder(up):
        up.run(f"umount --lazy {MERGED} && systemctl stop {SERVER}")
        done = verify(inventory)
    deploy(inventory)
    assert re.search(r"process \d+ \(sleep\) holds an overlay that is mounted nowhere: cwd", done.stdout), done.stdout
    assert f"{MERGED} is mounted 0 times, must be once" in done.stdout
    wait_for_server(up, 27015)
    must_pass(inventory)


def test_a_mount_without_a_server_is_found(up: Box, inventory: Path) -> None:
    up.run(f"systemctl stop {SERVER} && {HELPER} mount 3")
    must_fail(inventory, f"an overlay is mounted on {MERGED} but no server runs there")
    deploy(inventory)
    wait_for_server(up, 27015)
    must_pass(inventory)


def test_a_host_that_cannot_be_read_fails_once_and_the_others_are_checked(
    up: Box, inventory: Path, tmp_path: Path
) -> None:
    two = tmp_path / "inventory"
    two.write_text(inventory.read_text() + "boxes.append(('gone', boxes[0][1] | {'ssh_port': 2}))\n")
    done = verify(two, "-v")
    assert done.returncode == 1
    assert len(re.findall("^E? *gone cannot be read: ssh: connect to .* Connection refused", done.stdout, re.M)) == 1
    assert f"[{up.name}/3] PASSED" in done.stdout
    assert "[gone] PASSED" not in done.stdout
    assert "FAILED" not in "".join(line for line in done.stdout.splitlines() if up.name in line)


def test_without_sudo_it_says_so(up: Box, tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "inventory", [up], user="admin", hosts={up.name: {"_sudo": False}})
    must_fail(inventory, f"{up.name} cannot be read: the SSH user is not root: set _sudo = True")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--limit", "nobody"], "select no host; the inventory has: "),
        (["--inventory", "nowhere"], "inventory nowhere: no such file"),
        (["--inventory", ""], "no hosts selected: use --inventory FILE"),
        (["--cycle", "nobody/3"], "--cycle nobody/3: no such server is selected; selected are: "),
    ],
)
def test_a_selection_without_hosts_is_refused(inventory: Path, arguments: list[str], reason: str) -> None:
    done = verify(inventory, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_data_that_does_not_validate_is_refused(up: Box, tmp_path: Path) -> None:
    servers = {"3": {"port": "x"}, "4": {"port": 1}}
    done = verify(write_inventory(tmp_path / "inventory", [up], servers=servers))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert re.findall(f"refused: {up.name}: (.*?): ", done.stderr) == ["servers.3.port", "servers.4.port"]
    assert len(done.stderr.strip().splitlines()) == 2


# -- --cycle


def main_pid(box: Box) -> str:
    return properties(box, SERVER, "MainPID")["MainPID"]


@contextmanager
def at_each_start(box: Box, command: str) -> Iterator[None]:
    """Have the stand-in execute a console command at each start, and start it."""
    # Five starts in five minutes are what the unit allows.
    box.run(
        f"cat > {AUTOEXEC} && systemctl reset-failed {SERVER} && systemctl restart {SERVER}", input=command.encode()
    )
    wait_for_server(box, 27015)
    try:
        yield
    finally:
        box.run(f"rm -f {AUTOEXEC} && systemctl reset-failed {SERVER} && systemctl restart {SERVER}")
        wait_for_server(box, 27015)


def test_cycle_stops_and_starts_an_empty_server(up: Box, inventory: Path) -> None:
    with at_each_start(up, "standin_bots 4"):
        before, other = main_pid(up), properties(up, "left4me-server@4", "MainPID")
        said = must_pass(inventory, "--cycle", f"{up.name}/3")
        assert main_pid(up) != before
        assert properties(up, "left4me-server@4", "MainPID") == other
    for figure in ("stop duration +[0-9.]+ s", "unit after the stop +inactive", "ExecStopPost +exited 0"):
        assert re.search(figure, said), said
    for figure in ("holders while it stopped", "mounts left", "holders left"):
        assert re.search(f"{figure} +none", said), said


def test_cycle_refuses_while_somebody_plays(up: Box, inventory: Path) -> None:
    with at_each_start(up, "standin_bots 2; standin_players 1"):
        before = main_pid(up)
        must_fail(inventory, f"{SERVER}.service was not stopped: it has players \\(1\\)", "--cycle", f"{up.name}/3")
        assert main_pid(up) == before


def test_cycle_refuses_when_nobody_answers(up: Box, inventory: Path) -> None:
    before = main_pid(up)
    up.run(f"kill -STOP {before}")
    try:
        cycle = ["--cycle", f"{up.name}/3", "-k", "clean"]
        must_fail(inventory, f"{SERVER}.service was not stopped: it does not answer A2S", *cycle)
    finally:
        up.run(f"kill -CONT {before}")
    assert main_pid(up) == before


def test_cycle_tells_a_stop_that_was_not_clean(up: Box, inventory: Path) -> None:
    with holder(up):
        said = must_fail(inventory, "unit after the stop: failed, must be inactive", "--cycle", f"{up.name}/3")
    assert re.search(r"holders while it stopped: \['\d+ sleep cwd'\], must be none", said), said
    assert "ExecStopPost: exited 1, must be exited 0" in said
    assert f"mounts left: ['{MERGED}'], must be none" in said
    wait_for("the server runs again", lambda: main_pid(up) != "0")
    must_pass(inventory)
