"""A server as systemd, the kernel and its files have it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from left4me_host import layout, mountinfo, posix_lock

ID = re.compile(layout.SERVER_ID)


class Failed(Exception):
    """Something could not be done; the message names the server, the reason, and what to do next. Exit 1."""


class Usage(Exception):
    """The command line is wrong. Exit 2."""


def declared() -> list[str]:
    """Return the ids of the servers that the deploy declared, in order."""
    return [name for name in instances() if ID.fullmatch(name)]


def instances() -> list[str]:
    """Return all that has files of a server's, in order: the servers, and what a build of the game is tried with."""
    try:
        return sorted(name for name in os.listdir(layout.SERVERS) if ID.fullmatch(name.removeprefix("_")))
    except FileNotFoundError:
        return []


class Systemctl:
    """systemctl, at work from here on. subprocess could do it as well, and is what a reset would first import."""

    def __init__(self, *arguments: str) -> None:
        self._words, end = os.pipe()
        output = [(os.POSIX_SPAWN_DUP2, end, 1), (os.POSIX_SPAWN_DUP2, end, 2)]
        files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *output]
        self._pid = os.posix_spawnp("systemctl", ["systemctl", *arguments], os.environ, file_actions=files)
        os.close(end)

    def wait(self) -> tuple[int, str]:
        """Return its exit code and its words, which are the caller's to judge."""
        with open(self._words, encoding="utf-8", errors="replace") as file:
            words = file.read().strip()
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), words


def asking(servers: list[str], *names: str) -> Callable[[], dict[str, dict[str, str]]]:
    """Ask systemd for properties of servers' units; what is returned waits for the answer, and has it by id."""
    if not servers:
        return dict
    show = Systemctl("show", "--no-pager", f"--property=Id,{','.join(names)}", *map(layout.unit, servers))

    def answer() -> dict[str, dict[str, str]]:
        words = show.wait()[1]
        blocks = [dict(line.split("=", 1) for line in text.splitlines() if "=" in line) for text in words.split("\n\n")]
        found = {block["Id"].partition("@")[2].removesuffix(".service"): block for block in blocks if "Id" in block}
        if not found.keys() >= set(servers):
            raise Failed(
                f"systemctl show tells nothing of {layout.unit(next(iter(set(servers) - found.keys())))}: {words}"
            )
        return found

    return answer


def properties(servers: list[str], *names: str) -> dict[str, dict[str, str]]:
    """Return properties of several servers' units, as systemd reports them, by id: one call for all."""
    return asking(servers, *names)()


def environment(server: str) -> dict[str, str]:
    """Return what the deploy declared of a server in its server.env; empty where there is none."""
    try:
        with open(f"{layout.SERVERS}/{server}/server.env", encoding="utf-8") as file:
            pairs = [line.strip().partition("=") for line in file if "=" in line and not line.startswith("#")]
    except FileNotFoundError:
        return {}
    return {key: value.strip('"') for key, _, value in pairs}


def started_with(server: str) -> dict[str, str]:
    """Return what a running server was started with: its server.env then, and LOWERS, its layers with `:` between.

    As left4me-overlay recorded it at the mount; empty where there is no record.
    """
    try:
        with open(layout.started_record(server), encoding="utf-8", errors="replace") as file:
            return {key: value for key, _, value in (line.rstrip("\n").partition("=") for line in file)}
    except FileNotFoundError:
        return {}


def address_of(env: dict[str, str]) -> tuple[str, int] | None:
    """Return where a server is asked from this host; None where its environment names no port."""
    address, port = env.get("LEFT4ME_ADDRESS", "0.0.0.0"), env.get("LEFT4ME_PORT", "")
    if not port.isdigit():
        return None
    return "127.0.0.1" if address == "0.0.0.0" else address, int(port)


def overlays() -> dict[str, list[list[str]]]:
    """Return the lower layers of every overlay below runtime/, the topmost first and the build last, by mount point.

    As PID 1 has them; one point may have several.
    """
    found: dict[str, list[list[str]]] = {}
    for mount in mountinfo.mounts():
        if mount.point.startswith(f"{layout.RUNTIME}/"):
            found.setdefault(mount.point, []).append(mount.lowers() or [""])
    return found


def declared_lines(server: str, name: str) -> list[str]:
    """Return the lines of a server's declared file: layers, keep, build or restart; none where it is missing."""
    try:
        with open(f"{layout.SERVERS}/{server}/{name}", encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def declared_build(server: str) -> str:
    """Return the build that the data name for a server; empty where it has the current one."""
    return "".join(declared_lines(server, "build"))


def lowers(server: str) -> list[str]:
    """Return the lower layers that a start would give a server, as the helper has them; "?" for one that is missing."""
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
    """Tell whether something is mounted on a server's merged directory."""
    return layout.merged(server) in overlays()


def noted(server: str) -> str:
    """Return major:minor of a server's overlay while it may be in use, mounted or not, as left4me-overlay notes it."""
    try:
        numbers = os.readlink(layout.overlay_note(server))
    except FileNotFoundError:
        return ""
    return "" if numbers == layout.OVERLAY_GONE else numbers


@contextmanager
def locked(path: str, waits: bool = True, flags: int = os.O_DIRECTORY) -> Iterator[bool]:
    """Hold the lock of a path that only root can open; without `waits`, tell whether it was free.

    `flags` are open(2)'s.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        # Whoever held it may have removed it: others would hold another file of that name.
        free = os.path.samestat(os.fstat(fd), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        free = False
    try:
        yield free
    finally:
        os.close(fd)


@contextmanager
def unmounted(server: str) -> Iterator[None]:
    """Keep left4me-overlay out of a server's directories. Raises Failed where something is mounted in them."""
    with locked(layout.runtime(server)):
        for path in overlays():
            if path.startswith(f"{layout.runtime(server)}/"):
                do = f"l4d2ctl stop {server}" if path == layout.merged(server) else f"umount {path}"
                raise Failed(f"server {server}: {path} is mounted; {do}")
        yield


@contextmanager
def between_deploys() -> Iterator[bool]:
    """Have the commands of deploys wait; tell whether no deploy is at work, which may be between two of its commands.

    What is current then and what the servers' files name need not be the same yet.
    """
    os.makedirs(layout.RUN, 0o755, exist_ok=True)
    with open(os.open(layout.DEPLOY_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            # Looked at, not taken: a deploy that begins at this moment would be refused by it.
            yield posix_lock.holder(file.fileno()) == 0


def plain(text: str) -> str:
    """Return text that a game may have chosen, fit for a terminal: no escape, no newline, nothing that is no text."""
    return "".join(character if character.isprintable() else "?" for character in text)


def sync_journal() -> None:
    """Return when the journal has all that was said, after ten seconds at the latest."""
    import subprocess  # here: hardly any command needs it

    subprocess.run(["timeout", "10", "journalctl", "--sync"], capture_output=True, check=False)


def journal(name: str, lines: int) -> list[str]:
    """Return the last lines of a unit's journal, fit for a terminal."""
    import subprocess  # here: hardly any command needs it

    command = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={lines}", f"--unit={name}"]
    sync_journal()  # what PID 1 has just said may be on its way still
    # A game writes what it likes.
    said = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    return list(map(plain, said.splitlines()))


def sync_directory(path: str) -> None:
    """Put the names that a directory holds on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def reset_unfinished(server: str) -> bool:
    """Tell whether a reset of a server has begun and not ended; its unit does not start meanwhile."""
    return os.path.exists(f"{layout.runtime(server)}/reset")


def undone(server: str) -> str:
    """Return the path of an undo's plan, there while the undo is done but for the start."""
    return f"{layout.runtime(server)}/undone"


FINISHED = {
    "reset": "a reset was finished at the boot",
    "undo": "an undo was finished at the boot",
    "not begun": "a reset had not begun before the boot",
}


def finished(server: str) -> str:
    """Return what the boot found of an unfinished reset: a key of FINISHED; empty where there was none.

    Until somebody starts or resets the server.
    """
    try:
        with open(f"{layout.RUN}/{server}.finished", encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def note_finished(server: str, did: str) -> None:
    """Note what finished() shall return."""
    with open(f"{layout.RUN}/{server}.finished", "w", encoding="ascii") as file:
        file.write(did)


def forget_finished(server: str) -> None:
    """Forget what was finished without anybody being told: whoever starts or resets the server has gone on."""
    for path in (f"{layout.RUN}/{server}.finished", undone(server)):
        with suppress(FileNotFoundError):
            os.unlink(path)


def is_held(server: str) -> bool:
    """Tell whether an operator stopped a server by hand, for good until he starts it."""
    return os.path.exists(f"{layout.HELD}/{server}")


def hold(server: str) -> None:
    """Keep a server down over deploys and reboots: its unit's condition looks at this file, which says by whom."""
    try:
        fd = os.open(f"{layout.HELD}/{server}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        return  # since when, and by whom, stays
    try:
        os.write(fd, f"{os.environ.get('SUDO_USER', 'root')}\n".encode())
    except OSError as error:
        if error.errno != errno.ENOSPC:  # a full disk has room for the file itself, and that is what holds
            raise
    finally:
        os.close(fd)
    sync_directory(layout.HELD)


def held_by(server: str) -> str:
    """Return who stopped a server by hand; empty where nobody did, or before left4me wrote that down."""
    try:
        with open(f"{layout.HELD}/{server}", encoding="utf-8", errors="replace") as file:
            return file.read(64).strip()
    except FileNotFoundError:
        return ""


def release(server: str) -> None:
    """Let a held server start again."""
    try:
        os.unlink(f"{layout.HELD}/{server}")
    except FileNotFoundError:
        return
    sync_directory(layout.HELD)
