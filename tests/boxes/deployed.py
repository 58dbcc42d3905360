"""A box to which left4me is deployed, as a snapshot: a copy of it boots in a second, where a deploy takes ten."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from left4me.declared import revision
from tests.boxes import boxes as machines
from tests.boxes import game, image
from tests.boxes.system import STATE, locked
from tests.integration.ctl import LAYERS, fleet
from tests.integration.harness import ROOT, deploy, wait_for_server

PACKAGES = ("libc6:i386", "lib32gcc-s1", "lib32stdc++6", "lib32z1", "ca-certificates", "git", "strace", "faketime")
"""Of the image under it: what a deploy would install, and what tests look with."""
_PLACE = STATE / "snapshots"
_SOURCES = ("deploy.py", "config.py", "files", "group_data", "left4me", "templates", "tests/boxes/layer")


def _key(debian: int) -> str:
    """Return a name for what goes into a snapshot: the revision that the deploy notes, and all that it brings."""
    whole = hashlib.sha256(f"{revision()} {image.image(debian, PACKAGES)} {LAYERS}".encode())
    whole.update(Path(__file__).read_bytes() + (STATE / "game.recipe").read_bytes())
    for source in _SOURCES:
        for path in sorted([ROOT / source, *(ROOT / source).rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                whole.update(f"{path.relative_to(ROOT)} {path.stat().st_mode}\0".encode() + path.read_bytes())
    return f"{debian}-{whole.hexdigest()[:12]}"


def snapshot(debian: int) -> Path:
    """Return the snapshot of a box with servers 3 and 4, as tests.integration.ctl.fleet() declares them.

    It is made first where there is none, under a lock; those that are out of date and of no box are removed.
    """
    game.build()
    place = _PLACE / _key(debian)
    with locked(STATE / f".snapshot-{debian}.lock"):
        if not place.is_dir():
            _make(debian, place)
    return place


def _make(debian: int, place: Path) -> None:
    name = f"snapshot-{debian}"
    print(f"{name}: deploying (once for each change of what is deployed)", file=sys.stderr, flush=True)
    machines.down([each.name for each in machines.boxes() if each.name == name])
    used = {each.snapshot for each in machines.boxes()}
    for old in [*_PLACE.glob(f"{debian}-*"), *_PLACE.glob(f".{debian}-*")]:
        if old not in used:
            shutil.rmtree(old)
    [box] = machines.up([name], debian, PACKAGES)
    deploy(fleet(box.directory / "inventory", [box]))
    for port in (27015, 27016):
        wait_for_server(box, port)
    box.keep(place)
    print(f"{name}: done", file=sys.stderr, flush=True)


def main() -> None:
    """Make images and snapshots of both Debians, with progress, so that no test waits for them in silence."""
    for debian in (12, 13):
        image.image(debian)
        image.image(debian, PACKAGES)
        snapshot(debian)


if __name__ == "__main__":
    from tests.boxes import requirements

    requirements.ensure()
    main()
