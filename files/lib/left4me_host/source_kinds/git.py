"""A tree from a git repository, at a commit or a tag."""

from __future__ import annotations

import os
import shutil
from typing import Any

from left4me_host import filetree

SECONDS = 60  # that a fetch may show no progress: git itself waits for ever, but over http
# Nobody is there to answer.
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=30",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",
    "GIT_HTTP_LOW_SPEED_TIME": "30",
}


def fill(wanted: dict[str, Any], target: str, _sent: object) -> None:
    """Fill the directory `target` with what the repository has there, without its submodules."""
    url, ref = wanted["source"]["url"], wanted["source"]["ref"]
    try:
        filetree.run("git", "init", "--quiet", "--template=", target, more=QUIET)
        git = ("git", "-C", target)
        filetree.run(*git, "fetch", "--progress", "--depth=1", "--", url, ref, silence=SECONDS, more=QUIET)
        filetree.run(*git, "checkout", "--quiet", "--detach", "FETCH_HEAD", more=QUIET)
    except OSError as error:
        raise OSError(f"git does not get {ref} of {url}: {error}") from None
    shutil.rmtree(os.path.join(target, ".git"))
