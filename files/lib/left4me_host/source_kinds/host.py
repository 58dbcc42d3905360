"""A tree from an installation that is on the host already, such as another tool's; only read."""

from __future__ import annotations

from typing import Any

from left4me_host import filetree
from left4me_host.source_kinds.control import ReceivedTar


def fill(wanted: dict[str, Any], new: str, _sent: ReceivedTar | None) -> None:
    """Fill the directory `new` with a copy of it."""
    filetree.copy([f"{wanted['source']['path']}/."], new)
