"""A tree of items of Steam's workshop, as .vpk files where the game looks for addons."""

from __future__ import annotations

import glob
import os
from typing import Any

from left4me_host import filetree, layout
from left4me_host.source_kinds import archive


def fill(wanted: dict[str, Any], target: str, _sent: object) -> None:
    """Fill the directory `target` with the items; those that are in any layer's current version come from there.

    What ask_workshop.py tells of a missing item is of the newest file of all layers.
    """
    os.makedirs(f"{target}/{layout.ADDONS}")
    overlays, current = os.path.split(wanted["link"])
    currents = f"{glob.escape(os.path.dirname(overlays))}/*/{current}"
    same = []
    for each, item in wanted["source"]["items"].items():
        path = f"{target}/{layout.ADDONS}/{each}.vpk"
        there = {before: os.stat(before) for before in glob.glob(f"{currents}/{layout.ADDONS}/{each}.vpk")}
        same_as = (item["time"], item["size"])
        if found := [before for before, about in there.items() if (about.st_mtime, about.st_size) == same_as]:
            same.append(found[0])
            continue
        if not item["url"]:
            raise ValueError(f"item {each} is not to be had from Steam any more, and its version here has changed")
        archive.download(item["url"], path)
        if (size := os.path.getsize(path)) != item["size"]:
            again = "deploy again; where that says the same, take it out of `items`"
            raise ValueError(f"item {each} came with {size} bytes, Steam announced {item['size']}: {again}")
        os.utime(path, (item["time"], item["time"]))
    if same:
        filetree.copy(same, f"{target}/{layout.ADDONS}")
