"""Prints a rollout's progress and writes its report file, with every step and its time."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from left4me.rollout.children import interrupted
from left4me_host.instance import plain

FINISHING = "Interrupted: finishing the current steps; press Ctrl-C again to stop at once."


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


class Report:
    """Prints a line for each finished step and, on a terminal, a live table of the current steps below."""

    def __init__(self) -> None:
        self.path = Path("rollouts", f"{datetime.now():%Y-%m-%dT%H%M%S}-{os.getpid()}.json")
        self.content: dict[str, Any] = {"command": sys.argv, "started": _now(), "hosts": {}}
        self._current: dict[str, tuple[int, str, float]] = {}
        self._notes: dict[str, str] = {}
        self._drawn = 0
        self.is_live = sys.stdout.isatty()
        self._lock = threading.RLock()

    def begin(self, wave: int, hosts: Iterable[str], step: str) -> None:
        with self._lock:
            if self.is_live and not self.content["hosts"]:
                threading.Thread(target=self._redraw, daemon=True).start()
            for host in hosts:
                self._current[host] = (wave, step, time.monotonic())
                steps = self.content["hosts"].setdefault(host, {"wave": wave, "steps": []})["steps"]
                steps.append({"step": step, "started": _now(), "result": "running"})
                self.note(host, "started")
            self._write()

    def started(self, step: str) -> list[str]:
        """Return the hosts on which a step was started."""
        hosts = self.content["hosts"].items()
        return [name for name, host in hosts if any(each["step"] == step for each in host["steps"])]

    def note(self, host: str, text: str) -> None:
        """Show the progress of a host's current step."""
        with self._lock:
            if not self.is_live and self._notes.get(host) != text:
                self._line(host, text)
            self._notes[host] = text

    def end(self, host: str, result: str, said: Sequence[str] = ()) -> None:
        """Record the result of a host's current step: done or failed."""
        with self._lock:
            seconds = self._ended(host, result, said)
            self._write()
            self._erase()
            self._line(host, "; ".join([f"{result}, {seconds:.1f} s", *said[:3]]))
            del self._current[host], self._notes[host]

    def _ended(self, host: str, result: str, said: Sequence[str]) -> float:
        seconds = round(time.monotonic() - self._current[host][2], 2)
        self.content["hosts"][host]["steps"][-1].update(result=result, seconds=seconds, said=list(said))
        return seconds

    def close(self, code: int) -> None:
        """Remove the table and finish the file; mark running steps as interrupted."""
        with self._lock:
            self.is_live = False
            self._erase()
            for host in self._current:
                self._ended(host, "interrupted", [self._notes[host]])
            self.content.update(ended=_now(), exit=code)
            self._write()

    def _line(self, host: str, text: str) -> None:
        wave, step, _since = self._current[host]
        print(plain(f"wave {wave}  {host}  {step}: {text}"), flush=True)

    def _write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.content, indent=1, ensure_ascii=False), encoding="utf-8")
        new.replace(self.path)

    def _redraw(self) -> None:
        while True:
            with self._lock:
                if not self.is_live:
                    return
                self._erase()
                self._draw()
            time.sleep(0.5)

    def _erase(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="", flush=True)
        self._drawn = 0

    def _draw(self) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = [("WAVE", "HOST", "STEP", "TIME", "")]
        for host, (wave, step, since) in self._current.items():
            lines.append((str(wave), host, step, f"{time.monotonic() - since:.0f} s", self._notes[host]))
        rows -= 1 + interrupted.is_set()
        if len(lines) > rows:
            lines[rows - 1 :] = [("", f"and {len(lines) - rows + 1} more", "", "", "")]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, cells, widths)) for cells in lines] + [FINISHING] * interrupted.is_set()
        for text in table:
            print(plain(text)[: columns - 1].rstrip())
        sys.stdout.flush()
        self._drawn = len(table)
