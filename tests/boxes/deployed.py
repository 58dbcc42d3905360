"""Snapshots of deployed boxes: a copy boots in a second, while a deploy takes ten."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from left4me.revision import checked_out
from tests.boxes import boxes as machines
from tests.boxes import game, image, requirements
from tests.boxes.boxes import Box
from tests.boxes.system import STATE, BoxError, locked
from tests.integration.ctl import layered
from tests.integration.harness import GAME, ROOT, SERVERS, deploy, wait_for_server, write_inventory

PACKAGES = (
    *("libc6:i386", "lib32gcc-s1", "lib32stdc++6", "lib32z1", "nftables", "apparmor", "ca-certificates", "git"),
    *("strace", "faketime"),
)
"""In the image: the packages that a deploy installs, and tools of the tests."""
Kind = Literal["plain", "layered"]
DATA: Mapping[Kind, Mapping[str, Any]] = {
    "plain": {"game": GAME, "servers": dict(SERVERS)},
    "layered": {"game": GAME, **layered()},
}
"""The declared data: servers 3 and 4, plain or with a layer and an RCON password each."""
_PLACE = STATE / "snapshots"
_SOURCES = ("deploy.py", "config.py", "files", "group_data", "left4me", "templates", "tests/boxes/layer")


def up(names: list[str], debian: int, kind: Kind = "layered") -> list[Box]:
    """Start new deployed boxes and wait until their servers answer; existing boxes with these names are removed."""
    place = snapshot(debian, kind)
    machines.down([each.name for each in machines.boxes() if each.name in names])
    boxes = machines.up(names, debian, PACKAGES, place)
    for box in boxes:
        _wait_for_servers(box)
    return boxes


def _wait_for_servers(box: Box) -> None:
    for server in SERVERS.values():
        wait_for_server(box, server["port"])


def _key(debian: int, kind: Kind) -> str:
    """Return the name of a snapshot: a hash of the recorded revision and of everything that the deploy copies."""
    below = image.image(debian, PACKAGES)
    # A snapshot fits only the image it was made over, not a rebuilt one of the same name.
    whole = hashlib.sha256(f"{checked_out()} {below} {below.stat().st_ctime_ns} {DATA[kind]}".encode())
    whole.update(Path(__file__).read_bytes() + (STATE / "game.recipe").read_bytes())
    for source in _SOURCES:
        for path in sorted([ROOT / source, *(ROOT / source).rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                whole.update(f"{path.relative_to(ROOT)} {path.stat().st_mode}\0".encode() + path.read_bytes())
    return f"{debian}-{kind}-{whole.hexdigest()[:12]}"


def snapshot(debian: int, kind: Kind) -> Path:
    """Return the snapshot of a deployed box. Makes it if it is missing, and then removes outdated unused ones."""
    game.build()
    place = _PLACE / _key(debian, kind)
    with locked(STATE / f".snapshot-{debian}-{kind}.lock"):
        if not place.is_dir():
            _make(debian, kind, place)
    return place


def _make(debian: int, kind: Kind, place: Path) -> None:
    name = f"test-{kind}-{debian}"  # `inventory` skips boxes named test-…
    print(f"{name}: deploying (once after each change of the deployed files)", file=sys.stderr, flush=True)
    machines.down([each.name for each in machines.boxes() if each.name == name])
    used = {each.snapshot for each in machines.boxes()}
    for old in [*_PLACE.glob(f"{debian}-{kind}-*"), *_PLACE.glob(f".{debian}-{kind}-*")]:
        if old not in used:
            shutil.rmtree(old)
    [box] = machines.up([name], debian, PACKAGES)
    deploy(write_inventory(box.directory / "inventory", [box], **DATA[kind]))
    _wait_for_servers(box)
    box.keep(place)
    print(f"{name}: done", file=sys.stderr, flush=True)


def _everything(debian: int) -> None:
    image.image(debian)
    image.image(debian, PACKAGES)
    for kind in DATA:
        snapshot(debian, kind)


def main() -> None:
    """Build the images and snapshots of both Debians."""
    requirements.ensure()
    game.build()
    with ThreadPoolExecutor() as pool:
        list(pool.map(_everything, (12, 13)))


if __name__ == "__main__":
    try:
        main()
    except (BoxError, game.BuildError) as error:
        sys.exit(f"boxes: {error}")
