"""Reset a server by renaming two directories, and undo resets.

A reset writes its plan to runtime/ID/reset before the first rename, so that a second reset or the next boot finishes an
interrupted one. Nothing here walks a tree that the game can write: the directories move to the attic as a whole, and
left4me-attic.service removes the oldest later.

An undo brings back the latest entry that a reset or removal put into the attic, so repeated undos go further back. The
files that an undo itself moves to the attic come back only by their time.
"""

from __future__ import annotations

import os
import pwd
import sys
import time

from left4me_host import attic, instance, jobs, layout, lifecycle, server_lock

PASSWORD = "rcon.cfg"  # the RCON password made by the host, in secrets/ID and in the attic's entry of a removal
AT_BOOT = "left4me-finish-resets.service"
_RUNNING = ("active", "activating", "reloading")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def _plan_path(server: str) -> str:
    return f"{layout.runtime(server)}/reset"


def _read_plan(path: str) -> dict[str, str] | None:
    """Return a plan (keys: into, back, asked, start); None if the file is missing or incomplete.

    A power cut may leave an empty file, but only before the first rename.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            plan = dict(line.rstrip("\n").partition("=")[::2] for line in file)
    except FileNotFoundError:
        return None
    return plan if "into" in plan else None


def _write_plan(server: str, plan: dict[str, str]) -> None:
    new = f"{_plan_path(server)}.new"
    with open(new, "w", encoding="utf-8") as file:
        file.writelines(f"{key}={value}\n" for key, value in plan.items())
    os.rename(new, _plan_path(server))


def _sync_plan(server: str) -> None:
    with open(_plan_path(server), "rb") as file:
        os.fsync(file.fileno())
    instance.sync_directory(layout.runtime(server))


def _drop_plan(server: str, plan: dict[str, str] | None) -> None:
    """Remove a reset's plan; rename an undo's to instance.undone(), so that a repeated undo only starts the server."""
    if plan and plan["back"]:
        os.rename(_plan_path(server), instance.undone(server))
    else:
        os.unlink(_plan_path(server))


def _chosen(server: str, asked: str) -> str:
    """Return the attic's entry that an undo brings back: the one of the time `asked`, in the form of attic.rows().

    If `asked` is empty, it is the latest entry that no undo made. Raises Failed.
    """
    entries = attic.entries(server)
    if not asked:
        stack = [name for name in entries if not name.endswith(attic.BY_UNDO)]
        if not stack:
            more = f"; l4d2ctl attic {server} lists the files from earlier undos" * bool(entries)
            raise instance.Failed(f"server {server}: there is no reset to undo in {layout.ATTIC}{more}")
        return stack[-1]
    found = [name for name in entries if name.partition("@")[2].startswith(asked.removeprefix(f"{server}@"))]
    if len(found) != 1:
        which = f"matches more than one entry: {', '.join(map(attic.time_of, found))}" if found else "matches no entry"
        raise instance.Failed(f"server {server}: {asked} {which}; see l4d2ctl attic {server}")
    return found[0]


def _aside(server: str, into: str) -> None:
    """Rename upper and work into the attic, unless an interrupted reset already did."""
    os.makedirs(into, mode=0o700, exist_ok=True)
    for name in ("upper", "work"):
        source = f"{layout.runtime(server)}/{name}"
        if os.path.lexists(source) and not os.path.lexists(f"{into}/{name}"):
            os.rename(source, f"{into}/{name}")


def _sync(server: str, into: str) -> None:
    for directory in (layout.ATTIC, into, layout.runtime(server)):  # the first fsync writes the other changes too
        instance.sync_directory(directory)


def _fresh(server: str, user: pwd.struct_passwd) -> None:
    """Create upper and work with the owners and modes that the deploy gives them."""
    for name, uid, gid, mode in (("upper", user.pw_uid, user.pw_gid, 0o755), ("work", 0, 0, 0o700)):
        path = f"{layout.runtime(server)}/{name}"
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
        os.chown(path, uid, gid)
        os.chmod(path, mode)


def _move_kept(server: str, old: str, user: pwd.struct_passwd) -> None:
    """Move the paths declared in `keep` from the old upper to the new one. Follows no symlink."""
    upper = f"{layout.runtime(server)}/upper"
    for path in instance.declared_lines(server, "keep"):
        from left4me_host import quota  # here: it takes ctypes, and most resets keep nothing

        *parents, name = path.split("/")
        source = target = -1
        try:
            source = os.open(old, _DIRECTORY)
            target = os.open(upper, _DIRECTORY)
            for part in parents:
                source = _step(source, part)
                if part not in os.listdir(target):
                    quota.admit(source, target, upper)
                    os.mkdir(part, 0o755, dir_fd=target)
                    os.chown(part, user.pw_uid, user.pw_gid, dir_fd=target, follow_symlinks=False)
                    os.fsync(target)
                target = _step(target, part)
            os.stat(name, dir_fd=source, follow_symlinks=False)
            if name in os.listdir(target):
                # The undo brought back an older file. Move it to the attic, under a name that a game cannot guess.
                quota.admit(target, source, old)
                os.rename(name, f"{name}.{time.time_ns()}", src_dir_fd=target, dst_dir_fd=source)
            quota.admit(source, target, upper)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
            os.fsync(source)
            os.fsync(target)
        except (FileNotFoundError, NotADirectoryError):
            continue  # the game never made the path, or an interrupted reset already moved it
        finally:
            for fd in (source, target):
                if fd >= 0:
                    os.close(fd)


def _step(fd: int, name: str) -> int:
    """Open `name` in the directory `fd` and close `fd`. Raises NotADirectoryError for a symlink and keeps `fd` open."""
    inner = os.open(name, _DIRECTORY, dir_fd=fd)
    os.close(fd)
    return inner


def _check(server: str) -> pwd.struct_passwd:
    """Return a server's user. Raises Failed if the user or the runtime directory is missing."""
    if os.path.islink(layout.runtime(server)) or not os.path.isdir(layout.runtime(server)):
        raise instance.Failed(f"server {server}: {layout.runtime(server)} is not a directory: deploy this host")
    try:
        return pwd.getpwnam(f"left4me-{server}")
    except KeyError:
        raise instance.Failed(f"server {server}: there is no user left4me-{server}: deploy this host") from None


def reset(server: str, undo: str | None = None) -> dict[str, float]:
    """Reset a server that the caller has locked, or undo a reset, and return the seconds that each step took.

    `undo` is None for a reset, empty to undo the latest reset, or the beginning of a time in the attic. Raises Failed;
    the server may then be stopped, and another reset finishes this one.
    """
    user = _check(server)
    times: dict[str, float] = {}
    resetting = None
    plan = begun = _read_plan(_plan_path(server))
    if plan:
        _require_same(server, plan, undo)
    elif undo is not None and (plan := _read_plan(instance.undone(server))) and plan.get("asked") == undo:
        more = "to undo one more reset, run the command again"
        print(f"server {server}: finished the interrupted undo; {more}", file=sys.stderr)
        _start(server, plan, times)
        return times
    else:
        back = "" if undo is None else _chosen(server, undo)
        into = attic.new_name(server) + attic.BY_UNDO * bool(back)
        runs = instance.properties([server], "ActiveState")[server]["ActiveState"] in _RUNNING
        if runs:  # not for a failed server, whose result the stop reports
            lifecycle.require_ports([server], "reset")
            resetting = lifecycle.reset_failed([server])
        plan = {"into": into, "back": back, "asked": undo or "", "start": "yes" if runs else ""}
        try:
            _write_plan(server, plan)
        except OSError as error:
            raise instance.Failed(f"server {server} is not reset and nothing changed: {error}") from None
    try:
        _sync_plan(server)  # before the stop, so that a power cut during it is finished at boot
        with jobs.timed("stop", times):
            lifecycle.stop([server], held=False, again="reset")
        with jobs.timed("reset", times), instance.unmounted(server):
            _rename(server, plan, user)
        _drop_plan(server, plan)
    except OSError as error:
        raise instance.Failed(
            f"server {server} is stopped, its reset is not finished: {error}. Fix this, then: l4d2ctl reset {server}"
        ) from None
    _start(server, plan, times, resetting)
    if begun:
        instance.Systemctl("reset-failed", AT_BOOT).wait()  # the unit may have failed to finish the reset
    instance.Systemctl("start", "--no-block", "left4me-attic.service")  # no wait(): that would make the reset slower
    return times


def _require_same(server: str, plan: dict[str, str], undo: str | None) -> None:
    """Raise Failed if the plan that an earlier command began is for another command."""
    if undo is None or (plan["back"] and undo in ("", plan.get("asked"))):
        return
    what = "undo" if plan["back"] else "reset"
    raise instance.Failed(
        f"server {server}: an earlier {what} did not finish; run l4d2ctl reset {server} first, then --undo"
    )


def _start(
    server: str, plan: dict[str, str], times: dict[str, float], resetting: instance.Systemctl | None = None
) -> None:
    """Start a server that ran before its reset, unless it is stopped by hand. Raises Failed if it does not start."""
    # Without the sync a power cut could bring the plan back, and a second reset would find nothing to do.
    instance.sync_directory(layout.runtime(server))
    if plan["start"] and not instance.is_held(server):
        try:
            with jobs.timed("start", times):
                lifecycle.start_again([server], resetting)
        except instance.Failed:
            instance.forget_finished(server)  # the error reports it
            raise
    instance.forget_finished(server)


def _rename(server: str, plan: dict[str, str], user: pwd.struct_passwd) -> None:
    """Do the remaining renames of a plan. Raises OSError, or Failed if the attic's entry no longer exists."""
    into, back = f"{layout.ATTIC}/{plan['into']}", plan["back"]
    if back:
        _take_out(server, back, into)
    _aside(server, into)
    if back:
        _sync(server, into)
        _bring_back(server, back, into, user)
    _fresh(server, user)
    _sync(server, into)
    _move_kept(server, f"{into}/upper", user)


def _take_out(server: str, back: str, into: str) -> None:
    """Move the entry `back` out of the attic, before a new entry becomes the latest."""
    taken = f"{layout.runtime(server)}/undo"
    if os.path.lexists(f"{layout.ATTIC}/{back}"):
        os.rename(f"{layout.ATTIC}/{back}", taken)
    elif not os.path.lexists(taken) and not os.path.lexists(into):
        # Nothing was renamed yet; left4me-attic.service was faster.
        os.unlink(_plan_path(server))
        raise instance.Failed(
            f"server {server} is stopped and not reset: {back} was just removed from the attic, "
            f"which keeps `attic_keep` entries. Start it with: l4d2ctl start {server}"
        )
    instance.sync_directory(layout.runtime(server))


def _bring_back(server: str, back: str, into: str, user: pwd.struct_passwd) -> None:
    taken = f"{layout.runtime(server)}/undo"
    for name in ("upper", "work"):
        if os.path.lexists(f"{taken}/{name}"):
            # This replaces an empty directory that a deploy may have made meanwhile.
            os.rename(f"{taken}/{name}", f"{layout.runtime(server)}/{name}")
    _bring_back_password(server, f"{taken}/{PASSWORD}", f"{into}/{PASSWORD}", user)
    if os.path.isdir(taken):
        os.rename(taken, f"{layout.ATTIC}/.gone-{back}")  # left4me-attic.service removes it
    instance.sync_directory(layout.ATTIC)


def _bring_back_password(server: str, kept: str, aside: str, user: pwd.struct_passwd) -> None:
    """Bring back a removed server's RCON password and move the present one to the attic, if the host made both."""
    folder = f"{layout.SECRETS}/{server}"
    if is_plain(kept) and is_plain(f"{folder}/{PASSWORD}"):
        if not os.path.lexists(aside):
            os.link(f"{folder}/{PASSWORD}", aside, follow_symlinks=False)
        os.chown(kept, user.pw_uid, 0, follow_symlinks=False)
        os.rename(kept, f"{folder}/{PASSWORD}")
        instance.sync_directory(folder)


def is_plain(path: str) -> bool:
    """Return whether a path is a file and not a symlink, which the server's user could make beside the password."""
    return os.path.isfile(path) and not os.path.islink(path)


def unfinished() -> list[str]:
    return sorted(filter(instance.reset_unfinished, os.listdir(layout.RUNTIME)))


def finish_undo(server: str) -> None:
    """Finish an interrupted undo before the server is removed, or the undo's files would be lost."""
    plan = _read_plan(_plan_path(server))
    if plan and plan["back"]:
        with instance.unmounted(server):
            _rename(server, plan, _check(server))
        os.unlink(_plan_path(server))


def finish(server: str) -> str:
    """Finish an interrupted reset at boot, but do not start the server: the boot does.

    Return a key of instance.FINISHED and store it for `status`. Raises Failed or OSError.
    """
    with server_lock.held([server]) as lock:
        lock.note(0, "left4me-finish-resets")
        user, plan = _check(server), _read_plan(_plan_path(server))
        if plan:
            with instance.unmounted(server):
                if instance.noted(server):
                    raise instance.Failed(
                        f"server {server}: its overlay may still be in use; run l4d2ctl reset {server}"
                    )
                _rename(server, plan, user)
        did = "not begun" if not plan else "undo" if plan["back"] else "reset"
        instance.note_finished(server, did)
        _drop_plan(server, plan)
        instance.sync_directory(layout.runtime(server))
        return did
