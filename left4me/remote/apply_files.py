"""Put files, directories and symlinks in place, and remove others: apply_files.py, with a JSON list on standard input.

Each item has do (directory, file, symlink, secret or remove) and path, and, but for remove, mode, owner and group; a
file has text, and perhaps a check, a command that has to accept it first; a symlink has a target; a secret has a text
with a %s for what is made here at random. Files are written under an
unguessable name beside their place, with their owner and mode before their content, and renamed: never half-written,
never anyone's but root's to write. All is on disk (fsync) before this ends, so that what a deploy reported done
survives a power cut.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import sys
from typing import Any


def owner_of(item: dict[str, Any]) -> tuple[int, int]:
    """Return the uid and gid that an item names."""
    return pwd.getpwnam(item["owner"]).pw_uid, grp.getgrnam(item["group"]).gr_gid


def beside(path: str) -> str:
    """Return a name in the same directory that nobody can guess."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{secrets.token_hex(8)}")


def sync_directory(path: str) -> None:
    """Put on disk what names a directory holds."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def make_way(path: str, wanted: int) -> None:
    """Remove what is at `path` where it is of another type than `wanted` (a stat format)."""
    try:
        there = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_IFMT(there) == wanted:
        return
    if stat.S_ISDIR(there):
        os.rmdir(path)  # a directory with something in it is somebody's: this fails and says so
    else:
        os.unlink(path)


def directory(item: dict[str, Any]) -> None:
    """Make a directory, or give the one that is there its owner and mode."""
    path = item["path"]
    if item["shared"] and os.path.isdir(path):
        return
    make_way(path, stat.S_IFDIR)
    if not os.path.isdir(path):
        os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    os.fchown(fd, *owner_of(item))
    os.fchmod(fd, item["mode"])
    os.fsync(fd)
    os.close(fd)


def file(item: dict[str, Any]) -> None:
    """Write a file whole and put it in place by one rename."""
    path = item["path"]
    make_way(path, stat.S_IFREG)
    temporary = beside(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.fchown(fd, *owner_of(item))
        with open(fd, "w", encoding="utf-8") as out:
            out.write(item["text"])
            out.flush()
            os.fchmod(fd, item["mode"])
            os.fsync(fd)
        if item["check"]:
            subprocess.run([*item["check"], temporary], check=True)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def secret(item: dict[str, Any]) -> None:
    """Make a file with something random in it; one that is there keeps it, and gets its owner and mode."""
    if os.path.isfile(item["path"]) and not os.path.islink(item["path"]):
        os.chown(item["path"], *owner_of(item))
        os.chmod(item["path"], item["mode"])
    else:
        file(item | {"text": item["text"] % secrets.token_urlsafe(24)})


def symlink(item: dict[str, Any]) -> None:
    """Make a symlink and put it in place by one rename."""
    path = item["path"]
    make_way(path, stat.S_IFLNK)
    temporary = beside(path)
    os.symlink(item["target"], temporary)
    os.rename(temporary, path)


def remove(item: dict[str, Any]) -> None:
    """Remove what is at a path in a directory that root alone can write, and everything below it."""
    path = item["path"]
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def main(items: list[dict[str, Any]]) -> None:
    """Do all of it, in order; the first failure ends it with one line."""
    actions = {"directory": directory, "file": file, "symlink": symlink, "secret": secret, "remove": remove}
    touched = set()
    for item in items:
        try:
            actions[item["do"]](item)
        except (OSError, KeyError, subprocess.CalledProcessError) as error:
            sys.exit(f"cannot {item['do']} {item['path']}: {error}")
        touched.add(os.path.dirname(item["path"]))
    for path in sorted(touched):
        if os.path.isdir(path):
            sync_directory(path)


if __name__ == "__main__":
    main(json.load(sys.stdin))
