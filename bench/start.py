"""How long a start takes: `python -m bench.start [DEBIAN]`, on a game of 8 GB against one of 80 MB, among ten servers.

The 8 GB are 20,000 sparse files. A start is `systemctl start` to its end: the mount, and the game executed.
"""

from __future__ import annotations

import statistics
import sys

from bench.reset import line, measured

SERVERS: dict[str, dict[str, object]] = {str(number): {} for number in range(3, 13)}
LIMIT = 1.2


def main(debian: int) -> None:
    """Measure and print."""
    seconds = measured("starts", debian, servers=SERVERS)
    written = {what: values for what, values in seconds.items() if what.startswith("bytes")}
    print(f"{'start of a server':28} {'times':>5} {'median/ms':>9} {'p95/ms':>9}")
    for what, values in seconds.items():
        if what not in written:
            print(line(what, values))
    for what in ("added server", "after an update"):
        ratio = statistics.median(seconds[f"{what}, 8 GB"]) / statistics.median(seconds[f"{what}, 80 MB"])
        print(f"{what}: 8 GB : 80 MB = {ratio:.2f} at the median (aim {LIMIT})")
    for what, values in written.items():
        print(f"{what}: {max(values):.0f} at the most, by the game itself")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 13)
