"""Turns a host's data into commands that reach the host, for lock, status, verification and rollout.

A deploy uses pyinfra's connection (left4me/pyinfra_connection.py); everything else starts ssh.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from left4me_host.instance import plain

MARK = "left4me-answer:"
"""This line separates a host's answer from what the login shell prints before."""

_ASKPASS = Path(__file__).with_name("ssh_askpass.sh")
_NO_PASSWORD = "left4me-no-password"
_ENOUGH = "x\n" * 9 + f"{_NO_PASSWORD}\n"
"""Input after the password. sudo asks three times, or as `passwd_tries` says; it never waits for more input."""


@dataclass(frozen=True)
class Command:
    """A command on a host, as this machine starts it: ssh, or sh for @local."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    stdin: str = field(default="", repr=False)
    """The first part of the standard input."""

    @property
    def full_environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


def as_root(line: str, data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the shell command that runs `line`, with sudo if `data` has `_sudo`, and the first part of its input."""
    if not data.get("_sudo"):
        return line, ""
    if not (password := data.get("_sudo_password")):
        return shlex.join(["sudo", "-H", "-n", "sh", "-c", line]), ""
    # sudo reads the password only if it needs one, so the shell skips unread lines. `read` consumes only whole lines.
    skip = f'while IFS= read -r line && [ "$line" != {_NO_PASSWORD} ]; do :; done; '
    return shlex.join(["sudo", "-H", "-k", "-S", "-p", "", "sh", "-c", skip + line]), f"{password}\n{_ENOUGH}"


def for_any_shell(line: str) -> str:
    """Return `line` encoded for any login shell: tcsh splits it at newlines and expands !."""
    if not re.search(r"[\n!]", line):
        return line
    packed = re.sub(r"[\\\n!']", lambda found: f"\\0{ord(found[0]):03o}", line)
    return f"sh -c 'eval \"$(printf %b \"$1\")\"' sh '{packed}'"


def command(name: str, data: Mapping[str, Any], *words: str) -> Command:
    """Return the command that runs `words` on a host as root; `@local` is this machine.

    ssh_config(5) supplies what `data` leaves out. Like pyinfra, ssh accepts a new host's key and refuses a changed
    key. ssh never prompts for the host itself; for a jump host it may.
    """
    line, stdin = as_root(shlex.join(words), data)
    if name == "@local":
        return Command(["sh", "-c", line], stdin=stdin)
    secrets = {"LEFT4ME_SSH_PASSWORD": "ssh_password", "LEFT4ME_KEY_PASSWORD": "ssh_key_password"}
    environment = {variable: data[key] for variable, key in secrets.items() if data.get(key)}
    if environment:
        environment |= {"SSH_ASKPASS": str(_ASKPASS), "SSH_ASKPASS_REQUIRE": "force", "LEFT4ME_PID": str(os.getpid())}
    batch = [] if environment else ["-oBatchMode=yes"]
    ssh = ["ssh", "-T", *batch, *_options(data), *_where(name, data), for_any_shell(line)]
    return Command(ssh, environment, stdin)


def typed(name: str, data: Mapping[str, Any], *words: str) -> str:
    """Return the line that an operator types to run `words` on a host as root, without secrets."""
    line = shlex.join([*(["sudo"] if data.get("_sudo") else []), *words])
    terminal = ["-t"] if data.get("_sudo_password") else []
    return line if name == "@local" else shlex.join(["ssh", *terminal, *_options(data), *_where(name, data), line])


def _options(data: Mapping[str, Any]) -> list[str]:
    options = {
        "ConnectTimeout": 10,
        "ConnectionAttempts": 1 + data.get("ssh_connect_retries", 0),
        "ServerAliveInterval": 5,
        "NumberOfPasswordPrompts": 1,
        "StrictHostKeyChecking": data.get("ssh_strict_host_key_checking", "accept-new"),
    }
    for key, option in (
        ("ssh_known_hosts_file", "UserKnownHostsFile"),
        ("ssh_key", "IdentityFile"),
        ("ssh_port", "Port"),
        ("ssh_user", "User"),
    ):
        if key in data:
            options[option] = f'"{data[key]}"'
    if "ssh_key" in data:
        options["IdentitiesOnly"] = "yes"
    elif data.get("ssh_look_for_keys") is False:
        options["IdentityFile"] = "none"
    if data.get("ssh_allow_agent") is False:
        options["IdentityAgent"] = "none"
    return [f"-o{key}={value}" for key, value in options.items()]


def _where(name: str, data: Mapping[str, Any]) -> list[str]:
    config = ["-F", data["ssh_config_file"]] if "ssh_config_file" in data else []
    return [*config, data.get("ssh_hostname", name)]


def marked(*words: str) -> list[str]:
    """Return a command that prints MARK and then runs `words`."""
    return ["sh", "-c", f'echo {MARK}; exec "$@"', "sh", *words]


def answer(printed: str) -> str:
    """Return the output of a command from marked(). Raises ValueError if the command did not start."""
    before, mark, found = f"\n{printed}".partition(f"\n{MARK}\n")
    if not mark:
        raise ValueError(f"no answer; it printed: {plain(before.strip()[:200])}")
    return found


def changed_key(fingerprint: str, known_hosts: str, name: str) -> str:
    forget = shlex.join(["ssh-keygen", "-f", known_hosts, "-R", name])
    return (
        f"its host key has changed to {fingerprint}: the host was reinstalled, or another machine answers. "
        f"If it was reinstalled, run: {forget}"
    )


def sudo_reason(stderr: str) -> str:
    """Return why sudo refused a command and what to do; "" if sudo did not refuse."""
    if re.search(r"^sudo(-rs)?: (a password is required|interactive authentication is required)", stderr, re.MULTILINE):
        return "sudo asks for a password: set _sudo_password in the host's data (the value may come from os.environ)"
    if re.search(r"^sudo(-rs)?: (\d+ incorrect password attempt|no password was provided)", stderr, re.MULTILINE):
        return "sudo rejects the password: check _sudo_password in the host's data"
    if found := re.search(
        r"^(.+ is not in the sudoers file|Sorry, user .+ is not allowed to execute .+)", stderr, re.MULTILINE
    ):
        return f"sudo: {plain(found[1][:200])}"
    return ""


def reason(stderr: str, silent: str = "no reason given") -> str:
    """Return the line of `stderr` that says why ssh or its command failed; `silent` if `stderr` is empty.

    The line is cut and safe to print.
    """
    if why := sudo_reason(stderr):
        return why
    key = re.search(r"^Offending \S+ key in (.+):\d+\s*$", stderr, re.MULTILINE)
    name = re.search(r"^Host key for (\S+) has changed and you have requested strict checking", stderr, re.MULTILINE)
    if key and name:
        fingerprint = re.search(r"^(\S+:\S+)\.\s*$", stderr, re.MULTILINE)
        return plain(changed_key(fingerprint[1] if fingerprint else "an unknown key", key[1], name[1])[:1000])
    lines = [line.strip() for line in stderr.splitlines() if not line.startswith("Connection to ")]
    return plain(([line for line in lines if line] or [silent])[-1][:1000])
