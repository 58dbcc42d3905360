"""Read the result of each host from pyinfra's JSON and pytest's junit file."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from left4me import manifest, pending
from left4me.rollout.children import Done, last_lines

_READY = "Ready: deploy.py"
_ROUTINE = ("Connected", _READY, "No changes", "Error: executed 0 commands", manifest.NO_APPARMOR)


@dataclass
class Result:
    """The result of a step on a host; the step succeeded if `wrong` is empty.

    `tests` has the names of the failed tests, `pending` a line for each pending state after a dry run's deploy.
    """

    wrong: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)


def _json(done: Done) -> Mapping[str, Any]:
    try:
        answer = json.loads(done.stdout[done.stdout.index("{") :])  # inventory code may print
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _named(operations: Iterable[Mapping[str, Any]], host: str, *keys: str) -> list[str]:
    """Return the names of the operations that list a host under one of `keys`."""
    return [each["name"] for each in operations if any(host in each[key] for key in keys)]


def _messages(host: str, done: Done) -> list[str]:
    """Return the last lines that pyinfra printed about a host."""
    prefix = f"[{host}] "
    lines = [line.strip() for line in done.stderr.splitlines()]
    messages = [line.removeprefix(prefix).strip() for line in lines if line.startswith(prefix)]
    return last_lines(*(line for line in messages if line not in _ROUTINE))


def planned(done: Done, hosts: Sequence[str]) -> dict[str, Result]:
    """Return from `pyinfra --dry --json` what would change on each host, or why it cannot be deployed."""
    plan = _json(done).get("plan")
    found = {}
    for host in hosts:
        changed = _named(plan or (), host, "hosts_with_change", "hosts_with_conditional_change")
        # pyinfra pads host names to equal width.
        prefix = rf"^ *\[{re.escape(host)}\] +"
        ready = not done.returncode or re.search(prefix + _READY, done.stderr, re.MULTILINE)
        would_leave = [pending.Pending(**each) for each in (_json(done).get("pending") or {}).get(host, [])]
        found[host] = Result([] if ready else _messages(host, done), changed, pending=pending.lines(would_leave))
    if (done.returncode or plan is None) and not any(each.wrong for each in found.values()):
        wrong = [f"pyinfra exited with {done.returncode}", *last_lines(done.stderr)]
        return {host: Result(wrong) for host in hosts}
    return found


def deployed(done: Done, hosts: Sequence[str]) -> dict[str, Result]:
    """Return the results of `pyinfra -y --json`: every operation must have succeeded. Ignores the exit code."""
    results = _json(done).get("results") or {"operations": [], "failed_hosts": []}
    found = {}
    for host in hosts:
        failed = _named(results["operations"], host, "error")
        changed = _named(results["operations"], host, "success")
        wrong = [f"failed: {name}" for name in failed[:1]]
        if not wrong and (
            host in results["failed_hosts"] or not _named(results["operations"], host, "success", "no_change")
        ):
            # If all hosts fail, pyinfra prints no JSON.
            started = re.findall(r"^--> Starting.* operation: (.*)", done.stderr, re.MULTILINE)[-1:]
            wrong = [f"pyinfra did not finish (exit {done.returncode}); last operation: {''.join(started) or 'none'}"]
        no_message = ["no error message: the connection was lost or the command was killed", *last_lines(done.stderr)]
        found[host] = Result(wrong and [*wrong, *(_messages(host, done) or no_message)], changed)
    return found


def verified(done: Done, junit: Path, hosts: Sequence[str]) -> dict[str, Result]:
    """Return the results in pytest's junit file: some test of a host must pass, and none fail."""
    if done.returncode not in (0, 1) or not junit.is_file():
        wrong = [f"pytest exited with {done.returncode}", *last_lines(done.stdout, done.stderr)]
        return {host: Result(wrong) for host in hosts}
    found = {host: Result() for host in hosts}
    passed = set()
    for case in ET.parse(junit).iter("testcase"):
        name = case.get("name", "")
        of = (re.search(r"\[(.*)\]", name) or ["", ""])[1]
        tested = [host for host in hosts if f"{of}/".startswith(f"{host}/")]
        failures = [each for each in case if each.tag in ("failure", "error")]
        for host in (tested or hosts) if failures else ():
            found[host].tests.append(name)
            found[host].wrong += [name, *last_lines(*(each.text for each in failures))]
        if not failures and case.find("skipped") is None:
            passed.update(tested)
    for host in set(hosts) - passed:
        found[host].wrong = found[host].wrong or ["no test ran for this host"]
    return found
