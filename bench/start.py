"""`python -m bench.start [DEBIAN]` compares server starts with a game of 8 GB and of 80 MB.

The 8 GB are 20,000 sparse files. `systemctl start` mounts the overlay and executes the game.
"""

from __future__ import annotations

import statistics
import sys

from bench.reset import line, measured

SERVERS: dict[str, dict[str, object]] = {str(number): {} for number in range(3, 13)}
LIMIT = 1.2


def main(debian: int) -> None:
    seconds = measured("starts", debian, servers=SERVERS)
    written = {kind: values for kind, values in seconds.items() if kind.startswith("bytes")}
    print(f"{'start of a server':28} {'times':>5} {'median/ms':>9} {'p95/ms':>9}")
    for kind, values in seconds.items():
        if kind not in written:
            print(line(kind, values))
    for kind in ("added server", "after an update"):
        ratio = statistics.median(seconds[f"{kind}, 8 GB"]) / statistics.median(seconds[f"{kind}, 80 MB"])
        print(f"{kind}: 8 GB : 80 MB = {ratio:.2f} at the median (aim {LIMIT})")
    for kind, values in written.items():
        print(f"{kind}: at most {max(values):.0f}, by the game itself")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
