"""The webhook: who is told when a server fails, what, and that nobody waits for it."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Network
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import LAYER, RUNTIME, ctl, fleet, main_pid, rcon, state, wait_for_state
from tests.integration.harness import properties, wait_for, wait_for_server

FILE = "/etc/left4me/webhook"
CRASH = "left4me-notify@3:signal:killed:ABRT.service"


class Listener(ThreadingHTTPServer):
    """An address on the boxes' bridge that takes posts."""

    def __init__(self, address: str) -> None:
        self.bodies: queue.Queue[bytes] = queue.Queue()
        self.types: list[str | None] = []
        super().__init__((address, 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/api/webhooks/1/token"

    def told(self) -> str:
        """Return the content of the next post; fails where none comes."""
        body = json.loads(self.bodies.get(timeout=20))
        assert sorted(body) == ["allowed_mentions", "content"]
        assert body["allowed_mentions"] == {"parse": []}, "a player can name everyone"
        content: str = body["content"]
        assert len(content) <= 2000
        return content


class Handler(BaseHTTPRequestHandler):
    """Take a post, as Discord does: 204 and nothing."""

    server: Listener

    def do_POST(self) -> None:
        self.server.types.append(self.headers["Content-Type"])
        self.server.bodies.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def outside(box: Box) -> str:
    """Return the address of the bridge, as a box reaches this machine."""
    return str(IPv4Network(f"{box.address}/24", strict=False)[1])


@pytest.fixture(scope="module")
def listener(box: Box) -> Iterator[Listener]:
    with Listener(outside(box)) as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def inventory(box: Box, listener: Listener, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fleet(tmp_path_factory.mktemp("fleet") / "inventory", [box], webhook=listener.url)


@pytest.fixture
def host(deployed: Box, listener: Listener) -> Iterator[Box]:
    """Have server 3 run and the webhook told of nothing else than what the test does."""
    ctl(deployed, "start 3")
    wait_for_server(deployed, 27015)
    yield deployed
    wait_for_notifier(deployed)
    assert listener.bodies.empty(), listener.bodies.get()


def wait_for_notifier(box: Box) -> None:
    """Return when nobody is being told any more, whether it was done or not."""

    states = "systemctl list-units --no-legend --state=activating 'left4me-notify*'; systemctl list-jobs --no-legend"
    wait_for("no notifier runs", lambda: "notify" not in box.run(states).stdout)


def test_the_address_is_roots_to_read(deployed: Box, listener: Listener) -> None:
    assert deployed.run(f"stat -c '%a %U:%G' {FILE}; cat {FILE}").stdout == f"600 root:root\n{listener.url}\n"


def test_an_ordinary_end_tells_nobody(host: Box, listener: Listener) -> None:
    ctl(host, "restart 3")
    wait_for_server(host, 27015)
    ctl(host, "reset 3")
    wait_for_server(host, 27015)
    ctl(host, "stop 3")
    ctl(host, "start 3")
    wait_for_server(host, 27015)
    rcon(host, 27015, "quit")
    wait_for_state(host, "3", "inactive")


@pytest.mark.parametrize(("signal", "reason"), [("KILL", "was killed"), ("SEGV", "crashed"), ("ABRT", "crashed")])
def test_a_crash_in_mid_game_is_told_once_and_mended(host: Box, listener: Listener, signal: str, reason: str) -> None:
    before = main_pid(host, "3")
    rcon(host, 27015, "say the last words", f"standin_crash {signal}")
    text = listener.told()
    first, *rest = text.splitlines()
    assert first.startswith(f"{host.name}: server 3 {reason}")
    assert signal in first
    assert (rest[0], rest[-1]) == ("```", "```")
    # To systemd a SIGSEGV is an end like another.
    assert signal == "SEGV" or any("Main process exited" in line for line in rest)
    assert any("the last words" in line for line in rest)
    assert listener.types[-1] == "application/json"
    wait_for("server 3 runs again", lambda: main_pid(host, "3") not in ("0", before), 30)
    wait_for_server(host, 27015)


def test_a_crash_while_it_quits_is_told(host: Box, listener: Listener) -> None:
    rcon(host, 27015, "standin_segv_on_quit 1")
    ctl(host, "stop 3")
    assert "crashed" in listener.told().splitlines()[0]


def test_a_stop_that_cannot_unmount_is_told(host: Box, listener: Listener) -> None:
    rcon(host, 27015, "say Start request repeated too quickly")  # players say what they like
    host.run(f"systemd-run -q --unit=shell --working-directory={RUNTIME}/3/merged sleep 999")
    try:
        ctl(host, "stop 3", code=1)
        text = listener.told()
    finally:
        host.run("systemctl stop shell")
        ctl(host, "stop 3")
    assert "could not be unmounted" in text.splitlines()[0]
    assert f"umount2 {RUNTIME}/3/merged: Device or resource busy: held by" in text


def test_a_server_that_ignores_its_stop_is_told(host: Box, listener: Listener) -> None:
    rcon(host, 27015, "standin_ignore_sigint 1")
    ctl(host, "stop 3")
    assert "did not stop in time and was killed" in listener.told().splitlines()[0]


def test_a_server_that_cannot_start_is_told_in_the_end(host: Box, listener: Listener) -> None:
    ctl(host, "stop 3")
    layer = f"/var/lib/left4me/overlays/{LAYER}/current"
    host.run(f"mv {layer} {layer}.away; rm /var/lib/left4me/held/3; systemctl start left4me-server@3", check=False)
    try:
        texts = [listener.told() for _ in range(5)]
        assert state(host, "3") == "failed"
    finally:
        host.run(f"mv {layer}.away {layer}")
    assert all("server 3 did not start" in text for text in texts[:-1])
    assert "failed five times in five minutes and stays down" in texts[-1]
    assert layer in texts[-1]


ENVIRONMENT = "/etc/left4me/servers/3/server.env"


def test_a_server_whose_environment_went_while_it_ran_is_told(host: Box, listener: Listener) -> None:
    # systemd reads the file for each of its lines: without it none runs at the stop, and nothing is unmounted.
    host.run(f"mv {ENVIRONMENT} /run/server.env; systemctl stop left4me-server@3")
    try:
        first, *rest = listener.told().splitlines()
        assert f"{RUNTIME}/3/merged" in host.run("cat /proc/mounts").stdout
    finally:
        ctl(host, "stop 3")
        host.run(f"mv /run/server.env {ENVIRONMENT}")
    assert first == f"{host.name}: server 3 has ended, and its overlay could not be unmounted: l4d2ctl stop 3"
    assert any("Failed to load environment files" in line for line in rest)


def test_a_server_without_its_environment_does_not_start_and_is_told(host: Box, listener: Listener) -> None:
    ctl(host, "stop 3")
    host.run(f"mv {ENVIRONMENT} /run/server.env; rm /var/lib/left4me/held/3")
    try:
        host.run("systemctl start left4me-server@3", check=False)
        wait_for_state(host, "3", "failed", 60)
        text = listener.told()
    finally:
        host.run(f"mv /run/server.env {ENVIRONMENT}")
    assert "server 3 failed five times in five minutes and stays down" in text.splitlines()[0]
    assert "Failed to load environment files" in text


def test_a_reset_that_cannot_be_finished_at_the_boot_is_told(host: Box, listener: Listener) -> None:
    plan = "into=3@20260101T000000.000000000\\nback=\\nstart=\\n"
    host.run(f"printf '{plan}' >{RUNTIME}/3/reset; systemctl start left4me-finish-resets", check=False)
    text = listener.told()
    what = "a reset could not be finished at the boot, and its server stays down"
    assert text.splitlines()[0] == f"{host.name}: {what}"
    assert f"a reset of server 3 is not finished: server 3: {RUNTIME}/3/merged is mounted" in text
    ctl(host, "reset 3")
    assert host.run("systemctl list-units --failed --no-legend").stdout == ""


def test_long_lines_and_odd_ones_fit(host: Box, listener: Listener) -> None:
    for _ in range(10):
        line = "say " + "```@everyone é " * 60
        rcon(host, 27015, line)
    host.run("systemd-cat true")
    rcon(host, 27015, "standin_crash ABRT")
    text = listener.told()
    assert text.count("```") == 2
    wait_for_server(host, 27015)


@pytest.fixture
def black_hole(host: Box, listener: Listener) -> Iterator[socket.socket]:
    """Have the webhook at an address that takes connections and says nothing."""
    with socket.create_server((outside(host), 0)) as silent:
        host.run(f"echo http://{outside(host)}:{silent.getsockname()[1]}/ >{FILE}")
        yield silent
    host.run(f"echo {listener.url} >{FILE}")


def crash_and_cycle(host: Box) -> float:
    """Crash server 3, stop it, start it; return the seconds that the two commands took."""
    host.run(f"kill -ABRT {main_pid(host, '3')}")
    wait_for("it has failed", lambda: main_pid(host, "3") == "0")
    begin = time.monotonic()
    ctl(host, "stop 3")
    ctl(host, "start 3")
    return time.monotonic() - begin


def test_an_address_that_does_not_answer_delays_nothing(
    host: Box, listener: Listener, black_hole: socket.socket, record_property: Callable[[str, object], None]
) -> None:
    silent = crash_and_cycle(host)
    assert properties(host, CRASH, "ActiveState")["ActiveState"] == "activating", (
        "nobody waited for an answer: this proves nothing"
    )
    wait_for_server(host, 27015)
    host.run(f"systemctl stop {CRASH}; echo {listener.url} >{FILE}")
    answering = crash_and_cycle(host)
    listener.told()
    wait_for_server(host, 27015)
    record_property("seconds with an address that is silent, that answers", (silent, answering))
    assert silent < answering + 5


@pytest.fixture
def gibberish(host: Box) -> Iterator[str]:
    """An address that answers, and not by HTTP."""

    class Gibberish(StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.wfile.write(b"gibberish\r\n")

    with TCPServer((outside(host), 0), Gibberish) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{outside(host)}:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("address", ["http://{0}:9", "{1}", "nowhere:none"], ids=["refuses", "gibberish", "no-address"])
def test_an_address_that_does_not_take_it_is_said_in_the_journal(
    host: Box, listener: Listener, gibberish: str, address: str
) -> None:
    host.run(f"echo {address.format(outside(host), gibberish)}/secret-token >{FILE}")
    since = host.run("date +@%s.%6N").stdout.strip()
    host.run(f"kill -ABRT {main_pid(host, '3')}")

    def told() -> str:
        return host.run(f"journalctl -q -o cat --since={since} -u {CRASH}").stdout

    wait_for("it was tried", lambda: "Failed with result" in told())
    said = told()
    assert "cannot post to the webhook" in said
    assert "secret-token" not in said
    assert "Traceback" not in said
    # Nothing of it is left that a check of this host would find.
    assert host.run("systemctl list-units --all --no-legend --state=failed 'left4me-notify*'").stdout == ""
    host.run(f"echo {listener.url} >{FILE}")
    wait_for_server(host, 27015)


def test_without_a_webhook_nothing_runs(host: Box, listener: Listener) -> None:
    host.run(f"mv {FILE} /run/webhook")
    before = host.run("journalctl -q -o cat -u 'left4me-notify@*' | grep -c Starting", check=False).stdout
    host.run(f"kill -ABRT {main_pid(host, '3')}")
    wait_for_server(host, 27015)
    assert state(host, "3") == "active"
    assert host.run("journalctl -q -o cat -u 'left4me-notify@*' | grep -c Starting", check=False).stdout == before
    host.run(f"mv /run/webhook {FILE}")
