"""A tree from a git repository, at a commit or a tag."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from left4me_host import filetree, game_paths

SECONDS = 60  # that a fetch may show no progress: git itself waits for ever, but over http
# Nobody is there to answer.
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=30",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",
    "GIT_HTTP_LOW_SPEED_TIME": "30",
}


def _submodules(checkout: str) -> list[str]:
    """Return the names of the submodules of a checkout, which are empty directories in it."""
    listed = subprocess.run(
        ["git", "-C", checkout, "ls-files", "--stage", "-z"], capture_output=True, check=False
    ).stdout
    return [os.fsdecode(line.partition(b"\t")[2]) for line in listed.split(b"\0") if line.startswith(b"160000 ")]


def fill(wanted: dict[str, Any], target: str, _sent: object) -> None:
    """Fill the directory `target` with what the repository has there.

    Raises ValueError for a submodule that the game would see.
    """
    url, ref = wanted["source"]["url"], wanted["source"]["ref"]
    try:
        filetree.run("git", "init", "--quiet", "--template=", target, more=QUIET)
        git = ("git", "-C", target)
        filetree.run(*git, "fetch", "--progress", "--depth=1", "--", url, ref, silence=SECONDS, more=QUIET)
        filetree.run(*git, "checkout", "--quiet", "--detach", "FETCH_HEAD", more=QUIET)
        modules = _submodules(target)
    except OSError as error:
        raise OSError(f"git does not get {ref} of {url}: {error}") from None
    if seen := [name for name in modules if wanted["source"].get("into") or game_paths.is_seen(name)]:
        raise ValueError(f"{seen[0]} is a submodule, which is not brought: make its repository a layer of its own")
    shutil.rmtree(os.path.join(target, ".git"))
