"""make demo: a box, the deploy, one server started, asked, stopped and reset, and what the stop was like."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import a2s

from tests.boxes import game
from tests.boxes.boxes import Box, BoxError, up

ROOT = Path(__file__).parent.parent.parent
READER = ROOT / "tests/deployed/reader.py"
SERVER, PORT = "3", 27015  # as the inventory has them
ANSWER_SECONDS = 20  # a loaded machine; a server answers in a tenth of a second


class Broken(Exception):
    """A step of the demo did not do what it should; the message says which and what to look at."""


def step(text: str) -> None:
    """Say what comes next."""
    print(f"\n== {text}", flush=True)


def deploy() -> None:
    """Deploy as an operator does, with what pyinfra says on the terminal."""
    command = [str(Path(sys.executable).with_name("pyinfra")), "inventory", "deploy.py", "-y"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise Broken("the deploy failed: what pyinfra said stands above")


def ask(box: Box) -> None:
    """Ask the server over A2S from outside the box, and print what it says."""
    address = (box.address, PORT)
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            info, players = a2s.info(address, timeout=1), a2s.players(address, timeout=1)
            break
        except OSError as error:  # a server that is starting does not answer yet
            if time.monotonic() > end:
                raise Broken(
                    f"{box.name} server {SERVER} does not answer: ./box ssh {box.name} journalctl -e"
                ) from error
    print(f"name     {info.server_name}\nmap      {info.map_name}\nplayers  {len(players)} of {info.max_players}")


def cycle(box: Box) -> dict[str, Any]:
    """Stop the server with somebody watching who holds its overlay, and start it again."""
    question = json.dumps({"cycle": [SERVER, "127.0.0.1", PORT]})
    command = f"python3 -I -c {shlex.quote(READER.read_text(encoding='utf-8'))} {shlex.quote(question)}"
    figures: dict[str, Any] = json.loads(box.run(command, timeout=300).stdout)
    if "refused" in figures:
        raise Broken(figures["refused"])
    return figures


def figures(found: dict[str, Any]) -> dict[str, str]:
    """Return the postmortem's figures of a stop, in its words."""
    # nsenter stands in merged until it has left the unit's namespace: it is the way out.
    held = [f"{each['comm']} ({each['kind']})" for each in found["holders"] if each["comm"].strip("()") != "nsenter"]
    exits = re.findall(r"status=(\d+)", found["unit"]["ExecStopPostEx"])  # the last is the unmount's
    return {
        "Stop duration": f"{found['seconds']:.2f} s",
        "Holders while it stopped": ", ".join(held) or "none",
        "Unit state after the stop": found["unit"]["ActiveState"],
        "Exit code of ExecStopPost": exits[-1] if exits else "?",
        "Mounts left": ", ".join(found["left"]) or "none",
    }


GOOD = {
    "Holders while it stopped": "none",
    "Unit state after the stop": "inactive",
    "Exit code of ExecStopPost": "0",
    "Mounts left": "none",
}


def main() -> None:
    """Do all of it; raises Broken or BoxError."""
    step("a test box, with systemd, sshd and a network of its own")
    [box] = up(["box1"])
    print(f"{box.name}: Debian {box.debian}, {box.address}")
    step("the stand-in for the game, since Steam is not asked here")
    print(game.build().relative_to(ROOT))
    step("pyinfra inventory deploy.py -y")
    deploy()
    step(f"systemctl start left4me-server@{SERVER}, and who plays there (A2S, from outside the box)")
    box.run(f"systemctl start left4me-server@{SERVER}")
    ask(box)
    step(f"systemctl stop left4me-server@{SERVER}, and what that stop was like")
    found = figures(cycle(box))
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")
    wrong = [name for name, value in GOOD.items() if found[name] != value]
    if wrong:
        raise Broken(f"not as it should be: {', '.join(wrong)}; see ./box ssh {box.name} journalctl -e")
    step(f"l4d2ctl reset {SERVER}: the server as new, and running again")
    print(box.run(f"l4d2ctl reset {SERVER}").stdout, end="")
    print(f"\nLook around: ./box ssh {box.name}. Take the box away: ./box down")


if __name__ == "__main__":
    try:
        main()
    except (Broken, BoxError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
