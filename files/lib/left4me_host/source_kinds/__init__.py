"""The kinds of sources that a version of a layer, or a build of the game, is made from: a module and a line for each.

The module fills an empty directory with the tree. The classes in left4me/model.py say what an operator declares of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from left4me_host.source_kinds import archive, control, git, host, workshop
from left4me_host.source_kinds.control import ReceivedTar

KINDS: dict[str, Callable[[dict[str, Any], str, ReceivedTar | None], None]] = {
    "archive": archive.fill,
    "control": control.fill,
    "git": git.fill,
    "host": host.fill,
    "workshop": workshop.fill,
}
"""By its name: what fills a directory, given a tree of left4me/wanted_versions.py, the directory, and what was sent.

Each raises ValueError where the source is not what was declared, or OSError.
"""
