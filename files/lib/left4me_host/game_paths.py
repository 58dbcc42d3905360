"""Check whether the game would find the files of a layer."""

from __future__ import annotations

from collections.abc import Iterable

_LOOKS = frozenset(
    {
        *("left4dead2", "left4dead2_dlc1", "left4dead2_dlc2", "left4dead2_dlc3", "update", "hl2"),
        *("bin", "platform", "srcds_run", "srcds_linux"),
    }
)
"""Top-level names that the game uses: the search paths in gameinfo.txt and the programs."""
_INSIDE = frozenset(
    {
        *("addons", "cfg", "maps", "materials", "media", "missions", "models", "particles", "resource", "scripts"),
        *("shaders", "sound", "scenes", "ems"),
    }
)
"""Directories of left4dead2/: a tree with one of these at its top belongs in left4dead2/."""


def is_seen(name: str) -> bool:
    """Return whether the game uses a file, given its path in the installation."""
    return name.partition("/")[0] in _LOOKS


def no_effect(names: Iterable[str]) -> str:
    """Return why a tree with these files has no effect and what to change; empty if it has an effect."""
    split = [name.split("/") for name in names]
    if not split:
        return "has no files"
    if any(parts[0] in _LOOKS for parts in split):
        return ""
    tops = {f"{parts[0]}/" if len(parts) > 1 else parts[0] for parts in split}
    listed = sorted(tops, key=lambda top: (not top.endswith("/"), top))
    shown = f"{', '.join(listed[:5])}{' …' * (len(listed) > 5)}"
    return f"has no left4dead2/ at the top, only {shown}{_advice(split)}"


def _advice(split: list[list[str]]) -> str:
    directories = {parts[0] for parts in split if len(parts) > 1}
    if directories & _INSIDE or any(parts[0].endswith(".vpk") for parts in split):
        below = "left4dead2" if directories & _INSIDE else "left4dead2/addons"
        return f': add "into": "{below}"'
    seconds = {parts[1] for parts in split if len(parts) > 2}
    if len(directories) == 1 and "left4dead2" in seconds:
        return ": increase `strip` by 1"
    if len(directories) == 1 and seconds & _INSIDE:
        return ': increase `strip` by 1 and add "into": "left4dead2"'
    return ': set "into" to the game directory for these files'
