"""SteamCMD's messages: which are errors, whether a retry may help, and what they mean.

The error messages are those of public logs; https://developer.valvesoftware.com/wiki/SteamCMD lists some.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ERROR = re.compile(
    r"^(?:ERROR|Error)! |(?:^|\.\.\.)(?:ERROR|FAILED)\b|Please use force_install_dir|Assertion Failed"
    r"|Rate Limit Exceeded|Not enough disk space|Disk write failure|^Segmentation fault|No app info"
)
_FULL = re.compile(r"state is 0x202|Not enough disk space|Disk write failure")
# A retry within minutes does not help with any of these errors.
_FINAL = re.compile(
    rf"{_FULL.pattern}|No subscription|Please use force_install_dir|Assertion Failed|Rate Limit Exceeded"
    r"|^Segmentation fault"
)
_MEANINGS = (
    (re.compile(r"No Connection|http error 0|Timeout", re.IGNORECASE), "no connection to Steam"),
    (re.compile(r"Rate Limit Exceeded"), "Steam accepts no more logins from this address for now: retry in an hour"),
    (re.compile(r"Assertion Failed|^Segmentation fault"), "SteamCMD crashed"),
    (_FULL, "the disk is full"),
)


def errors(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if _ERROR.search(line)]


def is_final(line: str) -> bool:
    """Return whether a retry would fail with the same error."""
    return bool(_FINAL.search(line))


def is_full(line: str) -> bool:
    return bool(_FULL.search(line))


def meaning(line: str, more: str = "") -> str:
    """Return an error's meaning, followed by `more`, and SteamCMD's own message."""
    found = [words for pattern, words in _MEANINGS if pattern.search(line)]
    return f"{found[0]}{more} (SteamCMD: {line})" if found else f"SteamCMD: {line}"


def startup_reason(log: str) -> str:
    """Return why SteamCMD did not start, from the text of bootstrap_log.txt; empty if the text has no error."""
    lines = [re.sub(r"^\[[^]]*\] *", "", line).strip() for line in log.splitlines()]
    found = [line for line in lines if re.search(r"fail|error|unable|could not", line, re.IGNORECASE)]
    return meaning(found[-1]) if found else ""


def app_info(text: str, app: str) -> str:
    """Return the KeyValues of an app from app_info_print's output; the lines before them may contain quotes."""
    at = text.find(f'"{app}"')
    return text[at:] if at >= 0 else ""
