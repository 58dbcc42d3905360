"""The command that reaches a host, without one."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from left4me import connection
from left4me.rollout import waves

SECRET = 'it\'s a "$ecret"'
PASSWORDS: dict[str, Any] = {"_sudo": True, "_sudo_password": SECRET, "ssh_password": SECRET}
ASKPASS = Path(connection.__file__).with_name("ssh_askpass.sh")


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    "text", ["plain", "two\nlines", "it's \\n not \\0041 a newline!", "ä % $(false) `false` \\", "!\n"]
)
def test_a_line_reaches_any_shell_as_it_is(shell: str, text: str) -> None:
    line = connection.for_any_shell(shlex.join(["printf", "%s.", text]))
    assert "\n" not in line
    assert "!" not in line
    assert subprocess.run([shell, "-c", line], stdout=subprocess.PIPE, text=True, check=True).stdout == f"{text}."


@pytest.mark.parametrize("asks", [True, False])
def test_a_command_reads_its_own_input_whether_or_not_sudo_asked(tmp_path: Path, asks: bool) -> None:
    """A sudo that takes one line, or none, and then does as it should."""
    sudo = tmp_path / "sudo"
    takes = 'IFS= read -r password; printf %s "$password" >' + str(tmp_path / "taken") if asks else ":"
    sudo.write_text(f'#!/bin/sh\n{takes}\nwhile [ "$1" != sh ]; do shift; done\nexec "$@"\n', encoding="utf-8")
    sudo.chmod(0o755)
    way = connection.command("@local", PASSWORDS, "cat")
    done = subprocess.run(
        way.words,
        env=way.full_environment | {"PATH": f"{tmp_path}:/usr/bin:/bin"},
        input=f"{way.stdin}its own\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "its own\n"
    assert not asks or (tmp_path / "taken").read_text(encoding="utf-8") == SECRET


def test_no_password_stands_in_a_command_line() -> None:
    way = connection.command("game1", PASSWORDS | {"ssh_key": "k", "ssh_key_password": SECRET}, "true")
    assert "ecret" not in " ".join(way.words)
    assert "ecret" not in connection.typed("game1", PASSWORDS, "l4d2ctl", "status")
    assert connection.typed("game1", PASSWORDS, "l4d2ctl", "status").endswith(" game1 'sudo l4d2ctl status'")


@pytest.mark.parametrize(
    ("asked", "starter", "answer"),
    [
        ("olga@game1's password: ", "left4me", "of the host"),
        ("(olga@game1) Password: ", "left4me", "of the host"),
        ("Enter passphrase for key '/home/o/.ssh/id': ", "left4me", "of the key"),
        # The server chose this text.
        ("(olga@game1) Enter passphrase for key 'id': ", "left4me", None),
        # ProxyJump or ProxyCommand: this ssh was started by ssh.
        ("olga@gate's password: ", "ssh", None),
        ("Are you sure you want to continue connecting (yes/no/[fingerprint])? ", "left4me", None),
    ],
)
def test_ssh_is_answered_for_the_host_alone(asked: str, starter: str, answer: str | None) -> None:
    pid = os.getpid() if starter == "left4me" else os.getppid()
    secrets = {"LEFT4ME_SSH_PASSWORD": "of the host", "LEFT4ME_KEY_PASSWORD": "of the key", "LEFT4ME_PID": str(pid)}
    as_ssh = ["sh", "-c", '"$0" "$1"; exit $?', str(ASKPASS), asked]
    environment = secrets | {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(as_ssh, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert done.stdout == (f"{answer}\n" if answer else "")
    assert bool(done.returncode) is (answer is None)


def test_no_password_is_shown_with_a_traceback() -> None:
    assert "ecret" not in repr(connection.command("game1", PASSWORDS, "true"))
    assert "ecret" not in repr(waves.Host("game1", frozenset(), PASSWORDS, ()))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Hello\nsudo: a password is required\n", "sudo asks for a password"),
        ("sudo-rs: interactive authentication is required\n", "sudo asks for a password"),
        ("Sorry, try again.\nsudo: 3 incorrect password attempts\n", "sudo rejects the password"),
        ("olga is not in the sudoers file.\n", "sudo: olga is not in the sudoers file"),
        ("o@h: Permission denied (publickey).\n", "o@h: Permission denied (publickey)."),
    ],
)
def test_why_a_host_is_not_reached(said: str, reason: str) -> None:
    assert connection.reason(said).startswith(reason)
