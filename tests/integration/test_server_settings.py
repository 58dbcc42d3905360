"""What the data say of servers is so on the host: what the game does, what it is told, what is hidden, what goes."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import ATTIC, RUNTIME, ctl, main_pid, state, wait_for_state
from tests.integration.harness import (
    ROOT,
    assert_idle,
    changed,
    deploy,
    inodes,
    name_over_a2s,
    pyinfra,
    wait_for_server,
    write_inventory,
)
from tests.integration.test_verification import must_pass
from tests.integration.trap import trace

THREE: Mapping[str, Any] = {
    "hostname": "three",
    "map": "c2m1_highway",
    "gamemode": "versus",
    "tickrate": 60,
    "max_players": 4,
    "layers": ["evening"],
    "exec": ["evening.cfg"],
    "cvars": {"sv_tags": "of the data", "sv_contact": "me@example.org"},
    "arguments": ["-nohltv", "+sv_search_key", "abc"],
    "admins": ["STEAM_1:0:1234"],
}
FOUR: Mapping[str, Any] = {"hostname": "four"}
BOTH = {"3": THREE, "4": FOUR}
# What a layer sets, of which the data's own lines, and what must hold, change their part.
EVENING = 'sv_gravity 111\nsv_tags "of the layer"\nhostname "of the layer"\nsv_lan 1\nrcon_password "of the layer"\n'
SECRETS = "/var/lib/left4me/secrets"
ALONE = "no longer declared, kept: it has players or does not respond: 4: deploy again"


class Fleet:
    """The module's box, and what its data declare now."""

    def __init__(self, box: Box, folder: Path) -> None:
        self.box, self.folder, self.inventory = box, folder, folder / "inventory"
        cfg = folder / "evening/left4dead2/cfg"
        cfg.mkdir(parents=True)
        (cfg / "evening.cfg").write_text(EVENING)

    def declare(self, servers: Mapping[str, Any], code: Mapping[str, str] | None = None, **data: Any) -> Path:
        """Write the inventory; `code` is Python that stands in it where a word stands in the data."""
        layers = {"evening": {"source": "control", "path": str(self.folder / "evening")}}
        write_inventory(self.inventory, [self.box], servers=dict(servers), layers=layers, **data)
        text = self.inventory.read_text()
        for word, expression in (code or {}).items():
            text = text.replace(repr(word), expression)
        self.inventory.write_text(f"import os, subprocess\n{text}")
        return self.inventory

    def deploy(self, servers: Mapping[str, Any], **data: Any) -> dict[str, Any]:
        """Declare servers and deploy; return pyinfra's results."""
        return deploy(self.declare(servers, **data))

    def row(self, server: str) -> dict[str, Any]:
        """Return a server's row of `l4d2ctl status`."""
        [row] = json.loads(ctl(self.box, f"status --json {server}").stdout)
        found: dict[str, Any] = row
        return found

    def up(self, server: str) -> None:
        """Wait for a server to answer on its port."""
        wait_for_server(self.box, self.row(server)["port"])

    def says(self, server: str, command: str) -> str:
        """Return what a server's console says to a command."""
        return ctl(self.box, f"rcon {server} {command}").stdout.strip()

    def inside(self, server: str, command: str, user: str = "") -> tuple[int, str]:
        """Run a command in a running server's mount namespace, as its user or another's."""
        words = f"setpriv --reuid=left4me-{user or server} --regid=left4me --clear-groups {command}"
        done = self.box.run(f"nsenter --mount=/proc/{main_pid(self.box, server)}/ns/mnt -- {words}", check=False)
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def fleet(box: Box, game: Path, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(box, tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def both(fleet: Fleet) -> Fleet:
    """The box with servers 3 and 4 as declared above, and nothing else."""
    fleet.deploy(BOTH)
    for server in BOTH:
        fleet.up(server)
    return fleet


def test_cfg_files_cvars_and_what_must_hold_are_in_force_in_this_order(both: Fleet) -> None:
    assert '"111"' in both.says("3", "sv_gravity")
    assert '"of the data"' in both.says("3", "sv_tags")
    assert '"me@example.org"' in both.says("3", "sv_contact")
    assert '"0"' in both.says("3", "sv_lan")
    assert '"three"' in both.says("3", "hostname")
    assert name_over_a2s(both.box, both.row("3")["port"]) == "three"
    assert '"800"' in both.says("4", "sv_gravity")


def test_what_the_game_is_started_with(both: Fleet) -> None:
    line = both.box.run(f"cat /proc/{main_pid(both.box, '3')}/cmdline").stdout.rstrip("\0").split("\0")
    assert " ".join(line[line.index("-game") :]) == (
        "-game left4dead2 -norestart -strictportbind -ip 0.0.0.0 -port 27015 -maxplayers 4 -tickrate 60"
        " -nohltv +sv_search_key abc +servercfgfile left4me/server.cfg +mp_gamemode versus +map c2m1_highway"
    )
    assert (both.row("3")["map"], both.row("3")["slots"]) == ("c2m1_highway", 4)
    assert '"abc"' in both.says("3", "sv_search_key")


def test_admins_are_where_sourcemod_looks(both: Fleet) -> None:
    path = f"{RUNTIME}/3/merged/left4dead2/addons/sourcemod/configs/admins_simple.ini"
    assert '"STEAM_1:0:1234" "99:z"' in both.inside("3", f"cat {path}")[1].splitlines()
    # Another one needs no restart.
    assert changed(both.deploy({"3": {**THREE, "admins": ["[U:1:7]"]}, "4": FOUR})) == ["Write the servers' files"]
    code, text = both.inside("3", f"cat {path}")
    assert (code, '"[U:1:7]" "99:z"' in text, "STEAM_1" in text) == (0, True, False)
    assert not both.row("3")["restart_due"]
    # Server 4 has none, and not the layer that leads there.
    assert both.inside("4", f"cat {path.replace('/3/', '/4/')}")[0] != 0


def ports(fleet: Fleet) -> dict[str, int]:
    """Return the ports that the box listens on, by the server, as the kernel has them."""
    lines = fleet.box.run("ss -Htlnp").stdout.splitlines()
    found = {}
    for line in lines:
        if pid := re.search(r"pid=(\d+)", line):
            group = fleet.box.run(f"cat /proc/{pid[1]}/cgroup").stdout
            if server := re.search(r"left4me-server@(.+)\.service", group):
                found[server[1]] = int(line.split()[3].rpartition(":")[2])
    return found


def test_ports_are_given_out_and_stay(both: Fleet) -> None:
    assert ports(both) == {"3": 27015, "4": 27016}
    both.deploy({"0": {}, "3": THREE, "4": FOUR})
    both.up("0")
    assert ports(both) == {"0": 27017, "3": 27015, "4": 27016}
    # The first one goes. Nobody moves, and the next one gets what is free now.
    both.deploy({"0": {}, "4": FOUR})
    assert ports(both) == {"0": 27017, "4": 27016}
    assert_idle(both.deploy({"4": FOUR, "0": {}}), [both.box])
    both.deploy(BOTH)
    both.up("3")
    assert ports(both) == {"3": 27015, "4": 27016}


def test_the_port_of_a_server_that_is_to_be_down_is_another_ones_in_the_same_deploy(both: Fleet) -> None:
    both.deploy({"3": {**THREE, "port": None, "state": "stopped"}, "4": FOUR, "5": {"port": 27015}})
    both.up("5")
    assert ports(both) == {"4": 27016, "5": 27015}
    assert state(both.box, "3") == "inactive"
    # Likewise that of one that goes.
    both.deploy({"3": {**THREE, "port": 27015}, "4": FOUR})
    both.up("3")
    assert ports(both) == {"3": 27015, "4": 27016}


def test_a_server_whose_port_another_runs_on_still_waits_for_it(both: Fleet) -> None:
    pid = main_pid(both.box, "3")
    servers = {"3": {**THREE, "port": 27018}, "4": FOUR, "5": {"hostname": "five", "port": 27015}}
    done = pyinfra(both.declare(servers), "deploy.py", "-y")
    assert done.returncode == 0, done.stderr
    do = "l4d2ctl restart 3 && l4d2ctl start 5"
    assert f"not started, port 27015 is still held by server 3: 5: {do}" in done.stderr
    assert ports(both) == {"3": 27015, "4": 27016}
    assert (main_pid(both.box, "3"), state(both.box, "5")) == (pid, "inactive")
    assert "port 27015 is still held by server 3" in must_pass(both.inventory)
    ctl(both.box, "restart 3")
    both.up("3")
    assert changed(deploy(both.inventory))[-1:] == ["Start the servers that are not running"]
    both.up("5")
    assert ports(both) == {"3": 27018, "4": 27016, "5": 27015}
    must_pass(both.inventory)


def password(fleet: Fleet, server: str) -> str:
    """Return a server's RCON password as root reads it."""
    [line] = fleet.box.run(f"cat {SECRETS}/{server}/*").stdout.splitlines()
    found = re.fullmatch(r'rcon_password "([^"]+)"', line)
    assert found, line
    return found[1]


SEARCH = """
import glob, os, subprocess
secret = bytes.fromhex({secret!r})
def read(path):
    try:
        return open(path, "rb").read()
    except OSError:
        return b""
files = glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ")
for top in ("/etc", "/root", "/home", "/run", "/srv", "/tmp", "/usr/local", "/var"):
    for base, names, here in os.walk(top):
        names[:] = [name for name in names if name != "merged"]
        files += [path for name in here if os.path.isfile(path := os.path.join(base, name))]
print(*(path for path in files if secret in read(path)), sep="\\n")
for words in (["journalctl", "--output=export"], ["systemctl", "show", "*", "--all"], ["ps", "axeww"]):
    if secret in subprocess.run(words, capture_output=True).stdout:
        print(*words)
"""


def places(box: Box, secret: str) -> list[str]:
    """Return where in a box a secret is to be found, by root: files, processes, the journal, systemd."""
    out = box.run("python3 -I -", input=SEARCH.format(secret=secret.encode().hex()).encode(), timeout=120).stdout
    return out.split("\n")[:-1] if out.strip() else []


def here(fleet: Fleet, secret: str) -> list[Path]:
    """Return which files of this machine, that a run could have written, hold a secret; the boxes' disks are theirs."""
    tops = [path for path in ROOT.iterdir() if path.name not in (".boxes", ".venv", ".git")]
    files = [path for top in [*tops, fleet.folder] for path in ([top] if top.is_file() else top.rglob("*"))]
    return [path for path in files if path.is_file() and secret.encode() in path.read_bytes()]


def told(inventory: Path) -> str:
    """Deploy with all that pyinfra can say; return it."""
    done = pyinfra(inventory, "deploy.py", "-y", "-vvv", "--diff", "--debug")
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_password_that_the_host_makes_is_known_to_the_game_and_root_alone(both: Fleet) -> None:
    both.deploy({"4": FOUR})
    said = told(both.declare(BOTH))
    both.up("3")
    secret = password(both, "3")
    assert len(secret) >= 20
    assert secret not in said
    assert here(both, secret) == []
    assert places(both.box, secret) == [f"{SECRETS}/3/rcon.cfg"]
    modes = both.box.run(f"stat -c '%A %U %G' {SECRETS} {SECRETS}/3 {SECRETS}/3/rcon.cfg").stdout.splitlines()
    assert modes == ["drwx------ root root", "dr-x------ left4me-3 root", "-r-------- left4me-3 root"]
    path = f"{RUNTIME}/3/merged/left4dead2/cfg/left4me/secret/rcon.cfg"
    assert both.inside("3", f"cat {path}") == (0, f'rcon_password "{secret}"\n')
    # Not the game next door, on whatever way; nor the server's own user, to change it.
    assert both.inside("3", f"cat {path}", user="4")[0] != 0
    assert both.inside("4", f"cat {path}")[0] != 0
    assert both.inside("4", f"cat /proc/{main_pid(both.box, '3')}/root{path}")[0] != 0
    assert both.inside("4", f"cat {SECRETS}/3/rcon.cfg")[0] != 0
    assert both.inside("3", f"touch {path}")[0] != 0
    assert '"three"' in both.says("3", "hostname")


def test_a_password_that_the_host_makes_stays_and_goes_with_its_server(both: Fleet) -> None:
    before = {server: password(both, server) for server in BOTH}
    assert before["3"] != before["4"]
    three = {**THREE, "cvars": {}}
    both.deploy({"3": three, "4": FOUR})
    assert_idle(both.deploy({"3": three, "4": FOUR}), [both.box])
    assert {server: password(both, server) for server in BOTH} == before
    both.deploy({"4": FOUR})
    # Who removed it by mistake gets it back: the attic is the one place that has it, and root's alone.
    [kept] = places(both.box, before["3"])
    assert re.fullmatch(rf"{ATTIC}/3@[^/]+/rcon.cfg", kept)
    modes = both.box.run(f"stat -c '%A %U' {ATTIC} $(dirname {kept}) {kept}").stdout.splitlines()
    assert modes == ["drwx------ root", "drwx------ root", "-r-------- left4me-3"]
    both.deploy(BOTH)
    both.up("3")
    made = password(both, "3")
    assert made not in before.values()
    assert password(both, "4") == before["4"]
    ctl(both.box, "reset --undo 3")
    both.up("3")
    assert password(both, "3") == before["3"]
    assert places(both.box, before["3"]) == [f"{SECRETS}/3/rcon.cfg"]
    assert '"three"' in both.says("3", "hostname")
    assert_idle(both.deploy(BOTH), [both.box])
    must_pass(both.inventory)
    # The one of meanwhile comes back with what was written then.
    [aside] = places(both.box, made)
    ctl(both.box, f"reset --undo={aside.split('/')[-2]} 3")
    both.up("3")
    assert password(both, "3") == made


def test_a_given_password_stays_over_an_undo_and_is_in_no_attic(both: Fleet) -> None:
    given = "given-by-the-data"
    both.deploy(BOTH)
    both.deploy({"4": FOUR})
    both.deploy({"3": {**THREE, "rcon_password": given}, "4": FOUR})
    ctl(both.box, "reset --undo 3")
    both.up("3")
    assert password(both, "3") == given
    both.deploy({"4": FOUR})
    assert places(both.box, given) == []
    both.deploy(BOTH)
    ctl(both.box, "reset --undo 3")
    both.up("3")
    assert password(both, "3") != given
    must_pass(both.inventory)


def test_a_server_that_is_declared_again_gets_its_port_where_nobody_has_it(both: Fleet) -> None:
    both.deploy({"0": {}, "3": THREE, "4": FOUR})
    both.up("0")
    before = ports(both)
    assert sorted(before) == ["0", "3", "4"]
    both.deploy({"4": FOUR})
    # The ports of those that are gone are not given away either while others are free.
    both.deploy({"1": {}, "4": FOUR})
    both.up("1")
    new = ports(both)["1"]
    assert new not in before.values()
    both.deploy({"0": {}, "1": {}, "3": THREE, "4": FOUR})
    both.up("0")
    both.up("3")
    assert ports(both) == {**before, "1": new}
    # Who asks for it has it.
    both.deploy({"1": {}, "4": FOUR})
    both.deploy({"1": {"port": before["3"]}, "4": FOUR})
    ctl(both.box, "restart 1")
    both.deploy({"1": {"port": before["3"]}, "3": THREE, "4": FOUR})
    both.up("3")
    assert ports(both)["1"] == before["3"]
    assert ports(both)["3"] != before["3"]
    both.deploy(BOTH)


@pytest.mark.parametrize(
    "expression", ['os.environ["RCON_PASSWORD"]', 'subprocess.check_output(["cat", "{file}"], text=True).strip()']
)
def test_a_password_from_outside_is_as_invisible_and_works(
    both: Fleet, expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = secrets.token_hex(8)
    secret = f"{token}:%s{{}}$x'&|<*>"
    monkeypatch.setenv("RCON_PASSWORD", secret)
    (tmp_path / "store").write_text(f"{secret}\n")
    code = {"PASSWORD": expression.replace("{file}", str(tmp_path / "store"))}
    servers = {"3": THREE, "4": {**FOUR, "rcon_password": "PASSWORD"}}
    inventory = both.declare(servers, code)
    assert secret not in inventory.read_text()
    with trace(both.box, "execve", tmp_path / "trace") as ran:
        said = told(inventory)
    assert "systemctl" in ran.read_text()
    assert token not in ran.read_text()
    assert token not in said
    assert here(both, secret) == []
    assert places(both.box, secret) == [f"{SECRETS}/4/rcon-given.cfg"]
    assert both.row("4")["next_map"]
    ctl(both.box, "restart 4")
    both.up("4")
    assert '"four"' in both.says("4", "hostname")
    assert_idle(deploy(inventory), [both.box])
    # The host makes one again, and the given one is gone.
    both.deploy(BOTH)
    assert places(both.box, secret) == []
    ctl(both.box, "restart 4")
    both.up("4")
    assert '"four"' in both.says("4", "hostname")


def test_a_server_that_is_to_be_down_and_cannot_be_unmounted_fails_its_deploy(both: Fleet) -> None:
    both.box.run(f"systemd-run --quiet --unit=holder --working-directory={RUNTIME}/4/merged sleep 600")
    servers = {"3": THREE, "4": {**FOUR, "state": "stopped"}}
    done = pyinfra(both.declare(servers), "deploy.py", "-y")
    both.box.run("systemctl stop holder")
    assert done.returncode == 1
    assert "(sleep) by its cwd" in done.stderr
    ctl(both.box, "doctor --fix")
    both.deploy(servers)
    assert state(both.box, "3") == "active"


def remains(box: Box, server: str) -> list[str]:
    """Return what is there of a server, but for its user, the attic and the records of jobs, which have numbers too."""
    places = "/etc/left4me /etc/systemd/system /var/lib/left4me /run/left4me"
    places += f" \\( -path {ATTIC} -o -path /var/lib/left4me/jobs \\) -prune -o"
    names = f"-path '*/{server}' -o -path '*/{server}/*' -o -path '*left4me-server@{server}.*' -o -path '*/{server}.*'"
    return box.run(f"find {places} \\( {names} \\) -print 2>/dev/null || true").stdout.splitlines()


@pytest.fixture
def played(both: Fleet) -> Iterator[Fleet]:
    """Two play on server 4, which has written something, and is in nobody's way afterwards."""
    both.says("4", "standin_players 2")
    both.box.run(f"echo mine >{RUNTIME}/4/merged/left4dead2/logs/mine.log")
    yield both
    ctl(both.box, "restart 4")


def test_a_server_with_players_is_left_alone_and_goes_when_they_are_gone(played: Fleet) -> None:
    before, pid = inodes(played.box), main_pid(played.box, "4")
    assert len(remains(played.box, "4")) > 15
    done = pyinfra(played.declare({"3": THREE}), "deploy.py", "-y", "--json")
    assert done.returncode == 0, done.stderr
    assert ALONE in done.stderr
    assert_idle(json.loads(done.stdout)["results"], [played.box])
    assert (inodes(played.box), main_pid(played.box, "4")) == (before, pid)
    assert "no longer declared, kept: 2 players" in must_pass(played.inventory)
    played.says("4", "standin_players 0")
    done = pyinfra(played.inventory, "deploy.py", "-y", "--json")
    assert ALONE not in done.stderr
    assert changed(json.loads(done.stdout)["results"])[:1] == ["Remove the servers that are not declared"]
    assert remains(played.box, "4") == []
    assert state(played.box, "4") == "inactive"
    assert state(played.box, "3") == "active"
    assert played.box.run(f"grep -rl mine {ATTIC}", check=False).stdout.endswith("/upper/left4dead2/logs/mine.log\n")
    must_pass(played.inventory)
    assert_idle(deploy(played.inventory), [played.box])

    # It was a typo.
    played.deploy(BOTH)
    played.up("4")
    mine = f"{RUNTIME}/4/merged/left4dead2/logs/mine.log"
    assert played.box.run(f"cat {mine}", check=False).returncode != 0
    ctl(played.box, "reset --undo 4")
    assert played.box.run(f"cat {mine}").stdout == "mine\n"
    assert_idle(deploy(played.inventory), [played.box])


def test_absent_does_not_wait_for_players(played: Fleet) -> None:
    servers = {"3": THREE, "4": {**FOUR, "state": "absent"}}
    done = pyinfra(played.declare(servers), "deploy.py", "-y")
    assert done.returncode == 0, done.stderr
    assert ALONE not in done.stderr
    assert remains(played.box, "4") == []
    assert_idle(deploy(played.inventory), [played.box])
    must_pass(played.inventory)
    played.deploy(BOTH)


def test_a_server_that_does_not_answer_is_left_alone(both: Fleet) -> None:
    pid = main_pid(both.box, "4")
    both.box.run(f"kill -STOP {pid}")
    done = pyinfra(both.declare({"3": THREE}), "deploy.py", "-y", "--json")
    both.box.run(f"kill -CONT {pid}")
    assert ALONE in done.stderr
    assert_idle(json.loads(done.stdout)["results"], [both.box])
    assert main_pid(both.box, "4") == pid


def test_a_server_that_is_down_goes_at_once(both: Fleet) -> None:
    ctl(both.box, "stop 4")
    both.deploy({"3": THREE})
    assert remains(both.box, "4") == []
    # And runs when it is declared again, whoever stopped it then.
    both.deploy(BOTH)
    wait_for_state(both.box, "4", "active")


def test_what_is_not_declared_any_more_goes(both: Fleet) -> None:
    three = {**THREE, "admins": [], "layers": [], "exec": []}
    both.box.run("groupadd --force games; touch /etc/left4me/servers/3/more /etc/left4me/servers/3/.server.cfg.0123")
    both.deploy({"3": THREE, "4": FOUR}, operators="games", webhook="http://127.0.0.1:9/")
    files = "/etc/left4me/servers/3/admins_simple.ini /etc/sudoers.d/left4me /etc/left4me/webhook"
    both.box.run(f"ls {files}")
    both.deploy({"3": three, "4": FOUR})
    gone = f"{files} /etc/left4me/servers/3/more /etc/left4me/servers/3/.server.cfg.0123"
    assert both.box.run(f"ls -d {gone}", check=False).stdout == ""
    # The layer that a running server has stays until that one is restarted.
    layers = "/var/lib/left4me/overlays"
    assert both.box.run(f"ls {layers}").stdout.split() == ["evening", "left4me-admins"]
    ctl(both.box, "restart 3")
    both.deploy({"3": three, "4": FOUR})
    assert both.box.run(f"ls {layers}").stdout.split() == []
    must_pass(both.inventory)
