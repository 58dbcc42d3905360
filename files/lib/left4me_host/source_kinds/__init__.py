"""The sources of layers and builds: each has a module that fills an empty directory, and a line in KINDS.

left4me/model.py has a class for the data of each source.
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
"""Functions that fill a directory, given a tree of left4me/wanted_versions.py, the directory and the upload.

Each raises ValueError if the source is not as declared, or OSError.
"""
