"""l4d2ctl rcon, and what status says of a change that the game reads at its next map."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import ctl, main_pid, state, wait_for_state
from tests.integration.harness import name_over_a2s, wait_for, wait_for_server

PASSWORD = "correct horse"
CFG = "/etc/left4me/servers/3/server.cfg"
SECRETS = "/var/lib/left4me/secrets/3"


@pytest.fixture
def host(deployed: Box) -> Box:
    """Have server 3 run, with a password of its own that it and its secret agree on."""
    declare(deployed, "three")
    give(deployed, PASSWORD)
    ctl(deployed, "restart 3")
    wait_for_server(deployed, 27015)
    wait_for("its configuration was read", lambda: not status(deployed)["next_map"])
    return deployed


def declare(box: Box, hostname: str, secret: str = "rcon.cfg") -> None:
    """Put a server.cfg in place as a deploy does it: by a rename, and some time after it was written."""
    lines = [f'hostname "{hostname}"', f"exec left4me/secret/{secret}", f"echo left4me: server.cfg {hostname} was read"]
    box.run(f"cat >{CFG}.new; touch -d '1 hour ago' {CFG}.new; mv {CFG}.new {CFG}", input="\n".join(lines).encode())


def give(box: Box, password: str, name: str = "rcon.cfg") -> None:
    """Put the secret in place of what may be there."""
    box.run(f"""
        mkdir -p {SECRETS}; rm -f {SECRETS}/*
        echo 'rcon_password "{password}"' >{SECRETS}/{name}
        chown -R left4me-3:root {SECRETS}; chmod 400 {SECRETS}/{name}; chmod 500 {SECRETS}
    """)


def status(box: Box) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(ctl(box, "status --json 3").stdout)[0]
    return row


def refused(box: Box, words: str = "rcon 3 status") -> str:
    """Return the one line with which a command fails; the password is not in it."""
    done = ctl(box, words, code=1)
    assert not done.stdout
    [line] = done.stderr.splitlines()
    assert PASSWORD not in line
    return line


def test_the_console_answers(host: Box) -> None:
    said = ctl(host, "rcon 3 status").stdout.splitlines()
    assert said[0] == "hostname: three"
    assert "map     : c1m1_hotel" in said
    assert said[-1] == "#end"
    assert ctl(host, "rcon 3 echo two  words").stdout == "two words\n"
    assert ctl(host, "rcon 3 sv_cheats 1").stdout == ""
    assert '"sv_cheats" = "1"' in ctl(host, "rcon 3 sv_cheats").stdout
    declare(host, "three", "rcon-given.cfg")
    give(host, PASSWORD, "rcon-given.cfg")
    assert ctl(host, "rcon 3 echo given").stdout == "given\n"


@pytest.mark.parametrize("typed", ["-- echo here", "echo here", "--help", "-n 3", "+map", "--all"])
def test_a_command_begins_with_what_it_likes(host: Box, typed: str) -> None:
    word = typed.removeprefix("-- ").split()[0]
    wanted = "here" if word == "echo" else f'Unknown command "{word}"'
    assert ctl(host, f"rcon 3 {typed}").stdout == f"{wanted}\n"


def test_a_long_answer_is_whole(host: Box) -> None:
    # As many lines as make several packets of 4096 bytes.
    said = ctl(host, f"rcon 3 {shlex.quote(';'.join(f'echo line {number}' for number in range(250)))}").stdout
    assert said.splitlines() == [f"line {number}" for number in range(250)]
    ctl(host, "rcon 3 standin_players 200")
    players = [line for line in ctl(host, "rcon 3 status").stdout.splitlines() if '"Player' in line]
    assert len(players) == 200
    assert len("".join(players)) > 3 * 4096


def test_what_a_game_says_does_no_harm_to_a_terminal(host: Box) -> None:
    assert ctl(host, "rcon 3 $'echo a\\e[2Jb'").stdout == "a?[2Jb\n"


def test_quit_is_an_end_and_no_error(host: Box) -> None:
    assert ctl(host, "rcon 3 quit").stdout == ""
    wait_for_state(host, "3", "inactive")
    assert "is not running" in refused(host)


def test_a_wrong_password(host: Box) -> None:
    give(host, "another")
    assert "refuses its RCON password" in refused(host)


def test_no_secret(host: Box) -> None:
    host.run(f"rm -r {SECRETS}")
    assert "has no RCON password: deploy" in refused(host)


def test_a_server_that_hangs(host: Box) -> None:
    ctl(host, "rcon 3 standin_hang 12")
    assert "does not answer within 5 s" in refused(host)
    wait_for_server(host, 27015, 60)


def test_what_runs_is_asked_and_told_its_password_wherever_it_is_declared_to_be_next(host: Box) -> None:
    env = "/etc/left4me/servers/3/server.env"
    host.run(f"sed -i.old s/27015/27016/ {env}")  # which is server 4's
    assert "hostname: three" in ctl(host, "rcon 3 status").stdout
    assert (status(host)["port"], status(host)["map"]) == (27015, "c1m1_hotel")
    host.run(f"mv {env}.old {env}")


def test_the_password_is_for_nobody_else_who_has_the_port(host: Box) -> None:
    ctl(host, "rcon 3 quit")
    wait_for_state(host, "3", "inactive")
    # In the unit's place, with its environment, by another user.
    drop_in = "/run/systemd/system/left4me-server@3.service.d"
    listen = "import socket, signal; s = socket.create_server(('', 27015)); signal.pause()"
    text = f'[Service]\nExecStart=\nExecStart=+/usr/bin/python3 -c "{listen}"\n'
    host.run(f"mkdir -p {drop_in}; cat >{drop_in}/other.conf; systemctl daemon-reload", input=text.encode())
    ctl(host, "start 3")
    wait_for("it listens", lambda: bool(host.run("grep -i ':6987 .* 0A ' /proc/net/tcp", check=False).stdout))  # 27015
    assert "listens on port 27015" in refused(host)
    host.run(f"systemctl stop left4me-server@3; rm -r {drop_in}; systemctl daemon-reload")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rcon", "ID"),
        ("rcon 3", "rcon needs a command"),
        ("rcon 3 --", "rcon needs a command"),
        ("rcon 9 status", "server 9 is not declared"),
        ("rcon --all status", "--all"),
    ],
)
def test_a_wrong_command_line(host: Box, words: str, said: str) -> None:
    done = ctl(host, words, code=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_password_is_nowhere(host: Box) -> None:
    ctl(host, "rcon 3 status")
    assert PASSWORD not in host.run("journalctl --no-pager -o cat").stdout
    assert PASSWORD not in host.run(f"cat /proc/{main_pid(host, '3')}/cmdline").stdout


@pytest.mark.parametrize("what", ["server.cfg", "admins", "secret"])
def test_a_change_waits_for_the_next_map(host: Box, what: str) -> None:
    pid = main_pid(host, "3")
    assert ctl(host, "status 3").stdout.splitlines()[1].endswith("\t-")
    if what == "server.cfg":
        declare(host, "four")
    elif what == "admins":
        host.run('echo \'"STEAM_1:0:1" "z"\' >/etc/left4me/servers/3/admins_simple.ini')
    else:
        give(host, PASSWORD)
    for _ in range(2):
        assert status(host)["next_map"]
        assert ctl(host, "status 3").stdout.splitlines()[1].endswith("\tat the next map")
    # A player may be called left4me, and say anything.
    ctl(host, "rcon 3 echo left4me: server.cfg was read")
    ctl(host, f"rcon 3 echo left4me: server.cfg {'three' if what == 'server.cfg' else 'three!'} was read")
    assert status(host)["next_map"]
    ctl(host, "rcon 3 changelevel c2m1_highway")
    wait_for("the next map", lambda: status(host)["map"] == "c2m1_highway")
    assert name_over_a2s(host, 27015) == ("four" if what == "server.cfg" else "three")
    wait_for("the journal has it", lambda: not status(host)["next_map"])
    assert main_pid(host, "3") == pid


def test_a_restart_is_the_next_map_too(host: Box) -> None:
    declare(host, "four")
    env = "/etc/left4me/servers/3/server.env"
    host.run(f"sed -i.old 's/GENERATION=\"/&x/' {env}")
    assert status(host)["next_map"]
    assert ctl(host, "status 3").stdout.splitlines()[1].endswith("\trestart required")
    ctl(host, "stop 3")
    assert not status(host)["next_map"]
    # What was read is not looked for in the journal where the game is the younger.
    host.run("mkdir -p /run/bin; ln -sf /bin/false /run/bin/journalctl")
    ctl(host, "start 3")
    row = host.run("PATH=/run/bin:$PATH l4d2ctl status 3").stdout.splitlines()[1]
    assert re.search(r"\tactive\t.*\t-$", row), row
    host.run(f"mv {env}.old {env}; rm -r /run/bin")


def test_completion(host: Box) -> None:
    script = """
        . /usr/local/share/bash-completion/completions/l4d2ctl
        for words in 'l4d2ctl rc' 'l4d2ctl rcon 3' 'l4d2ctl rcon 3 3'; do
            COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _l4d2ctl; echo "${COMPREPLY[*]}"
        done
    """
    assert host.run("bash", input=script.encode()).stdout == "rcon\n3\n\n"
    assert state(host, "3") == "active"
