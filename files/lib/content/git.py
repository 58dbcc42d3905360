"""A tree from a git repository, at a commit or a tag."""

from __future__ import annotations

import os
import shutil

from content import tree

# Nobody is there to answer, and a server that says nothing for 30 seconds will not.
QUIET = {
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=30",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",
    "GIT_HTTP_LOW_SPEED_TIME": "30",
}


def build(url: str, ref: str, target: str) -> None:
    """Fill the directory `target` with what the repository has there, without its submodules."""
    try:
        tree.run("git", "init", "--quiet", "--template=", target, **QUIET)
        git = ("git", "-C", target)
        tree.run(*git, "fetch", "--quiet", "--depth=1", "--", url, ref, **QUIET)
        tree.run(*git, "checkout", "--quiet", "--detach", "FETCH_HEAD", **QUIET)
    except OSError as error:
        raise OSError(f"git does not get {ref} of {url}: {error}") from None
    shutil.rmtree(os.path.join(target, ".git"))
