"""A tree of workshop items, and what Steam says about them.

It stands alone: a fact also sends its text, as `python3 -I -c TEXT API ID…`, which prints {id: item, or null where
neither Steam gives it nor this host has it}, or {"error": one line}.
"""

from __future__ import annotations

import glob
import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

SECONDS = 30  # that Steam may say nothing
ADDONS = "left4dead2/addons"
CURRENT = "/var/lib/left4me/overlays/*/current"


def details(api: str, ids: list[str]) -> dict[str, dict[str, Any] | None]:
    """Ask Steam for each item's update time, size and URL; one without a URL is as good as missing.

    Of a missing one that is in a layer already, these are that file's, without a URL.
    """
    form = {"itemcount": len(ids)} | {f"publishedfileids[{at}]": each for at, each in enumerate(ids)}
    request = urllib.request.Request(
        f"{api.rstrip('/')}/ISteamRemoteStorage/GetPublishedFileDetails/v1/",
        urllib.parse.urlencode(form).encode(),
        {"User-Agent": "left4me"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        answered = json.load(response)["response"]["publishedfiledetails"]
    found = {str(each["publishedfileid"]): each for each in answered}
    items: dict[str, dict[str, Any] | None] = dict.fromkeys(ids)
    for each in ids:
        if (item := found.get(each)) and int(item["result"]) == 1 and item.get("file_url"):
            time, size = int(item["time_updated"]), int(item["file_size"])  # which come as strings, too
            if not 0 <= time < 1 << 33:
                raise ValueError("no time of this age")
            items[each] = {"time": time, "size": size, "url": str(item["file_url"])}
        elif kept := glob.glob(f"{CURRENT}/{ADDONS}/{each}.vpk"):
            # Who takes an item away for an hour takes it from no server.
            about = max(map(os.stat, kept), key=lambda each: each.st_mtime)
            items[each] = {"time": int(about.st_mtime), "size": about.st_size, "url": ""}
    return items


def build(items: dict[str, dict[str, Any]], old: str, target: str) -> None:
    """Fill the directory `target` with the items; those that are in any layer's current version come from there.

    The link `old` is this layer's. What details() tells of a missing item is of the newest file of all layers.
    """
    from content import archive, tree  # here: what is sent as text has neither

    os.makedirs(f"{target}/{ADDONS}")
    overlays, current = os.path.split(old)
    currents = f"{glob.escape(os.path.dirname(overlays))}/*/{current}"
    same = []
    for each, item in items.items():
        path = f"{target}/{ADDONS}/{each}.vpk"
        there = {before: os.stat(before) for before in glob.glob(f"{currents}/{ADDONS}/{each}.vpk")}
        wanted = (item["time"], item["size"])
        if found := [before for before, about in there.items() if (about.st_mtime, about.st_size) == wanted]:
            same.append(found[0])
            continue
        if not item["url"]:
            raise ValueError(f"item {each} is not to be had from Steam any more, and its version here has changed")
        archive.download(item["url"], path)
        if (size := os.path.getsize(path)) != item["size"]:
            raise ValueError(f"item {each} came with {size} bytes, announced were {item['size']}: deploy again")
        os.utime(path, (item["time"], item["time"]))
    if same:
        tree.copy(same, f"{target}/{ADDONS}")


def answer(api: str, ids: list[str]) -> dict[str, Any]:
    """Return what Steam says, or why it cannot be asked."""
    try:
        return details(api, ids)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
    except (ValueError, KeyError, TypeError):
        reason = "what it answers is not what Steam does"
    return {"error": f"{api} cannot be asked about workshop items: {reason}"}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1], sys.argv[2:])))
