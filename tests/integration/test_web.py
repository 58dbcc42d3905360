"""The page's Cockpit: what a deploy installs, where it listens, whom it lets in, and what stays when it goes."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.boxes.boxes import Box
from tests.integration.harness import (
    ROOT,
    assert_idle,
    changed,
    deploy,
    properties,
    pyinfra,
    standing,
    started,
    write_inventory,
)
from tests.integration.probe import ATTEMPT, PROBE, as_user
from tests.integration.test_verification import must_fail, must_pass
from tests.integration.trap import Trap, attached, kill_both

LOOPBACK = "127.0.0.1:9090"
DROP_IN = "/etc/systemd/system/cockpit.socket.d/left4me.conf"
SETTINGS = "/etc/cockpit/cockpit.conf"
PASSWORD = "a-long-walk"
# What a browser does: the login page, a page without a login, the login, the page.
BROWSER = """
import base64, hashlib, http.client, json, ssl, sys
address, port, user, password, login = sys.argv[1:]
connection = http.client.HTTPSConnection(address, int(port), context=ssl._create_unverified_context(), timeout=30)
def get(path, **headers):
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read()
said = {}
answer, body = get("/left4me")
said["login page"] = [answer.status, b"login" in body]
said["may name another host"] = b'"connect":true' in body
without = get("/cockpit/@localhost/left4me/index.html")[1]
secret = base64.b64encode(f"{user}:{password}".encode()).decode()
answer, body = get(login, Authorization=f"Basic {secret}")
said["login"] = answer.status if login == "/cockpit/login" else [answer.status, answer.reason]
cookie = (answer.getheader("set-cookie") or "").partition(";")[0]
answer, body = get("/cockpit/@localhost/left4me/index.html", Cookie=cookie)
said["page"] = [answer.status, hashlib.sha256(body).hexdigest()]
said["page without login"] = without == body
print(json.dumps(said))
"""
LEFT = """
    find / -xdev '(' -path /proc -o -path /sys -o -path /var/cache -o -path /usr/local/lib/left4me ')' -prune -o \
        -iname '*cockpit*' -print
    systemctl list-unit-files --no-legend '*cockpit*'
    ls /var/lib/left4me | grep web || true
    dpkg-query -W -f '${Package} ${db:Status-Status}\\n' | grep cockpit || true
    ps -e -o user=,comm= | grep cockpit || true
"""


@pytest.fixture(scope="module")
def operators(deployed: Box) -> Box:
    """The deployed box with a group of operators: anna, and bert, who has no password; carl is in no group."""
    deployed.run(f"""
        groupadd games-ops
        useradd --create-home --shell /bin/bash --groups games-ops anna
        useradd --create-home --groups games-ops bert
        useradd --create-home carl
        printf '%s\\n' anna:{PASSWORD} carl:{PASSWORD} root:{PASSWORD} | chpasswd
    """)
    deployed.run(f"cat >{PROBE}", input=ATTEMPT.encode())
    return deployed


class Hosts(NamedTuple):
    """The box, and where its inventories are written."""

    box: Box
    folder: Path

    def declares(self, listen: str | None, **data: Any) -> Path:
        """Write the data of the box."""
        web = {"listen": listen, **data} if listen else None
        return write_inventory(self.folder / "inventory", [self.box], operators="games-ops", web=web)

    def deploys(self, listen: str | None, **data: Any) -> str:
        """Deploy, and return what is said."""
        done = pyinfra(self.declares(listen, **data), "deploy.py", "-y")
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
        assert done.returncode == 0, said
        assert "Traceback" not in said
        return said


@pytest.fixture
def hosts(operators: Box, tmp_path: Path) -> Iterator[Hosts]:
    """A box without Cockpit, before and after."""
    found = Hosts(operators, tmp_path)
    yield found
    apt(operators, "purge needs-cockpit needs-library")
    operators.run("rm -f /etc/cockpit/cockpit.conf")
    found.deploys(None)
    apt(operators, "purge --auto-remove cockpit-ws cockpit-system")
    operators.run("rm -rf /etc/cockpit")
    assert left(operators) == []


def apt(box: Box, words: str) -> None:
    """Install or remove packages as an administrator does. It is no error to remove what is not there."""
    command = f"DEBIAN_FRONTEND=noninteractive apt-get -qq --yes --no-install-recommends {words}"
    box.run(command, check=words.startswith("install"), timeout=300)


def left(box: Box) -> list[str]:
    """Return what there is of Cockpit on a box."""
    return box.run(LEFT).stdout.splitlines()


def packages(box: Box) -> set[str]:
    return {*box.run("dpkg-query -W -f '${Package} ${Status}\\n'").stdout.splitlines()}


def listening(box: Box) -> set[str]:
    """Return where TCP is listened on, except SSH and the games' RCON."""
    lines = box.run("ss --tcp --listening --numeric --no-header").stdout.splitlines()
    ends = {line.split()[3].replace("*:", "[::]:") for line in lines}
    return {end for end in ends if end.rpartition(":")[2] not in ("22", "27015", "27016")}


def since(box: Box) -> dict[str, str]:
    """Return when cockpit.socket was started: its restart ends all sessions."""
    return properties(box, "cockpit.socket", "ActiveEnterTimestampMonotonic")


def browse(
    box: Box, listen: str = LOOPBACK, user: str = "anna", login: str = "/cockpit/login", outside: bool = False
) -> dict[str, Any]:
    """Return what a browser gets, on the box itself or from outside."""
    address, _, port = listen.rpartition(":")
    words = ["python3", "-c", BROWSER, address.strip("[]"), port, user, PASSWORD, login]
    if outside:
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    else:
        output = box.run(shlex.join(words)).stdout
    said: dict[str, Any] = json.loads(output)
    return said


PAGE = [200, sha256((ROOT / "files/cockpit/index.html").read_bytes()).hexdigest()]
WORKS = {"login page": [200, True], "login": 200, "page": PAGE, "page without login": False}
WORKS |= {"may name another host": False}
ON_LOOPBACK = {**WORKS, "may name another host": True}
"""As Debian ships it, for who has reached the host already."""


@contextmanager
def binds(box: Box) -> Iterator[set[str]]:
    """Collect every address and port that PID 1 of the box binds, even for a moment."""
    found: set[str] = set()
    with attached("-p", str(box.leader), "-e", "trace=bind") as strace:
        try:
            yield found
        finally:
            strace.terminate()
            assert strace.stderr
            for line in strace.stderr.read().splitlines():
                if end := re.search(r"sin6?_port=htons\((\d+)\).*\"([0-9a-f.:]+)\"", line):
                    found.add(f"[{end[2]}]:{end[1]}" if ":" in end[2] else f"{end[2]}:{end[1]}")


def test_operators_reach_the_page_and_nobody_else_does(hosts: Hosts) -> None:
    box = hosts.box
    inventory = hosts.declares(LOOPBACK)
    before = packages(box)
    done = pyinfra(inventory, "deploy.py", "--dry")
    assert "installs cockpit-ws and cockpit-system, and lets Cockpit listen on 127.0.0.1:9090" in done.stderr
    assert packages(box) == before
    assert left(box) == []
    must_fail(inventory, "package cockpit-ws is not installed")

    with binds(box) as bound:
        said = hosts.deploys(LOOPBACK)
    assert bound == {LOOPBACK}
    assert listening(box) == {LOOPBACK}
    address = box.address
    assert f"the page: ssh -L 9090:127.0.0.1:9090 {address}, then https://localhost:9090/left4me" in said
    assert "log in as a user of group games-ops with a password; without one: bert; to set it: passwd bert" in said
    assert browse(box) == ON_LOOPBACK
    assert browse(box, user="root")["login"] in (401, 403)
    assert browse(box, user="bert")["login"] == 401
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((str(box.address), 9090), timeout=5)
    must_pass(inventory)

    attempt = "reach('127.0.0.1', 9090)"
    assert as_user(box, "left4me-3", [attempt]) == {attempt: "ECONNREFUSED"}
    connect = "import socket; socket.create_connection(('127.0.0.1', 9090), 5)"
    box.run(f'runuser --user=carl -- python3 -c "{connect}"')

    was, recorded = standing(box), box.run("cat /var/lib/left4me/web-packages").stdout
    assert {"cockpit-ws", "cockpit-system", "cockpit-bridge"} <= {*recorded.split()}
    assert not {line.split()[0] for line in before} & {*recorded.split()}
    assert_idle(deploy(inventory), [box])
    assert standing(box) == was


def test_a_change_of_the_address_ends_sessions_and_nothing_else_does(hosts: Hosts) -> None:
    box = hosts.box
    public = f"{box.address}:9443"
    hosts.deploys(LOOPBACK)
    browse(box)

    # A deploy that changes other things leaves the sessions alone.
    began = since(box)
    box.run(f"chmod 600 {DROP_IN} && echo >>/usr/local/share/cockpit/left4me/index.html")
    box.run("touch /usr/local/share/cockpit/left4me/more.js")
    written = ["Remove files that are not declared", "Install the page", "Let Cockpit show the page"]
    assert changed(deploy(hosts.declares(LOOPBACK))) == written
    assert since(box) == began
    assert browse(box)["page"] == PAGE

    with binds(box) as bound:
        said = hosts.deploys(public)
    assert bound == {public}
    assert f"lets Cockpit listen on {public} instead of {LOOPBACK}: sessions in Cockpit end" in said
    assert f"the page: https://{public}/left4me" in said
    assert listening(box) == {public}
    assert since(box) != began
    assert browse(box, public, outside=True) == WORKS
    must_pass(hosts.declares(public))
    must_fail(hosts.declares(LOOPBACK), f"Cockpit listens on {re.escape(public)}, must be {LOOPBACK}")
    assert_idle(deploy(hosts.declares(public)), [box])

    # Nobody may use the login for other hosts, as one may on loopback.
    other = "/cockpit+=127.0.0.1/login"
    refused = browse(box, public, login=other, outside=True)["login"]
    box.run(f"rm {SETTINGS}")
    must_fail(hosts.declares(public), "must have LoginTo = false")
    assert changed(deploy(hosts.declares(public))) == ["Let Cockpit show the page"]
    assert browse(box, public, login=other, outside=True)["login"] == refused
    hosts.deploys(LOOPBACK)
    assert listening(box) == {LOOPBACK}
    box.run(f"test ! -e {SETTINGS}")
    assert browse(box, login=other)["login"] != refused

    # Somebody else's settings stay.
    box.run(f"printf '[WebService]\nLoginTitle = mine\n' >{SETTINGS}")
    said = hosts.deploys(public)
    assert f"{SETTINGS} is not left4me's, and stays: set LoginTo = false" in said
    must_fail(hosts.declares(public), "must have LoginTo = false")
    box.run(f"echo LoginTo=no >>{SETTINGS}")
    assert "LoginTo" not in hosts.deploys(public)
    assert "mine" in box.run(f"cat {SETTINGS}").stdout


@pytest.mark.parametrize(
    ("listen", "taken", "why"),
    [
        ("127.0.0.1:22", "true", "web.listen: 22 is the port of sshd on this host"),
        (
            "127.0.0.1:9191",
            "systemd-run -q --unit=taken python3 -m http.server 9191; until ss -ltn | grep -q 9191; do :; done",
            "web.listen: something else listens on port 9191 of this host: choose another",
        ),
    ],
    ids=["ssh", "another"],
)
def test_a_port_of_something_else_is_refused_before_anything_changes(
    hosts: Hosts, listen: str, taken: str, why: str
) -> None:
    box = hosts.box
    box.run(taken)
    try:
        done = pyinfra(hosts.declares(listen), "deploy.py", "-y")
        assert done.returncode == 1, done.stderr
        assert f"refused, nothing changed: {why}" in done.stderr
        assert left(box) == []
    finally:
        box.run("systemctl stop taken", check=False)


def test_an_address_that_comes_later_is_said_and_works_then(hosts: Hosts) -> None:
    said = hosts.deploys("192.0.2.9:9090")
    assert "web.listen: this host has no address 192.0.2.9 now; Cockpit answers when it has" in said
    hosts.box.run("ip address add 192.0.2.9/32 dev lo")
    try:
        assert browse(hosts.box, "192.0.2.9:9090") == WORKS
    finally:
        hosts.box.run("ip address del 192.0.2.9/32 dev lo")
    hosts.deploys("[::1]:9090")
    assert listening(hosts.box) == {"[::1]:9090"}
    assert browse(hosts.box, "[::1]:9090") == ON_LOOPBACK
    must_pass(hosts.declares("[::1]:9090"))


def test_root_who_may_log_in_is_told(hosts: Hosts) -> None:
    hosts.deploys(LOOPBACK)
    hosts.box.run("echo nobody >/etc/cockpit/disallowed-users")
    told = "root may log in to Cockpit: write root into /etc/cockpit/disallowed-users"
    assert told in hosts.deploys(LOOPBACK)
    must_fail(hosts.declares(LOOPBACK), "must have root, who may otherwise log in to Cockpit")


DEBS = """
    for name in needs-cockpit:cockpit-ws needs-library:libproxy1v5; do
        mkdir -p /var/cache/deb/DEBIAN
        printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDepends: %s\n' \
            ${name%:*} ${name#*:} >/var/cache/deb/DEBIAN/control
        echo 'Description: x' >>/var/cache/deb/DEBIAN/control
        dpkg-deb --build /var/cache/deb /var/cache/${name%:*}.deb; rm -r /var/cache/deb
    done
"""


def test_what_was_installed_for_the_page_goes_with_it_and_nothing_else(hosts: Hosts) -> None:
    box = hosts.box
    before = packages(box)
    hosts.deploys(f"{box.address}:9090")
    browse(box, f"{box.address}:9090", outside=True)
    # Now somebody else's packages need one of those that came with Cockpit.
    box.run(DEBS)
    apt(box, "install /var/cache/needs-library.deb")
    must_fail(hosts.declares(None), "is left of a page that is no longer declared")
    with binds(box) as bound:
        said = hosts.deploys(None)
    assert bound == set()
    assert "removes Cockpit, which an earlier deploy installed: sessions in Cockpit end" in said
    assert left(box) == []
    assert listening(box) == set()
    added = {line.split()[0] for line in packages(box) - before}
    assert {"needs-library", "libproxy1v5"} <= added
    assert not [name for name in added if "cockpit" in name]
    assert before <= packages(box)
    must_pass(hosts.declares(None))
    was = standing(box)
    assert_idle(deploy(hosts.declares(None)), [box])
    assert standing(box) == was


def test_a_cockpit_that_others_need_stays_and_is_silent(hosts: Hosts) -> None:
    box = hosts.box
    hosts.deploys(LOOPBACK)
    box.run(DEBS)
    apt(box, "install /var/cache/needs-cockpit.deb")
    with binds(box) as bound:
        said = hosts.deploys(None)
    assert "Cockpit stays, since needs-cockpit need it, but does not listen" in said
    assert bound == set()
    assert listening(box) == set()
    assert {"cockpit-ws install ok installed", "needs-cockpit install ok installed"} <= packages(box)
    box.run(f"test ! -e {DROP_IN} -a ! -e /usr/local/share/cockpit")
    must_pass(hosts.declares(None))
    assert_idle(deploy(hosts.declares(None)), [box])


def test_somebody_elses_cockpit_is_left_alone(hosts: Hosts) -> None:
    box = hosts.box
    apt(box, "install cockpit-ws")
    assert listening(box) == {"[::]:9090"}
    # As it may be left by a deploy that was killed before the installation.
    box.run(f"mkdir -p /etc/systemd/system/cockpit.socket.d && echo '[Socket]' >{DROP_IN}")
    began = since(box)
    recorded = packages(box)
    said = hosts.deploys("127.0.0.1:9292")
    for line in (
        "web.listen has no effect: cockpit-ws was installed before, and its own configuration stays",
        "that Cockpit listens on [::]:9090",
        "cockpit-system is not installed, which the page needs: apt-get install cockpit-system",
    ):
        assert line in said
    apt(box, "install cockpit-system")
    inventory = hosts.declares("127.0.0.1:9292")
    assert_idle(deploy(inventory), [box])
    must_pass(inventory)
    assert listening(box) == {"[::]:9090"}
    assert browse(box) == ON_LOOPBACK
    box.run(f"test ! -e {DROP_IN} -a ! -e {SETTINGS} -a ! -e /var/lib/left4me/web-packages")
    hosts.deploys(None)
    assert recorded <= packages(box)
    assert listening(box) == {"[::]:9090"}
    assert since(box) == began
    box.run("test ! -e /usr/local/share/cockpit/left4me")


@pytest.mark.alternating
@pytest.mark.parametrize(
    ("syscall", "call", "program"),
    [
        ("rename", r"web-packages", "set_up_cockpit"),
        ("/^rename", r"/cockpit/.*\.dpkg-new", "dpkg"),
        ("connect", r"AF_UNIX", "systemctl --quiet daemon-reload"),
        ("connect", r"AF_UNIX", "systemctl --quiet restart cockpit.socket"),
    ],
    ids=["recorded", "unpacking", "reload", "restart"],
)
def test_a_killed_deploy_is_finished_by_the_same_command(hosts: Hosts, syscall: str, call: str, program: str) -> None:
    box = hosts.box
    listen = LOOPBACK
    if syscall == "connect":  # at a change of the address
        hosts.deploys(f"{box.address}:9090")
        browse(box, f"{box.address}:9090", outside=True)
    with binds(box) as bound:
        with Trap(box, syscall) as trap, started(hosts.declares(listen), "deploy.py", "-y") as deploying:
            kill_both(deploying, trap.landing(call, program))
        must_fail(hosts.declares(listen), "must be|is not installed")
        hosts.deploys(listen)
    assert bound == {listen}
    assert listening(box) == {listen}
    assert browse(box) == ON_LOOPBACK
    must_pass(hosts.declares(listen))
    assert_idle(deploy(hosts.declares(listen)), [box])


@pytest.mark.alternating
@pytest.mark.parametrize(
    ("syscall", "call", "program"),
    [
        ("connect", r"AF_UNIX", "systemctl --quiet disable --now cockpit.socket"),
        ("/^unlink", r"/usr/share/cockpit/", "dpkg"),
        ("unlink", r"cockpit\.socket\.d/left4me\.conf", "remove_cockpit"),
    ],
    ids=["stop", "removing", "drop-in"],
)
def test_a_killed_removal_is_finished_by_the_same_command(hosts: Hosts, syscall: str, call: str, program: str) -> None:
    box = hosts.box
    hosts.deploys(LOOPBACK)
    with binds(box) as bound:
        with Trap(box, syscall) as trap, started(hosts.declares(None), "deploy.py", "-y") as deploying:
            kill_both(deploying, trap.landing(call, program))
        hosts.deploys(None)
    assert bound == set()
    assert left(box) == []
    assert not [line for line in packages(box) if "cockpit" in line]
    assert_idle(deploy(hosts.declares(None)), [box])


def test_left4me_goes_with_the_page(hosts: Hosts) -> None:
    box = hosts.box
    hosts.deploys(f"{box.address}:9090")
    data = ("--limit", box.name, "-y", "--data", f"remove={box.name}")
    done = pyinfra(hosts.declares(LOOPBACK), "remove.py", *data)
    assert done.returncode == 0, done.stderr
    assert "removes Cockpit, which a deploy installed for the page, and the packages that only it needs" in done.stderr
    assert left(box) == []
    assert listening(box) == set()
    find = "find / /run -xdev -name '*left4me*' -not -path '/root/left4me-*.tar.gz'; ls -d /usr/local/share/cockpit"
    assert box.run(f"{find} 2>/dev/null; true").stdout == ""
