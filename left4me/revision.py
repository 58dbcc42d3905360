"""The git revision of this checkout, and how a host's revision relates to it."""

from __future__ import annotations

import re
import subprocess
import threading
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    """Run git in this checkout. Raises FileNotFoundError if git is not installed."""
    git = ["git", "--no-optional-locks", "-C", str(_ROOT), *words]
    return subprocess.run(git, capture_output=True, text=True, check=False)


@cache
def checked_out() -> str:
    """Return the checked-out commit, with a + if the work tree has changes; "unknown" without git."""
    try:
        done = _git("describe", "--always", "--exclude=*", "--dirty=+")
    except FileNotFoundError:
        return "unknown"
    return "unknown" if done.returncode else done.stdout.strip()  # not a git checkout


_GIT_LOCK = threading.Lock()


@cache
def _merge_base(theirs: str, ours: str) -> subprocess.CompletedProcess[str]:
    return _git("merge-base", theirs, ours)


def history(other: str) -> str:
    """Return how a host's revision relates to this checkout's: `newer`, `diverged`, or `missing` (unknown to git).

    Returns "" if this checkout's history includes it, or if a revision is unknown.
    """
    theirs, ours = other.removesuffix("+"), checked_out().removesuffix("+")
    if "unknown" in (theirs, ours) or theirs in ("", ours):
        return ""
    if not re.fullmatch("[0-9a-f]{4,64}", theirs):
        return "missing"
    with _GIT_LOCK:  # hosts are checked in parallel; git runs once for all of them
        done = _merge_base(theirs, ours)
    if done.returncode > 1:
        return "missing"
    if done.stdout.startswith(theirs):
        return ""
    return "newer" if done.stdout.startswith(ours) else "diverged"
