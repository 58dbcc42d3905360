"""What a deploy does to a host, again and again: it brings it to the declared state and touches nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import LAYER, LAYERS, ctl
from tests.integration.harness import (
    ROOT,
    SERVERS,
    assert_idle,
    bare,
    changed,
    deploy,
    listing,
    name_over_a2s,
    properties,
    pyinfra,
    standing,
    started,
    wait_for,
    wait_for_server,
    write_inventory,
)
from tests.integration.test_verification import must_pass
from tests.integration.trap import Trap, kill_both, trace, traced, waits_for_a_lock

PORTS = (27015, 27016)


@pytest.fixture(scope="module")
def packages() -> tuple[str, ...]:
    """Let the deploy install what it needs."""
    return ()


@pytest.fixture
def settled(deployed: Box, inventory: Path) -> Box:
    """The deployed box as its inventory declares it, with its servers past their start."""
    deploy(inventory)
    for port in PORTS:
        wait_for_server(deployed, port)
    return deployed


def test_a_second_deploy_changes_nothing(settled: Box, inventory: Path) -> None:
    before = standing(settled)
    assert_idle(deploy(inventory), [settled])
    assert standing(settled) == before


def test_what_is_damaged_is_seen_and_healed(settled: Box, inventory: Path) -> None:
    before = standing(settled)
    settled.run("chmod 755 /etc/left4me/servers/3/layers")
    results = deploy(inventory)
    assert changed(results) == ["Write the servers' files"]
    with pytest.raises(AssertionError):
        assert_idle(results, [settled])
    after = standing(settled)
    assert after["inodes"] != before["inodes"]
    assert {**after, "inodes": ""} == {**before, "inodes": ""}
    assert settled.run("stat -c %a /etc/left4me/servers/3/layers").stdout == "644\n"


def test_a_server_that_a_deploy_repairs_amid_its_restarts_starts_afresh(
    settled: Box, inventory: Path, tmp_path: Path
) -> None:
    def restarts() -> tuple[str, int]:
        shown = properties(settled, "left4me-server@3.service", "SubState", "NRestarts")
        return shown["SubState"], int(shown["NRestarts"])

    broken = {**SERVERS, "3": {**SERVERS["3"], "arguments": ["+standin_exit_at_start", "7"]}}
    deploy(write_inventory(tmp_path / "broken", [settled], servers=broken))
    ctl(settled, "restart 3")
    wait_for("systemd has restarted it", lambda: restarts() == ("auto-restart", 2), 60)
    assert changed(deploy(inventory))[-1] == "Start the servers that are not running"
    wait_for_server(settled, PORTS[0])
    # systemd counts anew; a start of a server that waits for its automatic restart may be that restart.
    assert restarts() in (("running", 0), ("running", 1))


def test_what_a_killed_deploy_has_not_written_keeps_nobody_from_a_plan(settled: Box, inventory: Path) -> None:
    settled.run("rm /etc/left4me/servers/3/layers")
    missing = "/etc/left4me/servers/3/layers is missing"
    assert missing in ctl(settled, "doctor", code=1).stdout
    done = pyinfra(inventory, "deploy.py", "--dry")
    assert done.returncode == 0, done.stderr
    assert changed(deploy(inventory)) == ["Write the servers' files"]
    assert missing not in settled.run("l4d2ctl doctor", check=False).stdout


def test_admin_with_sudo_deploys_what_root_does(settled: Box, inventory: Path, tmp_path: Path) -> None:
    by_root = listing(settled)
    bare(settled)
    assert listing(settled) != by_root
    deploy(write_inventory(tmp_path / "as_admin", [settled], user="admin"))
    for port in PORTS:
        wait_for_server(settled, port)
    assert listing(settled) == by_root
    assert_idle(deploy(tmp_path / "as_admin"), [settled])


def test_servers_are_back_after_a_reboot(settled: Box, inventory: Path) -> None:
    settled.reboot()
    for port in PORTS:
        wait_for_server(settled, port)
    assert_idle(deploy(inventory), [settled])


def test_servers_are_back_after_a_power_cut(settled: Box, inventory: Path) -> None:
    settled.crash()
    settled.start()
    for port in PORTS:
        wait_for_server(settled, port)
    assert_idle(deploy(inventory), [settled])


def servers(**three: Any) -> dict[str, Any]:
    """Return the servers of the module's inventory, the first of them changed."""
    return {**SERVERS, "3": {**SERVERS["3"], **three}}


def main_pids(box: Box) -> list[str]:
    return [properties(box, f"left4me-server@{each}", "MainPID")["MainPID"] for each in SERVERS]


def test_a_running_server_is_never_restarted(settled: Box, inventory: Path, tmp_path: Path) -> None:
    before = main_pids(settled)
    assert "0" not in before
    other = servers(port=27017, map="c2m1_highway", hostname="changed", layers=[LAYER], max_players=4)
    results = deploy(write_inventory(tmp_path / "inventory", [settled], servers=other, layers=LAYERS))
    written = ["Put the layers in place", "Write the servers' files"]
    written += ["Reload systemd if needed"] if settled.debian == 13 else []  # for the ports that it denies
    assert changed(results) == [*written, "Protect the servers' ports by a firewall"]
    assert main_pids(settled) == before
    assert name_over_a2s(settled, 27015) == "three"


def test_a_changed_limit_is_in_force_without_a_restart(settled: Box, tmp_path: Path) -> None:
    before = standing(settled)
    results = deploy(write_inventory(tmp_path / "inventory", [settled], servers=servers(memory_max="1G")))
    assert changed(results) == ["Write the servers' files", "Reload systemd if needed"]
    assert properties(settled, "left4me-server@3", "MemoryMax") == {"MemoryMax": str(1 << 30)}
    after = standing(settled)
    assert after["reload"] != before["reload"]
    told = {"inodes": "", "reload": "", "journal": ""}
    assert {**after, **told} == {**before, **told}


def test_a_reload_that_an_earlier_run_did_not_reach_is_made_up(settled: Box, tmp_path: Path) -> None:
    """A first drop-in in a new directory, which systemd 252 itself does not notice."""
    drop_ins = "/etc/systemd/system/left4me-server@3.service.d"
    settled.run(f"mv {drop_ins} /root/away && systemctl daemon-reload && mv /root/away {drop_ins}")
    assert properties(settled, "left4me-server@3", "MemoryMax") == {"MemoryMax": "infinity"}
    inventory = write_inventory(tmp_path / "inventory", [settled])
    assert changed(deploy(inventory)) == ["Reload systemd if needed"]
    assert properties(settled, "left4me-server@3", "MemoryMax") == {"MemoryMax": str(2 << 30)}
    assert_idle(deploy(inventory), [settled])


def test_what_an_administrator_laid_elsewhere_is_no_change(settled: Box, inventory: Path) -> None:
    settled.run("mv /usr/local/share /srv/share && ln -s /srv/share /usr/local/share")
    try:
        assert_idle(deploy(inventory), [settled])
    finally:
        settled.run("rm /usr/local/share && mv /srv/share /usr/local/share")


def test_an_overlay_that_is_not_left4mes_keeps_nothing_from_a_deploy(settled: Box, inventory: Path) -> None:
    """As systemd-sysext lays one over /usr."""
    layers = "lowerdir=/usr/local/sbin,upperdir=/run/other/upper,workdir=/run/other/work"
    settled.run("mkdir /run/other && mount -t tmpfs other /run/other && mkdir /run/other/upper /run/other/work")
    settled.run(f"mount -t overlay other -o {layers} /usr/local/sbin && rm /usr/local/sbin/l4d2ctl")
    try:
        assert changed(deploy(inventory)) == ["Install the overlay helper and l4d2ctl"]
        settled.run("test -x /usr/local/sbin/l4d2ctl")
    finally:
        settled.run("umount /usr/local/sbin /run/other && rmdir /run/other")


def test_a_deploy_killed_at_its_reload(settled: Box, tmp_path: Path) -> None:
    inventory = write_inventory(tmp_path / "inventory", [settled], servers=servers(memory_max="3G"))
    with Trap(settled, "connect") as trap, started(inventory, "deploy.py", "-y") as pyinfra:
        kill_both(pyinfra, trap.landing("AF_UNIX", "systemctl daemon-reload"))
    assert properties(settled, "left4me-server@3", "MemoryMax") != {"MemoryMax": str(3 << 30)}
    assert changed(deploy(inventory)) == ["Reload systemd if needed"]
    assert properties(settled, "left4me-server@3", "MemoryMax") == {"MemoryMax": str(3 << 30)}


UNREACHABLE = "echo 'Acquire::http::Proxy \"http://127.0.0.1:9\";' >/etc/apt/apt.conf.d/99unreachable"


def test_a_mirror_that_cannot_be_reached(settled: Box, inventory: Path) -> None:
    settled.run(UNREACHABLE)
    try:
        assert_idle(deploy(inventory), [settled])
        settled.run("dpkg --purge lib32z1; rm -rf /var/lib/apt/lists/* && apt-get clean")
        done = pyinfra(inventory, "deploy.py", "-y")
    finally:
        settled.run("rm /etc/apt/apt.conf.d/99unreachable")
    assert done.returncode == 1
    assert "the package mirror is not reachable or incomplete" in done.stderr
    assert "not installed: lib32z1:amd64; check /etc/apt/sources.list and the route to the mirror" in done.stderr
    assert changed(deploy(inventory)) == ["Install the i386 libraries that srcds needs"]
    settled.run("dpkg-query -W -f '${Status}' lib32z1 | grep -x 'install ok installed'")


HOLD = """python3 -c '
import fcntl, sys
lock = open("/var/lib/dpkg/lock-frontend", "a")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
'"""


def test_a_busy_package_manager_is_waited_for(settled: Box, inventory: Path) -> None:
    settled.run("dpkg --purge lib32z1")
    ssh = ["ssh", "-F", str(settled.ssh_config), settled.name, HOLD]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with started(inventory, "deploy.py", "-y") as deploying:
            wait_for("the deploy waits for dpkg's lock", lambda: waits_for_a_lock("packages.py NAME"), 90)
            holder.stdin.close()
            deploying.communicate(timeout=120)
            assert deploying.returncode == 0
    settled.run("dpkg-query -W -f '${Status}' lib32z1 | grep -x 'install ok installed'")


def test_an_installation_of_somebody_else_is_only_read(settled: Box, tmp_path: Path) -> None:
    bare(settled)
    settled.run("useradd --create-home steam")
    with subprocess.Popen(["tar", "c", "-C", str(ROOT / ".boxes/game"), "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout
        settled.run(
            "mkdir /home/steam/serverfiles && cd /home/steam/serverfiles && tar x --no-same-owner && "
            "chown -R steam: . && chmod -R go-rwx .",
            input=tar.stdout.read(),
        )
    about = "find /home/steam -printf '%i %C@ %M %u %g %p\\n' | sort -k6"
    before = settled.run(about).stdout
    game = {"source": "host", "path": "/home/steam/serverfiles"}
    inventory = write_inventory(tmp_path / "inventory", [settled], game=game)
    deploy(inventory)
    for port in PORTS:
        wait_for_server(settled, port)
    assert settled.run(about).stdout == before
    lowers = settled.run("grep /left4me/runtime/ /proc/mounts | grep -o 'lowerdir=/[a-z0-9/]*' | sort -u").stdout
    assert lowers == "lowerdir=/var/lib/left4me/releases/host\n"
    assert_idle(deploy(inventory), [settled])

    # A server that runs there writes; that makes no other build. A link that leads out is named until it is mended.
    mods = "/home/steam/serverfiles/left4dead2"
    current = "readlink /var/lib/left4me/installation"
    first = settled.run(current).stdout
    settled.run(f"mkdir -p {mods}/logs && echo x >{mods}/logs/L1.log && echo y >{mods}/console.log")
    assert_idle(deploy(inventory), [settled])
    settled.run(f"mkdir /srv/more && echo a >/srv/more/a.txt && ln -s /srv/more {mods}/more")
    done = pyinfra(inventory, "deploy.py", "-y")
    assert "servers cannot follow these links out of game.path: left4dead2/more;" in done.stderr
    assert settled.run(current).stdout != first
    assert "left4dead2/more -> /srv/more" in must_pass(inventory)
    settled.run(f"rm {mods}/more && cp -a /srv/more {mods}/more")
    done = pyinfra(inventory, "deploy.py", "-y")
    assert "out of game.path" not in done.stderr
    assert settled.run("cat /var/lib/left4me/installation/left4dead2/more/a.txt").stdout == "a\n"
    assert "lead" not in must_pass(inventory)
    bare(settled)


def test_a_filesystem_that_executes_nothing_is_named(settled: Box, inventory: Path) -> None:
    bare(settled)
    settled.run("mkdir /var/lib/left4me && mount -t tmpfs -o noexec none /var/lib/left4me")
    try:
        done = pyinfra(inventory, "deploy.py", "-y")
        assert done.returncode == 1
        said = "game: /var/lib/left4me is on a filesystem that is mounted noexec: remount it with exec"
        assert said in done.stdout + done.stderr
    finally:
        settled.run("umount /var/lib/left4me")
        bare(settled)


CREATES = "open,openat,creat,mkdir,mkdirat,symlink,symlinkat,link,linkat,mknod,mknodat"
PLACES = "fchown,fchmod,chmod,fchmodat,rename,renameat,renameat2,write,fsync"


@pytest.mark.alternating
@pytest.mark.parametrize("user", ["root", "admin"])
def test_files_are_placed_whole_and_only_roots_to_write(
    settled: Box, tmp_path: Path, user: Literal["root", "admin"]
) -> None:
    """Seen by strace from outside, on everything that the box's sshd starts."""
    bare(settled)
    inventory = write_inventory(tmp_path / "inventory", [settled], user=user)
    with trace(settled, f"{CREATES},{PLACES}", tmp_path / "trace") as seen:
        deploy(inventory)
    lines = traced(seen)

    made = [line for line in lines if "O_CREAT" in line or re.match(r"\d+ +(mkdir|symlink|link|mknod|creat)", line)]
    assert [line for line in made if re.search(r'"(/tmp|/var/tmp|/dev/shm|/run/lock)/', line)] == []

    # The helper's file: nobody could guess or have put its name there, nobody else's at any moment.
    [temporary] = {found for line in lines for found in re.findall(r"/\.left4me-overlay\.([0-9a-f]{16})\"", line)}
    folder = "/usr/local/libexec/left4me"
    path = f"{folder}/.left4me-overlay.{temporary}"
    [pid] = {line.split()[0] for line in lines if temporary in line}
    calls = [line for line in lines if line.split()[0] == pid]
    story = [
        rf'openat\(.*, "{path}", O_WRONLY\|O_CREAT\|O_EXCL\|O_NOFOLLOW\|O_CLOEXEC, 0600\)',
        rf"fchown\(\d+<.*{path}>, 0, 0\)",
        rf"write\(\d+<.*{path}>",
        rf"fchmod\(\d+<.*{path}>, 0755\)",
        rf"fsync\(\d+<.*{path}>\)",
        rf'rename\("{path}", "{folder}/left4me-overlay"\)',
        rf"fsync\(\d+<.*{folder}>\)",
    ]
    at = 0
    for step in story:
        at = next((n for n, line in enumerate(calls[at:], at) if re.search(step, line)), -1) + 1
        assert at, f"not in this order: {step}"
    named = [line for line in calls if "left4me-overlay" in line]
    assert not [line for line in named if "O_CREAT" in line and "O_EXCL" not in line]
    assert len([line for line in named if "fchmod(" in line or "chmod(" in line]) == 1
