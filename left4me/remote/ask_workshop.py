"""Ask Steam about workshop items: ask_workshop.py API ID…; changes nothing.

Prints, by id, what Steam says: {"time", "size", "url"} of an item, {"items": [ID…]} of a collection, whose items are in
the answer too, and {"why": one line} of what is left out. Or only {"error": one line} where Steam cannot be asked.
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

SECONDS = 30  # that Steam may say nothing
APP = 550
"""Left 4 Dead 2, whose workshop it is; its server is another app."""
VPK = b"\x34\x12\xaa\x55"
"""What a VPK begins with (developer.valvesoftware.com/wiki/VPK_(file_format))."""
NESTED = 3
"""How many collections may lie in each other."""
HEADERS = {"User-Agent": "left4me"}


def asked(api: str, method: str, what: str, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Return what a method of Steam's says of each id."""
    counted = {"GetPublishedFileDetails": "itemcount", "GetCollectionDetails": "collectioncount"}[method]
    form = {counted: len(ids)} | {f"publishedfileids[{at}]": each for at, each in enumerate(ids)}
    address = f"{api.rstrip('/')}/ISteamRemoteStorage/{method}/v1/"
    request = urllib.request.Request(address, urllib.parse.urlencode(form).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return {str(each["publishedfileid"]): each for each in json.load(response)["response"][what]}


def kept(each: str) -> list[os.stat_result]:
    """Return the files of an item that layers have now, the latest last."""
    paths = glob.glob(f"{layout.OVERLAYS}/*/current/{layout.ADDONS}/{each}.vpk")
    return sorted(map(os.stat, paths), key=lambda about: about.st_mtime)


def is_vpk(url: str) -> bool:
    """Tell whether a file begins as a VPK does; one that is not reached is taken for one: its download tells why."""
    if not url.startswith(("http://", "https://")):
        return True
    try:
        request = urllib.request.Request(url, headers={**HEADERS, "Range": f"bytes=0-{len(VPK) - 1}"})
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            begin: bytes = response.read(len(VPK))
            return begin == VPK
    except (OSError, http.client.HTTPException):
        return True


def item(each: str, told: dict[str, Any]) -> dict[str, Any]:
    """Return what is to be had of one item, from what Steam says of it."""
    here = kept(each)
    if int(told.get("result", 0)) != 1 or not told.get("file_url"):
        if here:  # who takes an item away for an hour takes it from no server
            return {"time": int(here[-1].st_mtime), "size": here[-1].st_size, "url": ""}
        return {"why": "is not to be had from Steam"}
    app = int(told.get("consumer_app_id", APP))
    if app != APP:
        return {"why": f"belongs to app {app}, Left 4 Dead 2 is {APP}"}
    time, size = int(told["time_updated"]), int(told["file_size"])  # which come as strings, too
    if not 0 <= time < 1 << 33:
        raise ValueError("no time of this age")
    is_here = any((about.st_mtime, about.st_size) == (time, size) for about in here)
    if not is_here and not is_vpk(url := str(told["file_url"])):
        return {"why": f"is no VPK: Steam gives the address of something else for it, {url.partition('?')[0]}"}
    return {"time": time, "size": size, "url": str(told["file_url"])}


def details(api: str, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Ask Steam for items and for what collections hold."""
    found: dict[str, dict[str, Any]] = {}
    wanted = list(dict.fromkeys(ids))
    for _depth in range(NESTED + 1):
        told = asked(api, "GetPublishedFileDetails", "publishedfiledetails", wanted)
        without = [each for each in wanted if not told.get(each, {}).get("file_url")]
        collections = asked(api, "GetCollectionDetails", "collectiondetails", without) if without else {}
        for each in wanted:
            children = collections.get(each, {}).get("children") or ()
            if children:
                found[each] = {"items": [str(child["publishedfileid"]) for child in children]}
            else:
                found[each] = item(each, told.get(each, {}))
        wanted = [child for each in wanted for child in found[each].get("items", ()) if child not in found]
        wanted = list(dict.fromkeys(wanted))
        if not wanted:
            return found
    return found | {each: {"why": f"is in more than {NESTED} collections, one in the other"} for each in wanted}


def answer(api: str, ids: list[str]) -> dict[str, Any]:
    """Return what Steam says, or why it cannot be asked."""
    try:
        return details(api, ids)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "what it answers is not what Steam does"
    return {"error": f"{api} cannot be asked about workshop items: {reason}"}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1], sys.argv[2:])))
