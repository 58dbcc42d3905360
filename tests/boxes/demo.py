"""make demo: deploy to a box; start, query, stop and reset one server; print the figures of the stop.

With --web, Cockpit shows the page, and the last lines say where and how to log in.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import a2s

from tests.boxes import game
from tests.boxes.boxes import Box, BoxError, up
from tests.boxes.system import STATE, write

ROOT = Path(__file__).parent.parent.parent
READER = ROOT / "tests/deployed/reader.py"
SERVER, PORT = "3", 27015  # as the inventory has them
ANSWER_SECONDS = 20  # for a loaded machine; usually a server answers in 0.1 s


class Broken(Exception):
    """A step of the demo failed; the message names it and what to look at."""


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def deploy(inventory: str = "inventory") -> None:
    """Deploy with pyinfra's output on the terminal. Raises Broken."""
    command = [str(Path(sys.executable).with_name("pyinfra")), inventory, "deploy.py", "-y"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise Broken("the deploy failed; see the output of pyinfra above")


USER, GROUP = "demo", "operators"


def with_page(box: Box) -> str:
    """Write an inventory in which the box has the page, and return its path."""
    more = {box.name: {"operators": GROUP, "web": {"listen": f"{box.address}:9090"}}}
    path = STATE / "demo-inventory"
    text = f"import runpy\n\nhosts = runpy.run_path({str(ROOT / 'inventory')!r})['boxes']\n"
    write(path, f"{text}hosts = [(name, data | {more!r}.get(name, {{}})) for name, data in hosts]\n")
    return str(path)


def add_user(box: Box) -> str:
    """Let USER be an operator, and return a new password."""
    password = secrets.token_urlsafe(12)
    groups = f"groupadd --force {GROUP} && {{ id {USER} >/dev/null 2>&1 || useradd --create-home {USER}; }}"
    box.run(f"{groups} && usermod --append --groups {GROUP} --shell /bin/bash {USER}")
    box.run("chpasswd", input=f"{USER}:{password}\n".encode())
    return password


def ask(box: Box) -> None:
    """Query the server over A2S from outside the box and print the answer. Raises Broken."""
    address = (box.address, PORT)
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            info, players = a2s.info(address, timeout=1), a2s.players(address, timeout=1)
            break
        except OSError as error:  # the server is still starting
            if time.monotonic() > end:
                raise Broken(
                    f"{box.name} server {SERVER} does not answer: ./box ssh {box.name} journalctl -e"
                ) from error
    print(f"name     {info.server_name}\nmap      {info.map_name}\nplayers  {len(players)} of {info.max_players}")


def cycle(box: Box) -> dict[str, Any]:
    """Stop the server while watching for holders of its overlay, start it again, and return what was seen."""
    question = json.dumps({"cycle": [SERVER, "127.0.0.1", PORT]})
    command = f"python3 -I -c {shlex.quote(READER.read_text(encoding='utf-8'))} {shlex.quote(question)}"
    figures: dict[str, Any] = json.loads(box.run(command, timeout=300).stdout)
    if "refused" in figures:
        raise Broken(figures["refused"])
    return figures


def figures(found: dict[str, Any]) -> dict[str, str]:
    """Return the figures of a stop, with the labels of the unit's postmortem."""
    # nsenter has its cwd in merged until it has left the unit's mount namespace.
    held = [f"{each['comm']} ({each['kind']})" for each in found["holders"] if each["comm"].strip("()") != "nsenter"]
    exits = re.findall(r"status=(\d+)", found["unit"]["ExecStopPostEx"])  # the last one is of the unmount
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


def main(web: bool) -> None:
    """Run the demo, with the page if `web`. Raises Broken or BoxError."""
    step("a test box, with systemd, sshd and a network of its own")
    [box] = up(["box1"])
    print(f"{box.name}: Debian {box.debian}, {box.address}")
    step("the stand-in for the game (the demo does not use Steam)")
    print(game.build().relative_to(ROOT))
    password = add_user(box) if web else ""
    step(f"pyinfra inventory deploy.py -y{', with the page' if web else ''}")
    deploy(with_page(box) if web else "inventory")
    step(f"systemctl start left4me-server@{SERVER}, then an A2S query from outside the box")
    box.run(f"systemctl start left4me-server@{SERVER}")
    ask(box)
    step(f"systemctl stop left4me-server@{SERVER}, and the figures of the stop")
    found = figures(cycle(box))
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")
    wrong = [name for name, value in GOOD.items() if found[name] != value]
    if wrong:
        raise Broken(f"the stop was not clean: {', '.join(wrong)}; see ./box ssh {box.name} journalctl -e")
    step(f"l4d2ctl reset {SERVER}: a fresh server, running again")
    print(box.run(f"l4d2ctl reset {SERVER}").stdout, end="")
    if web:
        print(f"\nThe page: https://{box.address}:9090/left4me, as user {USER} with password {password}")
        print("The certificate is self-signed. The next make demo without WEB=1 removes the page.")
    print(f"\nTo look around: ./box ssh {box.name}. To remove the box: ./box down")


if __name__ == "__main__":
    try:
        main("--web" in sys.argv[1:])
    except (Broken, BoxError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
