"""What comes over a connection to a host: its answers, and why there is none, by pyinfra's way (paramiko) or ssh's."""

from __future__ import annotations

import re
import shlex

MARK = "left4me-answer:"
"""The line that comes before an answer of a host: what a shell prints when it starts comes before that."""


def marked(*words: str) -> list[str]:
    """Return a command that prints MARK before what `words` print."""
    return ["sh", "-c", f'echo {MARK}; exec "$@"', "sh", *words]


def answer(printed: str) -> str:
    """Return what a marked command itself printed. Raises ValueError where it did not begin."""
    before, mark, found = f"\n{printed}".partition(f"\n{MARK}\n")
    if not mark:
        raise ValueError(f"no answer came, only: {before.strip()[:200]}")
    return found


def changed_key(fingerprint: str, known_hosts: str, name: str) -> str:
    """Say that a host has another key than the one known, and what to type if it was reinstalled."""
    forget = shlex.join(["ssh-keygen", "-f", known_hosts, "-R", name])
    return (
        f"its host key has changed, to {fingerprint}: it was reinstalled, or another machine answers in its place. "
        f"If it was reinstalled: {forget}"
    )


def reason(stderr: str, silent: str = "no reason given") -> str:
    """Return in one line why ssh, or what it ran on a host, has failed; `silent` where it said nothing."""
    key = re.search(r"^Offending \S+ key in (.+):\d+\s*$", stderr, re.MULTILINE)
    name = re.search(r"^Host key for (\S+) has changed and you have requested strict checking", stderr, re.MULTILINE)
    if key and name:
        fingerprint = re.search(r"^(\S+:\S+)\.\s*$", stderr, re.MULTILINE)
        return changed_key(fingerprint[1] if fingerprint else "one not known", key[1], name[1])
    lines = [line.strip() for line in stderr.splitlines() if not line.startswith("Connection to ")]
    return ([line for line in lines if line] or [silent])[-1]
