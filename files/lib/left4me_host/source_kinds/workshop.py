"""A tree of Steam Workshop items: .vpk files in the addons directory."""

from __future__ import annotations

import glob
import os
from typing import Any

from left4me_host import filetree, layout
from left4me_host.source_kinds import archive


def fill(wanted: dict[str, Any], target: str, _sent: object) -> None:
    """Fill the directory `target`: copy items that the current version of any layer has, download the others.

    For an item that Steam no longer has, the declared time and size are those of the newest copy in any layer.
    Raises ValueError or OSError.
    """
    os.makedirs(f"{target}/{layout.ADDONS}")
    same = []
    for each, item in wanted["source"]["items"].items():
        path = f"{target}/{layout.ADDONS}/{each}.vpk"
        copies = {copy: os.stat(copy) for copy in glob.glob(f"{layout.OVERLAYS}/*/current/{layout.ADDONS}/{each}.vpk")}
        same_as = (item["time"], item["size"])
        if found := [copy for copy, status in copies.items() if (status.st_mtime, status.st_size) == same_as]:
            same.append(found[0])
            continue
        if not item["url"]:
            raise ValueError(f"Steam no longer has item {each}, and its copy here has changed: remove it from `items`")
        archive.download(item["url"], path)
        if (size := os.path.getsize(path)) != item["size"]:
            again = "deploy again; if that fails too, remove it from `items`"
            raise ValueError(f"item {each} has {size} bytes, Steam announced {item['size']}: {again}")
        os.utime(path, (item["time"], item["time"]))
    if same:
        filetree.copy(same, f"{target}/{layout.ADDONS}")
