"""A tree from a git repository, at a commit or a tag."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from left4me_host import filetree, game_paths

SECONDS = 60  # without progress before a fetch fails; git has such a limit only for http
# Set time limits, and ask no questions, because no one could answer.
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=30",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",
    "GIT_HTTP_LOW_SPEED_TIME": "30",
}


def _submodules(checkout: str) -> list[str]:
    """Return the paths of a checkout's submodules (mode 160000 in the index)."""
    command = ["git", "-C", checkout, "ls-files", "--stage", "-z"]
    listed = subprocess.run(command, capture_output=True, check=False).stdout
    return [os.fsdecode(line.partition(b"\t")[2]) for line in listed.split(b"\0") if line.startswith(b"160000 ")]


def fill(wanted: dict[str, Any], target: str, _sent: object) -> None:
    """Check out a commit into `target`. Raises OSError, or ValueError for a submodule where the game looks."""
    url, ref = wanted["source"]["url"], wanted["source"]["ref"]
    try:
        filetree.run("git", "init", "--quiet", "--template=", target, more=QUIET)
        git = ("git", "-C", target)
        filetree.run(*git, "fetch", "--progress", "--depth=1", "--", url, ref, silence=SECONDS, more=QUIET)
        filetree.run(*git, "checkout", "--quiet", "--detach", "FETCH_HEAD", more=QUIET)
        modules = _submodules(target)
    except OSError as error:
        raise OSError(f"cannot fetch {ref} of {url}: {error}") from None
    if seen := [name for name in modules if wanted["source"].get("into") or game_paths.is_seen(name)]:
        raise ValueError(f"{seen[0]} is a submodule, which is not fetched: add its repository as a layer of its own")
    shutil.rmtree(os.path.join(target, ".git"))
