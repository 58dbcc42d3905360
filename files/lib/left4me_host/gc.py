"""Which versions of layers and which builds of the game nobody uses any more.

The deploy also sends it as a program, as `python3 -I -c TEXT`, which prints the paths as a JSON list.
"""

from __future__ import annotations

import errno
import glob
import json
import os

from left4me_host import layout, mountinfo

PROC = "/proc"


def mounted() -> set[str]:
    """Return every lower layer of every overlay, in whatever mount namespace a process lives."""
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir(PROC)):
        try:
            mounts = mountinfo.mounts(f"{PROC}/{pid}/mountinfo")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL):
                raise
            continue  # it has ended
        found.update(path for mount in mounts for path in mount.lowers())
    return found


def _words(name: str, optional: bool = False) -> set[str]:
    """Return what the file of that name says for all servers together."""
    words: set[str] = set()
    for server in filter(lambda name: name[0] != ".", os.listdir(layout.SERVERS)):
        path = f"{layout.SERVERS}/{server}/{name}"
        if not optional or os.path.exists(path):
            with open(path, encoding="ascii") as file:
                words.update(file.read().split())
    return words


def _versions(place: str) -> set[str]:
    return {each.path for each in os.scandir(place) if each.name[0] != "." and not each.is_symlink()}


def _target(link: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))


def layers(used: set[str]) -> list[str]:
    """Return the versions of layers that are neither current nor mounted, and the layers that no server has."""
    declared, overlays, gone = _words("layers"), layout.OVERLAYS, []
    for name in filter(lambda name: name[0] != ".", os.listdir(overlays)):
        place = f"{overlays}/{name}"
        if name not in declared and not any(path.startswith(f"{place}/") for path in used):
            gone.append(place)
        elif os.path.islink(f"{place}/current"):  # else one is about to become current, by the next deploy
            gone += _versions(place) - used - {_target(f"{place}/current")}
    return gone


def builds(used: set[str]) -> list[str]:
    """Return the builds that are neither current, mounted, named by data nor on trial, but the latest good ones."""
    link, place = layout.INSTALLATION, layout.RELEASES
    if not os.path.islink(link) or not os.path.exists(layout.GAME_SETTINGS):
        return []  # what is there is an older deploy's, and this one's data are still to come
    with open(layout.GAME_SETTINGS, encoding="utf-8") as file:
        told = json.load(file)
    used = used | {f"{place}/{name}" for name in {told["build"], *_words("build", optional=True)}}
    used |= {_target(each) for each in (link, layout.CANDIDATE) if os.path.islink(each)}
    spare = sorted(_versions(place) - used, key=lambda path: os.stat(path).st_ctime_ns, reverse=True)
    kept = [path for path in spare if runs(path)][: told["kept"]]
    return [path for path in spare if path not in kept]


GOOD, LEFT = "good", "left by a rollback"


def verdict(path: str) -> str:
    """Return what became of a build: its trial was GOOD, it was LEFT, or why it does not run; empty without a trial."""
    try:
        with open(f"{layout.VERDICTS}/{os.path.basename(path)}", encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def runs(path: str) -> bool:
    """Tell whether the trial of a build was good."""
    return verdict(path).startswith((GOOD, LEFT))


def unused() -> list[str]:
    """Return the paths of all of them."""
    if not os.path.isdir(layout.ETC):
        return []  # nothing has been deployed here yet
    used = mounted()
    return [*layers(used), *builds(used)]


def leftovers() -> list[str]:
    """Return what killed runs left beside the versions; or, of one that is at work, what it is making."""
    return left_in(layout.VAR, layout.RELEASES, layout.OVERLAYS, f"{layout.OVERLAYS}/*")


def left_in(*places: str) -> list[str]:
    """Return what killed runs left in some directories, by glob's patterns."""
    return [
        path for place in places for kind in ("new", "gone", "download") for path in glob.glob(f"{place}/.{kind}-*")
    ]


if __name__ == "__main__":
    try:
        gone = unused()
    except FileNotFoundError:  # a deploy that was killed has not written all; the next one does, and looks again
        gone = []
    print(json.dumps(sorted([*gone, *leftovers()])))
