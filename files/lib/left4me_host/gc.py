"""Garbage collection: finds the versions of layers and the builds of the game that nothing uses.

The deploy also sends this file as a program (`python3 -I -c TEXT`), which prints the paths as a JSON list.
"""

from __future__ import annotations

import errno
import glob
import json
import os

from left4me_host import layout, mountinfo

PROC = "/proc"


def mounted() -> set[str]:
    """Return the lower layers of all overlays in the mount namespaces of all processes."""
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir(PROC)):
        try:
            mounts = mountinfo.mounts(f"{PROC}/{pid}/mountinfo")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL):
                raise
            continue  # the process has ended
        found.update(path for mount in mounts for path in mount.lowers())
    return found


def _words(name: str, optional: bool = False) -> set[str]:
    """Return the words in the file `name` of all servers, which may lack it if `optional`."""
    words: set[str] = set()
    for server in filter(lambda server: server[0] != ".", os.listdir(layout.SERVERS)):
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
    """Return the versions of layers that are neither current nor mounted, and the layers that no server declares."""
    declared, overlays, unused = _words("layers"), layout.OVERLAYS, []
    for name in filter(lambda name: name[0] != ".", os.listdir(overlays)):
        place = f"{overlays}/{name}"
        if name not in declared and not any(path.startswith(f"{place}/") for path in used):
            unused.append(place)
        elif os.path.islink(f"{place}/current"):  # else the next deploy makes one current
            unused += _versions(place) - used - {_target(f"{place}/current")}
    return unused


def builds(used: set[str]) -> list[str]:
    """Return the builds that are not current, mounted, declared, in a smoke test, or among the latest good ones."""
    link, place = layout.INSTALLATION, layout.RELEASES
    if not os.path.islink(link) or not os.path.exists(layout.GAME_SETTINGS):
        return []  # no deploy has written the settings yet
    with open(layout.GAME_SETTINGS, encoding="utf-8") as file:
        settings = json.load(file)
    used = used | {f"{place}/{name}" for name in {settings["build"], *_words("build", optional=True)}}
    used |= {_target(each) for each in (link, layout.CANDIDATE) if os.path.islink(each)}
    spare = sorted(_versions(place) - used, key=lambda path: os.stat(path).st_ctime_ns, reverse=True)
    kept = [path for path in spare if runs(path)][: settings["kept"]]
    return [path for path in spare if path not in kept]


GOOD, LEFT = "good", "left by a rollback"  # LEFT is followed by the target and time


def smoke_test_result(path: str) -> str:
    """Return the recorded result of a build: GOOD, LEFT…, or why its smoke test failed; empty if not recorded."""
    try:
        with open(f"{layout.VERDICTS}/{os.path.basename(path)}", encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def runs(path: str) -> bool:
    """Return whether a build has passed its smoke test."""
    return smoke_test_result(path).startswith((GOOD, LEFT))


def unused() -> list[str]:
    if not os.path.isdir(layout.ETC):
        return []  # nothing has been deployed here yet
    used = mounted()
    return [*layers(used), *builds(used)]


def stale() -> list[str]:
    """Return the temporary directories beside the versions: stale ones, and those of a running deploy."""
    return stale_in(layout.VAR, layout.RELEASES, layout.OVERLAYS, f"{layout.OVERLAYS}/*")


def stale_in(*places: str) -> list[str]:
    """Return the temporary files and directories in `places`, which are glob patterns."""
    return [
        path for place in places for kind in ("new", "gone", "download") for path in glob.glob(f"{place}/.{kind}-*")
    ]


if __name__ == "__main__":
    try:
        found = unused()
    except FileNotFoundError:  # an interrupted deploy left it out; the next deploy writes it, then looks again
        found = []
    print(json.dumps(sorted([*found, *stale()])))
