"""What SteamCMD prints: which lines are errors, whether a retry may help, what they mean; and Valve's KeyValues.

The error messages are those of public logs; https://developer.valvesoftware.com/wiki/SteamCMD lists some.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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


def parsed(text: str) -> dict[str, Any]:
    """Return Valve's KeyValues as nested dictionaries. https://developer.valvesoftware.com/wiki/KeyValues"""
    top: dict[str, Any] = {}
    stack, key = [top], ""
    for quoted, brace in re.findall(r'"((?:[^"\\]|\\.)*)"|([{}])', text):
        if brace == "{":
            stack[-1][key] = {}
            stack.append(stack[-1][key])
            key = ""
        elif brace == "}":
            if len(stack) > 1:
                stack.pop()
        elif key:
            stack[-1][key], key = quoted, ""
        else:
            key = quoted
    return top


def app_info(output: str, app: str) -> dict[str, Any]:
    """Return what app_info_print printed about an app, if anything; the lines before it may contain quotes."""
    found: dict[str, Any] = parsed("".join(output.partition(f'"{app}"')[1:])).get(app, {})
    return found
