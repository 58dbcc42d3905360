"""Put a game release in place: release.py NAME [DIRECTORY], from a directory on this host or a tar on standard input.

The tar comes in lines of base64. The release is built beside the others, checked, put on disk, renamed, and made
current by replacing one symlink: whatever dies at any point, `installation` names a whole release.
"""

from __future__ import annotations

import base64
import fcntl
import grp
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import sys

VAR = "/var/lib/left4me"
RELEASES = f"{VAR}/releases"


def copy(source: str, target: str) -> None:
    """Copy a tree, sharing its blocks where the filesystem can."""
    subprocess.run(["cp", "--archive", "--reflink=auto", f"{source}/.", target], check=True)


def unpack(target: str) -> None:
    """Unpack the tar on standard input, all of it: tar itself would take an end between two files for the end."""
    command = ["tar", "--extract", "--no-same-owner", "--directory", target]
    whole = False
    with subprocess.Popen(command, stdin=subprocess.PIPE) as tar:
        assert tar.stdin
        try:
            for line in sys.stdin.buffer:
                whole = line.strip() == b"."
                tar.stdin.write(b"" if whole else base64.b64decode(line))
            tar.stdin.close()
        except BrokenPipeError:
            pass  # tar has said why, and its exit code below is what counts
    if tar.returncode:
        raise subprocess.CalledProcessError(tar.returncode, command)
    if not whole:
        raise OSError("what was sent ended before its end: deploy again")


def own(target: str) -> None:
    """Give the tree to left4me, its group writing too: a copy-up keeps both, and so a server can change its own."""
    uid, gid = pwd.getpwnam("left4me").pw_uid, grp.getgrnam("left4me").gr_gid
    for base, _names, files, fd in os.fwalk(target):
        os.chown(fd, uid, gid)
        os.chmod(fd, 0o775)
        for name in files:
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_ISREG(mode):
                os.chmod(name, 0o775 if mode & 0o100 else 0o664, dir_fd=fd)
            elif not stat.S_ISLNK(mode):
                sys.exit(f"{base}/{name} is neither a file nor a directory nor a link: not a game's")


def sync(path: str) -> None:
    """Put a directory's names on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def build(name: str, source: str | None) -> None:
    """Make releases/NAME."""
    new = f"{RELEASES}/.new-{secrets.token_hex(8)}"
    os.mkdir(new, 0o700)
    try:
        if source:
            copy(source, new)
        else:
            unpack(new)
        if not os.access(f"{new}/srcds_run", os.X_OK):
            sys.exit(f"{source or 'what was sent'} holds no srcds_run that can be executed")
        own(new)
        os.sync()
        os.rename(new, f"{RELEASES}/{name}")
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    sync(RELEASES)


def mounted() -> set[str]:
    """Return every lower layer of every overlay, in whatever mount namespace a process lives."""
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                lowers = [part for line in file for part in line.split()[-1].split(",") if part.startswith("lowerdir=")]
        except OSError:
            continue  # it has ended
        found.update(path for each in lowers for path in each.removeprefix("lowerdir=").split(":"))
    return found


def main(name: str, source: str | None) -> None:
    """Build the release unless it is there, make it current, and remove those that no mount uses."""
    # Until this ends: a killed deploy's own copy of this may still be at work, and look.py waits for it.
    fcntl.flock(os.open("/root", os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX)
    if not os.path.isdir(f"{RELEASES}/{name}"):
        build(name, source)
    temporary = f"{VAR}/.installation.{secrets.token_hex(8)}"
    os.symlink(f"releases/{name}", temporary)
    lock = os.open(RELEASES, os.O_RDONLY | os.O_DIRECTORY)  # which nobody but root can open, and so lock
    # left4me-overlay shares this lock from reading the symlink to the mount: none mounts what is about to go.
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(temporary, f"{VAR}/installation")
    sync(VAR)
    used = mounted()
    gone = []
    for other in os.listdir(RELEASES):
        if other != name and f"{RELEASES}/{other}" not in used:
            gone.append(f"{RELEASES}/.gone-{secrets.token_hex(8)}")
            os.rename(f"{RELEASES}/{other}", gone[-1])
    os.close(lock)
    for path in gone:
        shutil.rmtree(path)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    except (OSError, subprocess.CalledProcessError) as error:
        while sys.stdin.buffer.read(1 << 20):
            pass  # what is still on its way; with the pipe broken this line would not reach anybody
        sys.exit(f"the game was not put in place: {error}")
