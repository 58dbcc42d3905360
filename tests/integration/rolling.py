"""rollout.py over boxes, as an operator starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.boxes.boxes import Box
from tests.integration.ctl import fleet
from tests.integration.harness import ROOT, SERVERS, wait_for

FOLDER = ROOT / "rollouts"


class Fleet:
    """The boxes, their inventory, and rollout.py as an operator starts it."""

    def __init__(self, boxes: list[Box], path: Path, servers: Mapping[str, Any] = SERVERS, **data: Any) -> None:
        """Take the boxes in the order of a rollout, thus the canary first, and what is declared of each host."""
        self.boxes, self.canary, self.others, self.path, self.servers = boxes, boxes[0], boxes[1:], path, servers
        self.data = data
        self.declare()

    def declare(self, three: dict[str, Any] | None = None, **data: Any) -> None:
        """Write the inventory; `three` is what server 3 has of its own, on each host."""
        servers = {**self.servers, "3": {**self.servers["3"], **(three or {})}}
        by_name = sorted(self.boxes, key=lambda box: box.name)
        fleet(self.path, by_name, servers, **{**self.data, **data})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"canary = [{self.canary.name!r}]\n")

    @contextmanager
    def started(self, *words: str, checkout: Path = ROOT) -> Iterator[Running]:
        command = [sys.executable, "rollout.py", str(self.path), "--quiet", "2s", *words]
        with subprocess.Popen(
            command, cwd=checkout, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            running = Running(process)
            try:
                yield running
            finally:
                process.kill()

    def rollout(self, *words: str, code: int = 0, checkout: Path = ROOT) -> str:
        """Run it to its end, which must be exit `code`; return what it said."""
        with self.started(*words, checkout=checkout) as running:
            return running.end(code)


class Running:
    """A rollout under way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait_for_line(self, *words: str, limit: float = 120) -> None:
        wait_for(f"a line with {words}", lambda: any(all(w in line for w in words) for line in self._all()), limit)

    def _all(self) -> list[str]:
        return list(self.lines)

    def end(self, code: int, limit: float = 400) -> str:
        self.process.wait(limit)
        self._reading.join()
        said = "".join(self.lines)
        assert self.process.returncode == code, said
        assert "Traceback" not in said
        return said


def report(said: str) -> dict[str, Any]:
    [path] = [line.removeprefix("Report: ") for line in said.splitlines() if line.startswith("Report: ")]
    content: dict[str, Any] = json.loads((ROOT / path).read_text(encoding="utf-8"))
    return content


def hostname(box: Box) -> str:
    return box.run("grep ^hostname /etc/left4me/servers/3/server.cfg").stdout.split('"')[1]
