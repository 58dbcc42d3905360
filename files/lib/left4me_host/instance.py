"""Read and change the state of a server in systemd, in the kernel and on disk."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from left4me_host import layout, mountinfo

ID = re.compile(layout.SERVER_ID)


class Failed(Exception):
    """An operation failed; the message names the server, the reason and what to do next. Exit code 1."""


class Usage(Exception):
    """The command line is wrong. Exit code 2."""


def declared() -> list[str]:
    """Return the ids of the declared servers, sorted."""
    return [name for name in instances() if ID.fullmatch(name)]


def instances() -> list[str]:
    """Return the ids of the declared servers and of the instances for smoke tests, sorted."""
    try:
        return sorted(name for name in os.listdir(layout.SERVERS) if ID.fullmatch(name.removeprefix("_")))
    except FileNotFoundError:
        return []


class Command:
    """A process, started on creation, without subprocess, whose import would delay a reset."""

    def __init__(self, *words: str) -> None:
        self._output, end = os.pipe()
        output = [(os.POSIX_SPAWN_DUP2, end, 1), (os.POSIX_SPAWN_DUP2, end, 2)]
        files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *output]
        self._pid = os.posix_spawnp(words[0], words, os.environ, file_actions=files)
        os.close(end)

    def wait(self) -> tuple[int, str]:
        """Return the exit code and the output, stdout and stderr together."""
        with open(self._output, encoding="utf-8", errors="replace") as file:
            text = file.read().strip()
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), text


class Systemctl(Command):
    def __init__(self, *arguments: str) -> None:
        super().__init__("systemctl", *arguments)


def properties(servers: list[str], *names: str) -> dict[str, dict[str, str]]:
    """Return systemd's properties of servers' units, by id. Raises Failed if systemd does not know a unit."""
    if not servers:
        return {}
    show = Systemctl("show", "--no-pager", f"--property=Id,{','.join(names)}", *map(layout.unit, servers))
    text = show.wait()[1]
    blocks = [dict(line.split("=", 1) for line in lines.splitlines() if "=" in line) for lines in text.split("\n\n")]
    found = {block["Id"].partition("@")[2].removesuffix(".service"): block for block in blocks if "Id" in block}
    if missing := set(servers) - found.keys():
        raise Failed(f"systemctl show returned nothing for {layout.unit(missing.pop())}: {text}")
    return found


def environment(server: str) -> dict[str, str]:
    """Return the variables of a server's server.env; empty if the file is missing."""
    try:
        with open(f"{layout.SERVERS}/{server}/server.env", encoding="utf-8", errors="replace") as file:
            pairs = [line.strip().partition("=") for line in file if "=" in line and not line.startswith("#")]
    except FileNotFoundError:
        return {}
    return {key: value.strip('"') for key, _, value in pairs}


def started_with(server: str) -> dict[str, str]:
    """Return the server.env with which a running server was started, and its lower layers (LOWERS, separated by `:`).

    left4me-overlay records both at the mount. Empty without a record.
    """
    try:
        with open(layout.started_record(server), encoding="utf-8", errors="replace") as file:
            return {key: value for key, _, value in (line.rstrip("\n").partition("=") for line in file)}
    except FileNotFoundError:
        return {}


def address_of(env: dict[str, str]) -> tuple[str, int] | None:
    """Return the address and port for queries from this host; None if `env` (a server.env) has no valid ones."""
    address, port = env.get("LEFT4ME_ADDRESS", "0.0.0.0"), env.get("LEFT4ME_PORT", "")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        return None
    # Not a name, which would be looked up: one server's mistake would stop the status of all.
    if not re.fullmatch(r"([0-9]{1,3}\.){3}[0-9]{1,3}", address) or any(int(part) > 255 for part in address.split(".")):
        return None
    return "127.0.0.1" if address == "0.0.0.0" else address, int(port)


def overlays() -> dict[str, list[list[str]]]:
    """Return the lower layers of each mount below runtime/ in PID 1's namespace, by mount point.

    The topmost layer comes first, the build last. A mount point may have several mounts.
    """
    found: dict[str, list[list[str]]] = {}
    for mount in mountinfo.mounts():
        if mount.point.startswith(f"{layout.RUNTIME}/"):
            found.setdefault(mount.point, []).append(mount.lowers() or [""])
    return found


def declared_lines(server: str, name: str) -> list[str]:
    """Return the lines of a server's declared file (layers, keep, build or restart); none if it is missing."""
    try:
        with open(f"{layout.SERVERS}/{server}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def declared_build(server: str) -> str:
    """Return the build declared for a server; empty if it uses the current one."""
    return "".join(declared_lines(server, "build"))


def lowers(server: str) -> list[str]:
    """Return the lower layers that left4me-overlay would mount at a start, topmost first; "?" for a missing one."""
    found = []
    game = layout.INSTALLATION if ID.fullmatch(server) else layout.CANDIDATE
    for link in [*(f"{layout.OVERLAYS}/{name}/current" for name in declared_lines(server, "layers")), game]:
        try:
            found.append(os.path.join(os.path.dirname(link), os.readlink(link)))
        except OSError:
            found.append("?")
    if build := declared_build(server):
        found[-1] = f"{layout.RELEASES}/{build}"
    return found


def mounted(server: str) -> bool:
    return layout.merged(server) in overlays()


def noted(server: str) -> str:
    """Return the device (major:minor) of a server's overlay if it may be in use, mounted or not; otherwise empty."""
    try:
        numbers = os.readlink(layout.overlay_note(server))
    except FileNotFoundError:
        return ""
    return "" if numbers == layout.OVERLAY_GONE else numbers


@contextmanager
def locked(path: str, waits: bool = True) -> Iterator[bool]:
    """Lock a directory (flock(2)) that only root can open.

    Yields False if `waits` is false and another process has the lock.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        # The previous owner of the lock may have removed the file, and others may lock a new one.
        free = os.path.samestat(os.fstat(fd), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        free = False
    try:
        yield free
    finally:
        os.close(fd)


@contextmanager
def unmounted(server: str) -> Iterator[None]:
    """Block mounts of a server's overlay. Raises Failed if something is mounted in the server's directories."""
    with locked(layout.runtime(server)):
        for path in overlays():
            if path.startswith(f"{layout.runtime(server)}/"):
                do = f"l4d2ctl stop {server}" if path == layout.merged(server) else f"umount {path}"
                raise Failed(f"server {server}: {path} is mounted; {do}")
        yield


@contextmanager
def between_deploys() -> Iterator[bool]:
    """Block the commands of deploys; yield False if a deploy is running, even between two commands.

    During a deploy the current versions and the servers' files may not match yet.
    """
    from left4me_host import posix_lock  # here: hardly any command needs it

    os.makedirs(layout.RUN, 0o755, exist_ok=True)
    with open(os.open(layout.DEPLOY_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            # Only inspect the deploy's lock: taking it would make a starting deploy fail.
            yield posix_lock.holder(file.fileno()) == 0


def plain(text: str) -> str:
    """Return text from a game in a form that is safe to print: "?" for every unprintable character."""
    return "".join(character if character.isprintable() else "?" for character in text)


def closed_stdout() -> select.poll:
    """Return what polls for the moment in which the reader of stdout goes; if that is no pipe, it never comes."""
    poll = select.poll()
    if sys.stdout is not None:  # else its descriptor may be another file's
        poll.register(1, 0)  # POLLERR and POLLHUP alone
    return poll


def sync_journal() -> None:
    """Wait until the journal has everything logged so far, at most ten seconds."""
    Command("timeout", "10", "journalctl", "--sync").wait()


def journal(name: str, lines: int) -> list[str]:
    """Return the last lines of a unit's journal in a form that is safe to print."""
    sync_journal()  # PID 1's latest messages may not have arrived yet
    command = ("journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={lines}", f"--unit={name}")
    return list(map(plain, Command(*command).wait()[1].splitlines()))


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def reset_unfinished(server: str) -> bool:
    """Return whether a server has an unfinished reset, which keeps its unit from starting."""
    return os.path.exists(f"{layout.runtime(server)}/reset")


def undone(server: str) -> str:
    """Return the path of the plan of an undo that has only the server's start left to do."""
    return f"{layout.runtime(server)}/undone"


FINISHED = {
    "reset": "a reset was finished at the boot",
    "undo": "an undo was finished at the boot",
    "not begun": "an interrupted reset changed nothing",
}


def finished(server: str) -> str:
    """Return what the boot did about an unfinished reset: a key of FINISHED; empty if no reset was unfinished.

    The record stays until the server is started or reset.
    """
    try:
        with open(f"{layout.RUN}/{server}.finished", encoding="ascii", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def note_finished(server: str, did: str) -> None:
    with open(f"{layout.RUN}/{server}.finished", "w", encoding="ascii") as file:
        file.write(did)


def forget_finished(server: str) -> None:
    """Remove the record of finished() and an undo's plan."""
    for path in (f"{layout.RUN}/{server}.finished", undone(server)):
        with suppress(FileNotFoundError):
            os.unlink(path)


def who() -> str:
    """Return the user who runs this command, by sudo or as root."""
    return plain(os.environ.get("SUDO_USER", "")[:64]) or "root"


def is_held(server: str) -> bool:
    return os.path.exists(f"{layout.HELD}/{server}")


def hold(server: str) -> None:
    """Keep a server down over deploys and reboots: write who stopped it to a file that its unit's condition checks."""
    try:
        fd = os.open(f"{layout.HELD}/{server}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        return  # keep the time and name of the first stop
    try:
        os.write(fd, f"{who()}\n".encode())
    except OSError as error:
        if error.errno != errno.ENOSPC:  # on a full disk the empty file is enough
            raise
    finally:
        os.close(fd)
    sync_directory(layout.HELD)


def held_by(server: str) -> str:
    """Return who stopped a server by hand; empty if nobody did or the name is not recorded."""
    try:
        with open(f"{layout.HELD}/{server}", encoding="utf-8", errors="replace") as file:
            return file.read(64).strip()
    except FileNotFoundError:
        return ""


def release(server: str) -> None:
    """Let a server that was stopped by hand start again."""
    try:
        os.unlink(f"{layout.HELD}/{server}")
    except FileNotFoundError:
        return
    sync_directory(layout.HELD)
