"""python -m bench.record_demo make demo: run a command in a terminal and draw its output as docs/demo.svg."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import termios
from html import escape
from pathlib import Path

SVG = Path(__file__).parent.parent / "docs/demo.svg"
COLUMNS, HEAD, TAIL = 100, 12, 44  # only these lines of a longer output are drawn
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()].|[=>78])|[^\n\r\t -~\xa0-\U0010ffff]")
"""Matches ECMA-48's CSI, OSC and character sets, and control characters that XML forbids."""


def run(command: list[str]) -> tuple[int, str]:
    """Run a command in a terminal, stream its output, and return its exit code and output."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, COLUMNS))
    output = b""
    with subprocess.Popen(command, stdout=slave, stderr=slave) as process:
        # A process that the command left running may keep the terminal open, so its end is not awaited.
        while (ready := select.select([master], [], [], 0.2)[0]) or process.poll() is None:
            if ready:
                chunk = os.read(master, 65536)
                output += chunk
                os.write(sys.stdout.fileno(), chunk)
    return process.returncode, output.decode("utf-8", "replace")


def lines(output: str) -> list[str]:
    """Return the lines that stay on the screen: no escape sequences, and only the last state of a progress line."""
    plain = ESCAPE.sub("", output).replace("\r\n", "\n").rstrip()
    found = [line.rpartition("\r")[2].expandtabs()[:COLUMNS].rstrip() for line in plain.split("\n")]
    left_out = len(found) - HEAD - TAIL
    return [*found[:HEAD], f"… {left_out} lines", *found[-TAIL:]] if left_out > 0 else found


def svg(text: list[str]) -> str:
    """Return an SVG drawing of a terminal."""
    width, height = 8 * COLUMNS + 32, 18 * len(text) + 32
    rows = (f'<text x="16" y="{18 * number + 29}">{escape(line)}</text>' for number, line in enumerate(text) if line)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<rect width="100%" height="100%" rx="8" fill="#1b1d23"/>
<g fill="#d8dee9" font-family="ui-monospace, monospace" font-size="13" xml:space="preserve">
""" + "".join(f"{row}\n" for row in [*rows, "</g>", "</svg>"])


if __name__ == "__main__":
    code, printed = run(sys.argv[1:])
    if code:
        sys.exit(f"{shlex.join(sys.argv[1:])} failed with exit code {code}; {SVG} is unchanged")
    SVG.write_text(svg([f"$ {shlex.join(sys.argv[1:])}", *lines(printed)]), encoding="utf-8")
