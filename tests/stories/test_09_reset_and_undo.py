"""Evenings are reset and brought back: undos go back one by one, or to one that he picks, and what is kept stays."""

from __future__ import annotations

import re

from tests.integration.ctl import game_writes, main_pid
from tests.integration.harness import SERVERS, wait_for_server
from tests.integration.layers import merged
from tests.stories.operator import Operator


def test_resets_are_undone_one_by_one_or_by_their_time(operator: Operator) -> None:
    host = operator.host()
    operator.declare({"3": {**SERVERS["3"], "keep": ["left4dead2/cfg/banned_user.cfg"]}, "4": SERVERS["4"]})
    operator.types(f"pyinfra {operator.inventory} deploy.py -y", never=["restart required"])
    four = main_pid(host, "4")

    def types(command: str, *says: str) -> None:
        operator.on(host, command, *says)
        wait_for_server(host, 27015)

    def evening() -> str:
        path = merged(host, "evening.txt")
        return path.read_text().strip() if path.exists() else "none"

    for name in ("first", "second"):
        game_writes(host, "evening.txt", name)
        game_writes(host, "cfg/banned_user.cfg", f"banned on the {name} evening")
        types("l4d2ctl reset 3", "stop", "reset", "start", "in all")
        assert evening() == "none"
    game_writes(host, "evening.txt", "third")

    # Back, and back again: each undo takes the reset before.
    types("l4d2ctl reset --undo 3")
    assert evening() == "second"
    types("l4d2ctl reset --undo 3")
    assert evening() == "first"
    operator.on(host, "l4d2ctl reset --undo 3", "there is no reset to undo", "l4d2ctl attic 3", code=1)

    # The undos threw nothing away: he picks by its time what the first of them had put aside.
    listed = operator.on(host, "l4d2ctl attic 3", "WHEN")
    second, third = re.findall(r"(\S+)\tundo", listed)
    types(f"l4d2ctl reset --undo {third} 3")
    assert evening() == "third"
    types(f"l4d2ctl reset --undo {second} 3")
    assert evening() == "second"

    # Who was banned since stays banned, whatever came back; and all the while the other server ran on.
    assert merged(host, "cfg/banned_user.cfg").read_text() == "banned on the second evening\n"
    assert main_pid(host, "4") == four
    operator.types(f"make verify INVENTORY={operator.inventory}", never=["pending:", "failed"])
