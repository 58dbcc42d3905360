"""Ask Steam about workshop items: ask_workshop.py API ID…; changes nothing.

Prints {id: item, or null where neither Steam gives it nor this host has it}, or {"error": one line}.
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

from left4me_host import layout

SECONDS = 30  # that Steam may say nothing


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
        elif kept := glob.glob(f"{layout.OVERLAYS}/*/current/{layout.ADDONS}/{each}.vpk"):
            # Who takes an item away for an hour takes it from no server.
            about = max(map(os.stat, kept), key=lambda each: each.st_mtime)
            items[each] = {"time": int(about.st_mtime), "size": about.st_size, "url": ""}
    return items


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
