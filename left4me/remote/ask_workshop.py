"""Ask Steam about workshop items: ask_workshop.py API ID…; changes nothing.

Prints a JSON object by id: {"time", "size", "url"} for an item, {"items": [ID…]} for a collection (its items follow),
{"why": one line} for an unusable item. If Steam does not answer, prints only {"error": one line}.
https://partner.steamgames.com/doc/webapi/ISteamRemoteStorage
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

SECONDS = 30  # limit without data from Steam
APP = 550
"""Left 4 Dead 2: its app owns the workshop, not the app of the dedicated server."""
VPK = b"\x34\x12\xaa\x55"
"""The magic number of a VPK file (developer.valvesoftware.com/wiki/VPK_(file_format))."""
NESTED = 3
"""How many levels of collections may be nested."""
HEADERS = {"User-Agent": "left4me"}


def call(api: str, method: str, key: str, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Return the answers of a method of Steam's API by id; `key` is the response's field with the list."""
    count = {"GetPublishedFileDetails": "itemcount", "GetCollectionDetails": "collectioncount"}[method]
    form = {count: len(ids)} | {f"publishedfileids[{at}]": each for at, each in enumerate(ids)}
    address = f"{api.rstrip('/')}/ISteamRemoteStorage/{method}/v1/"
    request = urllib.request.Request(address, urllib.parse.urlencode(form).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return {str(each["publishedfileid"]): each for each in json.load(response)["response"][key]}


def kept(each: str) -> list[os.stat_result]:
    """Return the stat of an item's files in current layers, newest last."""
    paths = glob.glob(f"{layout.OVERLAYS}/*/current/{layout.ADDONS}/{each}.vpk")
    return sorted(map(os.stat, paths), key=lambda about: about.st_mtime)


def is_vpk(url: str) -> bool:
    """Return whether a file starts like a VPK. If the URL fails, return True: the download reports why."""
    if not url.startswith(("http://", "https://")):
        return True
    try:
        request = urllib.request.Request(url, headers={**HEADERS, "Range": f"bytes=0-{len(VPK) - 1}"})
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return bool(response.read(len(VPK)) == VPK)
    except (OSError, http.client.HTTPException):
        return True


def item(each: str, details: dict[str, Any]) -> dict[str, Any]:
    """Return the answer for one item from Steam's `details`. Raises ValueError or KeyError for malformed details."""
    files = kept(each)
    if int(details.get("result", 0)) != 1 or not details.get("file_url"):
        if files:  # its author may have withdrawn the item for an hour: keep it
            return {"time": int(files[-1].st_mtime), "size": files[-1].st_size, "url": ""}
        return {"why": "is not available from Steam"}
    app = int(details.get("consumer_app_id", APP))
    if app != APP:
        return {"why": f"belongs to app {app}, not to Left 4 Dead 2 ({APP})"}
    time, size = int(details["time_updated"]), int(details["file_size"])  # Steam also sends strings
    if not 0 <= time < 1 << 33:
        raise ValueError("time_updated is out of range")
    url = str(details["file_url"])
    if not any((about.st_mtime, about.st_size) == (time, size) for about in files) and not is_vpk(url):
        return {"why": f"is not a VPK file: Steam's download address is {url.partition('?')[0]}"}
    return {"time": time, "size": size, "url": url}


def items(api: str, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Return the answers by id for items, collections, and the collections' items."""
    found: dict[str, dict[str, Any]] = {}
    pending = list(dict.fromkeys(ids))
    for _depth in range(NESTED + 1):
        details = call(api, "GetPublishedFileDetails", "publishedfiledetails", pending)
        no_file = [each for each in pending if not details.get(each, {}).get("file_url")]
        collections = call(api, "GetCollectionDetails", "collectiondetails", no_file) if no_file else {}
        for each in pending:
            if children := collections.get(each, {}).get("children"):
                found[each] = {"items": [str(child["publishedfileid"]) for child in children]}
            else:
                found[each] = item(each, details.get(each, {}))
        children = [child for each in pending for child in found[each].get("items", ()) if child not in found]
        pending = list(dict.fromkeys(children))
        if not pending:
            return found
    return found | {each: {"why": f"is nested in more than {NESTED} collections"} for each in pending}


def answer(api: str, ids: list[str]) -> dict[str, Any]:
    """Return the answers by id, or only `error`."""
    try:
        return items(api, ids)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "its answer is not in Steam's format"
    return {"error": f"the request to {api} failed: {reason}"}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1], sys.argv[2:])))
