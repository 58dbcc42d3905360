"""Write and remove files, directories and symlinks: apply_files.py, with a JSON list on standard input.

The items are those of left4me/manifest.py, or {"do": "remove", "path": …}. A file is written under an unguessable name
in its directory, gets its owner before its content, and is then renamed. So nobody sees a half-written file, and only
root can write it. Missing parents are created. Everything is on disk (fsync) before this program ends.
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
from pathlib import PurePath
from typing import Any


def owner_of(item: dict[str, Any]) -> tuple[int, int]:
    return pwd.getpwnam(item["owner"]).pw_uid, grp.getgrnam(item["group"]).gr_gid


def beside(path: str) -> str:
    """Return an unguessable path in the same directory."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{secrets.token_hex(8)}")


def remove_other_type(path: str, file_type: int) -> None:
    """Remove `path` if its type is not `file_type` (stat.S_IFMT). Raises OSError for a directory that is not empty."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_IFMT(mode) == file_type:
        return
    if stat.S_ISDIR(mode):
        os.rmdir(path)
    else:
        os.unlink(path)


def directory(item: dict[str, Any]) -> None:
    path = item["path"]
    remove_other_type(path, stat.S_IFDIR)
    if not os.path.isdir(path):
        os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    os.fchown(fd, *owner_of(item))
    os.fchmod(fd, item["mode"])
    os.fsync(fd)
    os.close(fd)


def file(item: dict[str, Any]) -> None:
    path = item["path"]
    remove_other_type(path, stat.S_IFREG)
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
    """Create a file with a random value; an existing file keeps its content and gets the owner and mode."""
    if os.path.isfile(item["path"]) and not os.path.islink(item["path"]):
        os.chown(item["path"], *owner_of(item))
        os.chmod(item["path"], item["mode"])
    else:
        file(item | {"text": item["text"] % secrets.token_urlsafe(24)})


def symlink(item: dict[str, Any]) -> None:
    path = item["path"]
    remove_other_type(path, stat.S_IFLNK)
    temporary = beside(path)
    os.symlink(item["target"], temporary)
    os.rename(temporary, path)


def remove(item: dict[str, Any]) -> None:
    path = item["path"]
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def main(items: list[dict[str, Any]]) -> None:
    """Apply the items in order; exit with one line at the first failure."""
    actions = {"directory": directory, "file": file, "symlink": symlink, "secret": secret, "remove": remove}
    touched: set[str] = set()
    for item in items:
        folder = os.path.dirname(item["path"])
        try:
            if item["do"] != "remove":
                os.makedirs(folder, exist_ok=True)
            actions[item["do"]](item)
        except (OSError, KeyError, subprocess.CalledProcessError) as error:
            verb = "" if item["do"] == "remove" else "write "
            sys.exit(f"cannot {verb}{item['do']} {item['path']}: {error}")
        touched.update(map(str, PurePath(item["path"]).parents))
    for path in filter(os.path.isdir, sorted(touched)):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)


if __name__ == "__main__":
    os.umask(0o022)  # for missing parents
    main(json.load(sys.stdin))
