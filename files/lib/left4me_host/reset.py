"""reset: a server as new, by the renaming of two directories; and the way back.

What a reset is doing stands in runtime/ID/reset, on disk before the first rename, so that a second reset, or the next
boot, finishes one that died. Nothing here walks a tree that the game can write: what is put aside goes to the attic
whole, and left4me-attic.service removes the oldest when nobody waits.

Undos take what the attic holds off like a stack, the latest first: what an undo puts aside is not the next one's, and
comes back only where it is asked for by its time.
"""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from left4me_host import attic, instance, layout, lifecycle

PASSWORD = "rcon.cfg"  # the one that the host made, in secrets/ID and in what a removal put aside
AT_BOOT = "left4me-finish-resets.service"
_RUNNING = ("active", "activating", "reloading")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def _plan_path(server: str) -> str:
    return f"{layout.runtime(server)}/reset"


def _read_plan(path: str) -> dict[str, str] | None:
    """Return the plan in a file: into, back, asked, start; None where there is none, or an empty one.

    A power cut may leave it empty, and then nothing has been renamed yet.
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
    """Take away a plan that is done but for the start; that of an undo stays until then, for the same command again."""
    if plan and plan["back"]:
        os.rename(_plan_path(server), instance.undone(server))
    else:
        os.unlink(_plan_path(server))


def _chosen(server: str, asked: str) -> str:
    """Return the name in the attic of what an undo brings back: that of the time asked for, or the top of the stack.

    Raises Failed.
    """
    there = attic.entries(server)
    if not asked:
        stack = [name for name in there if not name.endswith(attic.BY_UNDO)]
        if not stack:
            more = f"; l4d2ctl attic {server} lists what undos put aside" * bool(there)
            raise instance.Failed(
                f"server {server}: there is no reset to undo, nothing of it is in {layout.ATTIC}{more}"
            )
        return stack[-1]
    found = [name for name in there if name.partition("@")[2].startswith(asked.removeprefix(f"{server}@"))]
    if len(found) != 1:
        which = f"is any of {', '.join(map(attic.time_of, found))}" if found else "is none of the times in the attic"
        raise instance.Failed(f"server {server}: {asked} {which}; l4d2ctl attic {server} lists them")
    return found[0]


def _aside(server: str, into: str) -> None:
    """Rename upper and work into the attic; each may be there already from a reset that died."""
    os.makedirs(into, mode=0o700, exist_ok=True)
    for name in ("upper", "work"):
        source = f"{layout.runtime(server)}/{name}"
        if os.path.lexists(source) and not os.path.lexists(f"{into}/{name}"):
            os.rename(source, f"{into}/{name}")


def _sync(server: str, into: str) -> None:
    for directory in (layout.ATTIC, into, layout.runtime(server)):  # of which the first takes the others along
        instance.sync_directory(directory)


def _fresh(server: str, user: pwd.struct_passwd) -> None:
    """Make upper and work, as the deploy makes them."""
    for name, uid, gid, mode in (("upper", user.pw_uid, user.pw_gid, 0o755), ("work", 0, 0, 0o700)):
        path = f"{layout.runtime(server)}/{name}"
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
        os.chown(path, uid, gid)
        os.chmod(path, mode)


def _move_kept(server: str, old: str, user: pwd.struct_passwd) -> None:
    """Move what the data keeps from the old upper to the present one, following no symlink on the way."""
    for path in instance.declared_lines(server, "keep"):
        *parents, name = path.split("/")
        source = target = -1
        try:
            source = os.open(old, _DIRECTORY)
            target = os.open(f"{layout.runtime(server)}/upper", _DIRECTORY)
            for part in parents:
                source = _step(source, part)
                if part not in os.listdir(target):
                    os.mkdir(part, 0o755, dir_fd=target)
                    os.chown(part, user.pw_uid, user.pw_gid, dir_fd=target, follow_symlinks=False)
                    os.fsync(target)
                target = _step(target, part)
            os.stat(name, dir_fd=source, follow_symlinks=False)
            if name in os.listdir(target):
                # An undo brought back an older one. It stays in the attic, under a name that no game can have guessed.
                os.rename(name, f"{name}.{time.time_ns()}", src_dir_fd=target, dst_dir_fd=source)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
            os.fsync(source)
            os.fsync(target)
        except (FileNotFoundError, NotADirectoryError):
            continue  # the game has never made it, or a second reset finds it moved
        finally:
            for fd in (source, target):
                if fd >= 0:
                    os.close(fd)


def _step(fd: int, name: str) -> int:
    """Go from the directory `fd` to `name` in it; on a symlink NotADirectoryError is raised and `fd` stays open."""
    inner = os.open(name, _DIRECTORY, dir_fd=fd)
    os.close(fd)
    return inner


@contextmanager
def _timed(times: dict[str, float], step: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    times[step] = time.monotonic() - begin


def _check(server: str) -> pwd.struct_passwd:
    """Return the user of a server; raise Failed where what a deploy makes of it is not there."""
    if os.path.islink(layout.runtime(server)) or not os.path.isdir(layout.runtime(server)):
        raise instance.Failed(f"server {server}: {layout.runtime(server)} is not a directory: deploy this host")
    try:
        return pwd.getpwnam(f"left4me-{server}")
    except KeyError:
        raise instance.Failed(f"server {server}: there is no user left4me-{server}: deploy this host") from None


@contextmanager
def alone(server: str) -> Iterator[None]:
    """Keep other resets of a server out. Raises Failed where one is at work."""
    os.makedirs(layout.RUN, exist_ok=True)
    with instance.locked(f"{layout.RUN}/{server}.reset", waits=False, flags=os.O_CREAT) as free:
        if not free:
            raise instance.Failed(f"server {server}: another reset of it is at work")
        yield


def reset(server: str, undo: str | None = None) -> dict[str, float]:
    """Reset a server and return seconds by step.

    With `undo` bring back what the latest reset put aside that no undo has brought back yet, or what was put aside at
    the time that begins with `undo`. Raises Failed; the server is then stopped, and a second reset finishes this one.
    """
    with alone(server):
        return _reset(server, undo)


def _reset(server: str, undo: str | None) -> dict[str, float]:
    asked = instance.asking([server], "ActiveState")  # before its answer is wanted
    user = _check(server)
    times: dict[str, float] = {}
    forgotten = None
    plan = begun = _read_plan(_plan_path(server))
    if plan:
        _require_same(server, plan, undo)
    elif undo is not None and (plan := _read_plan(instance.undone(server))) and plan.get("asked") == undo:
        print(f"server {server}: an undo that was interrupted is finished; the next one is another", file=sys.stderr)
        _start(server, plan, times)
        return times
    else:
        back = "" if undo is None else _chosen(server, undo)
        into = attic.new_name(server) + attic.BY_UNDO * bool(back)
        runs = asked()[server]["ActiveState"] in _RUNNING
        if runs:  # beside the stop; not of one that has failed, since the stop tells how
            lifecycle.require_ports([server], "reset")
            forgotten = lifecycle.forgetting([server])
        plan = {"into": into, "back": back, "asked": undo or "", "start": "yes" if runs else ""}
        try:
            _write_plan(server, plan)
        except OSError as error:
            raise instance.Failed(f"server {server} is not reset, and as it was: {error}") from None
    try:
        with _timed(times, "stop"):
            lifecycle.stop([server], held=False, beside=lambda: _sync_plan(server), again="reset")
        with _timed(times, "reset"), instance.unmounted(server):
            _rename(server, plan, user)
        _drop_plan(server, plan)
    except OSError as error:
        raise instance.Failed(
            f"server {server} is stopped, its reset is not finished: {error}. Mend that, then: l4d2ctl reset {server}"
        ) from None
    _start(server, plan, times, forgotten)
    if begun:
        instance.Systemctl("reset-failed", AT_BOOT).wait()  # where that could not finish it
    # Nobody waits for it, not even for systemd's word that it has begun.
    instance.Systemctl("start", "--no-block", "left4me-attic.service")
    return times


def _require_same(server: str, plan: dict[str, str], undo: str | None) -> None:
    """Raise Failed where what is asked for is not what an earlier command has begun."""
    if undo is None or (plan["back"] and undo in ("", plan.get("asked"))):
        return
    what = "undo" if plan["back"] else "reset"
    raise instance.Failed(
        f"server {server}: an earlier {what} did not finish; l4d2ctl reset {server} first, then --undo"
    )


def _start(
    server: str, plan: dict[str, str], times: dict[str, float], forgotten: instance.Systemctl | None = None
) -> None:
    """Start a server that ran before its reset and that no stop holds; raise Failed where it does not start."""
    # Were the plan there again after a power cut, another reset would find nothing left to do.
    if plan["start"] and not instance.is_held(server):
        try:
            with _timed(times, "start"):
                lifecycle.start_again([server], forgotten, lambda: instance.sync_directory(layout.runtime(server)))
        except instance.Failed:
            instance.forget_finished(server)  # it was told
            raise
    else:
        instance.sync_directory(layout.runtime(server))
    instance.forget_finished(server)


def _rename(server: str, plan: dict[str, str], user: pwd.struct_passwd) -> None:
    """Do the renames of a plan, or what is left of them. Raises OSError; Failed where nothing can be brought back."""
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
    """Take what is to be brought back out of the attic, where it is about to be no longer the latest."""
    taken = f"{layout.runtime(server)}/undo"
    if os.path.lexists(f"{layout.ATTIC}/{back}"):
        os.rename(f"{layout.ATTIC}/{back}", taken)
    elif not os.path.lexists(taken) and not os.path.lexists(into):
        # Nothing was renamed yet. What there were too many of in the attic is removed when nobody waits.
        os.unlink(_plan_path(server))
        raise instance.Failed(
            f"server {server} is stopped, and has what it had: {back} has just been removed from the attic, "
            f"which holds no more than attic_keep. l4d2ctl start {server}"
        )
    instance.sync_directory(layout.runtime(server))


def _bring_back(server: str, back: str, into: str, user: pwd.struct_passwd) -> None:
    taken = f"{layout.runtime(server)}/undo"
    for name in ("upper", "work"):
        if os.path.lexists(f"{taken}/{name}"):
            # A deploy in between may have made an empty one: that gives way.
            os.rename(f"{taken}/{name}", f"{layout.runtime(server)}/{name}")
    _bring_back_password(server, f"{taken}/{PASSWORD}", f"{into}/{PASSWORD}", user)
    if os.path.isdir(taken):
        os.rename(taken, f"{layout.ATTIC}/.gone-{back}")  # with what else may be in it
    instance.sync_directory(layout.ATTIC)


def _bring_back_password(server: str, kept: str, aside: str, user: pwd.struct_passwd) -> None:
    """Bring back the RCON password of a server that was removed, and keep the present one, where the host makes it."""
    folder = f"{layout.SECRETS}/{server}"
    if is_plain(kept) and is_plain(f"{folder}/{PASSWORD}"):
        if not os.path.lexists(aside):
            os.link(f"{folder}/{PASSWORD}", aside, follow_symlinks=False)
        os.chown(kept, user.pw_uid, 0, follow_symlinks=False)
        os.rename(kept, f"{folder}/{PASSWORD}")
        instance.sync_directory(folder)


def is_plain(path: str) -> bool:
    """Tell whether there is a file, and no symlink: the directory of its password is the server's user's."""
    return os.path.isfile(path) and not os.path.islink(path)


def unfinished() -> list[str]:
    """Return the ids of the servers whose reset has begun and not ended."""
    return sorted(filter(instance.reset_unfinished, os.listdir(layout.RUNTIME)))


def finish_undo(server: str) -> None:
    """Finish an undo of a stopped server that is about to be removed, with which what was to come back would go."""
    plan = _read_plan(_plan_path(server))
    if plan and plan["back"]:
        with instance.unmounted(server):
            _rename(server, plan, _check(server))
        os.unlink(_plan_path(server))


def finish(server: str) -> str:
    """Finish at the boot what the host's end interrupted, but for the start, which is the boot's own.

    Return what was done, and note it for `status`: instance.FINISHED has the words. Raises Failed, or OSError.
    """
    with alone(server):
        user, plan = _check(server), _read_plan(_plan_path(server))
        if plan:
            with instance.unmounted(server):
                if instance.noted(server):
                    raise instance.Failed(
                        f"server {server}: its overlay may be in use; l4d2ctl reset {server} tells by whom"
                    )
                _rename(server, plan, user)
        did = "not begun" if not plan else "undo" if plan["back"] else "reset"
        instance.note_finished(server, did)
        _drop_plan(server, plan)
        instance.sync_directory(layout.runtime(server))
        return did
