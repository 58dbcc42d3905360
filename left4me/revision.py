"""The revision of this checkout, and what a host's revision is to it."""

from __future__ import annotations

import re
import subprocess
import threading
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    """Ask git about this checkout; raises FileNotFoundError where there is no git."""
    git = ["git", "--no-optional-locks", "-C", str(_ROOT), *words]
    return subprocess.run(git, capture_output=True, text=True, check=False)


@cache
def checked_out() -> str:
    """Return the commit that is checked out here, with a + where the checkout differs from it."""
    try:
        done = _git("describe", "--always", "--exclude=*", "--dirty=+")
    except FileNotFoundError:
        return "unknown"
    return "unknown" if done.returncode else done.stdout.strip()  # what git made is not here


_ASKS = threading.Lock()


@cache
def _merge_base(theirs: str, ours: str) -> subprocess.CompletedProcess[str]:
    return _git("merge-base", theirs, ours)


def history(other: str) -> str:
    """Tell what a revision, such as a host's, is to this checkout's.

    `newer`, `diverged`, `missing` where git does not have it here; nothing where it is part of it, or nobody knows.
    """
    theirs, ours = other.removesuffix("+"), checked_out().removesuffix("+")
    if "unknown" in (theirs, ours) or theirs in ("", ours):
        return ""
    if not re.fullmatch("[0-9a-f]{4,64}", theirs):
        return "missing"
    with _ASKS:  # one git for a fleet, whose hosts are looked at side by side
        done = _merge_base(theirs, ours)
    if done.returncode > 1:
        return "missing"
    if done.stdout.startswith(theirs):
        return ""
    return "newer" if done.stdout.startswith(ours) else "diverged"
