"""What SteamCMD's words mean: what went wrong, and whether it may go well at another try.

The forms of its refusals are those of public logs; https://developer.valvesoftware.com/wiki/SteamCMD has some.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_REFUSAL = re.compile(
    r"^(?:ERROR|Error)! |(?:^|\.\.\.)(?:ERROR|FAILED)\b|Please use force_install_dir|Assertion Failed"
    r"|Rate Limit Exceeded|Not enough disk space|Disk write failure|^Segmentation fault|No app info"
)
# State 0x202 is a disk that is full; none of these passes within minutes.
_FINAL = re.compile(
    r"state is 0x202|No subscription|Please use force_install_dir|Assertion Failed|Rate Limit Exceeded"
    r"|Not enough disk space|Disk write failure|^Segmentation fault"
)
_FULL = re.compile(r"state is 0x202|Not enough disk space|Disk write failure")
_MEANINGS = (
    (re.compile(r"No Connection|http error 0|Timeout", re.IGNORECASE), "no connection to Steam"),
    (re.compile(r"Rate Limit Exceeded"), "Steam takes no more logins from this address for now: try again in an hour"),
    (re.compile(r"Assertion Failed|^Segmentation fault"), "SteamCMD crashed"),
    (_FULL, "the disk is full"),
)


def refusals(lines: Sequence[str]) -> list[str]:
    """Return the lines in which SteamCMD says that it failed."""
    return [line for line in lines if _REFUSAL.search(line)]


def is_final(line: str) -> bool:
    """Tell whether another try would fail as well."""
    return bool(_FINAL.search(line))


def is_full(line: str) -> bool:
    """Tell whether a refusal is for want of room."""
    return bool(_FULL.search(line))


def meaning(line: str, more: str = "") -> str:
    """Return a refusal in plain words, with `more` after them, and SteamCMD's own."""
    found = [words for pattern, words in _MEANINGS if pattern.search(line)]
    return f"{found[0]}{more} (SteamCMD: {line})" if found else f"SteamCMD: {line}"


def startup_reason(log: str) -> str:
    """Return why SteamCMD's bootstrap did not start it, from its bootstrap_log.txt; empty where that says nothing."""
    lines = [re.sub(r"^\[[^]]*\] *", "", line).strip() for line in log.splitlines()]
    found = [line for line in lines if re.search(r"fail|error|unable|could not", line, re.IGNORECASE)]
    return meaning(found[-1]) if found else ""


def app_info(text: str, app: str) -> str:
    """Return the key values of an app in what app_info_print says; what comes before may hold quotes of its own."""
    at = text.find(f'"{app}"')
    return text[at:] if at >= 0 else ""
