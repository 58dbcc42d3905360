"""A copy of an installation on the host, such as another tool's."""

from __future__ import annotations

from typing import Any

from left4me_host import filetree
from left4me_host.source_kinds.control import ReceivedTar


def fill(wanted: dict[str, Any], new: str, _sent: ReceivedTar | None) -> None:
    filetree.copy([f"{wanted['source']['path']}/."], new)
