"""With --cycle HOST/ID: stop and start one server, and check the figures of the stop."""

from __future__ import annotations

import re

import pytest

from left4me_host.instance import plain
from tests.deployed.found import CYCLED
from tests.deployed.hosts import NotRead, Target

CYCLE_SECONDS = 300  # the longest stop that systemd allows, and a slow start


def test_a_stop_is_clean_and_the_server_comes_back(
    cycled: tuple[Target, str], capsys: pytest.CaptureFixture[str]
) -> None:
    target, server = cycled
    try:
        done = target.ask({"cycle": [server, *target.where(server)]}, CYCLED, CYCLE_SECONDS)
    except NotRead as reason:
        pytest.fail(f"{target.name}: {reason}", pytrace=False)
    if "seconds" not in done:
        pytest.fail(plain(f"{target.name}: {done['refused'][:1000]}"), pytrace=False)
    # nsenter has its cwd in merged until it has left the unit's mount namespace with setns(2).
    held = [each for each in done["holders"] if each["comm"].strip("()") != "nsenter"]
    posts = re.findall(r"code=(\S+) ; status=(\d+)", done["unit"]["ExecStopPostEx"])
    figures = {
        "stop duration": f"{done['seconds']} s",
        "holders while it stopped": [f"{each['pid']} {each['comm']} {each['kind']}" for each in held],
        "unit after the stop": done["unit"]["ActiveState"],
        "ExecStopPost": " ".join(posts[-1]) if posts else "unknown",
        "mounts left": done["left"],
        "holders left": [
            f"{each['pid']} {each['comm']} {each['kind']} {each['path']}" for each in done["holders_left"]
        ],
    }
    with capsys.disabled():
        print(
            f"\n{target.name}/{server}:",
            *(plain(f"  {key:26}{value or 'none'}"[:10_000]) for key, value in figures.items()),
            sep="\n",
        )
    expected = {
        "holders while it stopped": [],
        "unit after the stop": "inactive",
        "ExecStopPost": "exited 0",
        "mounts left": [],
        "holders left": [],
    }
    wrong = [
        f"{key}: {figures[key]}, must be {expected[key] or 'none'}" for key in expected if figures[key] != expected[key]
    ]
    if done["seconds"] >= 15:
        wrong.append(f"the stop took {done['seconds']} s: TimeoutStopSec=15s ended it")
    if done["start"] or done["answer"] is None:
        wrong.append(f"the server is not back: {done['start'] or 'no answer over A2S'}")
    if wrong:
        pytest.fail("\n".join(plain(f"{target.name}/{server}: {line[:10_000]}") for line in wrong), pytrace=False)
