"""What pyinfra and pytest say of each host, from what they write for programs."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from left4me import pending
from left4me.rollout.children import Done, last_lines

_READY = "Ready: deploy.py"
_IDLE = ("Connected", _READY, "No changes", "Error: executed 0 commands")


@dataclass
class Result:
    """How a step went on a host: well, where nothing is `wrong`.

    `tests` are those that failed, `pending` is what the step would leave pending, a line each.
    """

    wrong: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)


def _json(done: Done) -> Mapping[str, Any]:
    try:
        answer = json.loads(done.stdout[done.stdout.index("{") :])  # an inventory may print
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _named(operations: Iterable[Mapping[str, Any]], host: str, *keys: str) -> list[str]:
    """Return the names of the operations that have a host under one of `keys`."""
    return [each["name"] for each in operations if any(host in each[key] for key in keys)]


def _said(host: str, done: Done) -> list[str]:
    prefix = f"[{host}] "
    lines = [line.strip() for line in done.stderr.splitlines()]
    said = [line.removeprefix(prefix).strip() for line in lines if line.startswith(prefix)]
    return last_lines(*(line for line in said if line not in _IDLE))


def planned(done: Done, hosts: Sequence[str]) -> dict[str, Result]:
    """Judge `pyinfra --dry --json`: what would change on each host, or why it cannot be deployed."""
    plan = _json(done).get("plan")
    verdicts = {}
    for host in hosts:
        changed = _named(plan or (), host, "hosts_with_change", "hosts_with_conditional_change")
        # pyinfra pads the names to the longest.
        here = rf"^ *\[{re.escape(host)}\] +"
        ready = not done.returncode or re.search(here + _READY, done.stderr, re.MULTILINE)
        left = [pending.Pending(**each) for each in (_json(done).get("pending") or {}).get(host, [])]
        verdicts[host] = Result([] if ready else _said(host, done), changed, pending=pending.lines(left))
    if (done.returncode or plan is None) and not any(each.wrong for each in verdicts.values()):
        wrong = [f"pyinfra ended with {done.returncode}", *last_lines(done.stderr)]
        return {host: Result(wrong) for host in hosts}
    return verdicts


def deployed(done: Done, hosts: Sequence[str]) -> dict[str, Result]:
    """Judge `pyinfra -y --json`: a host is deployed where every operation went well there, whatever the exit code."""
    results = _json(done).get("results") or {"operations": [], "failed_hosts": []}
    verdicts = {}
    for host in hosts:
        failed = _named(results["operations"], host, "error")
        changed = _named(results["operations"], host, "success")
        wrong = [f"failed: {name}" for name in failed[:1]]
        if not wrong and (
            host in results["failed_hosts"] or not _named(results["operations"], host, "success", "no_change")
        ):
            # Where all hosts fail, it ends without its JSON.
            begun = re.findall(r"^--> Starting.* operation: (.*)", done.stderr, re.MULTILINE)[-1:]
            wrong = [f"pyinfra did not finish it (exit {done.returncode}); begun last: {''.join(begun) or 'nothing'}"]
        silent = ["it said nothing: its connection was lost, or its command killed", *last_lines(done.stderr)]
        said = _said(host, done) or silent
        verdicts[host] = Result(wrong and [*wrong, *said], changed)
    return verdicts


def verified(done: Done, junit: Path, hosts: Sequence[str]) -> dict[str, Result]:
    """Judge pytest by its junit file: a host is proved where tests of it ran and none failed."""
    if done.returncode not in (0, 1) or not junit.is_file():
        wrong = [f"pytest ended with {done.returncode}", *last_lines(done.stdout, done.stderr)]
        return {host: Result(wrong) for host in hosts}
    verdicts = {host: Result() for host in hosts}
    passed = set()
    for case in ET.parse(junit).iter("testcase"):
        name = case.get("name", "")
        of = (re.search(r"\[(.*)\]", name) or ["", ""])[1]
        concerned = [host for host in hosts if f"{of}/".startswith(f"{host}/")]
        failures = [each for each in case if each.tag in ("failure", "error")]
        for host in (concerned or hosts) if failures else ():
            verdicts[host].tests.append(name)
            verdicts[host].wrong += [name, *last_lines(*(each.text for each in failures))]
        if not failures and case.find("skipped") is None:
            passed.update(concerned)
    for host in set(hosts) - passed:
        verdicts[host].wrong = verdicts[host].wrong or ["no test of it was run"]
    return verdicts
