"""Where the game looks below its directory, and why a layer's tree would have no effect there."""

from __future__ import annotations

from collections.abc import Iterable

_LOOKS = frozenset(
    {
        *("left4dead2", "left4dead2_dlc1", "left4dead2_dlc2", "left4dead2_dlc3", "update", "hl2"),
        *("bin", "platform", "srcds_run", "srcds_linux"),
    }
)
"""What an installation has on top that the game reads or runs: the search paths of gameinfo.txt, and its programs."""
_INSIDE = frozenset(
    {
        *("addons", "cfg", "maps", "materials", "media", "missions", "models", "particles", "resource", "scripts"),
        *("shaders", "sound", "scenes", "ems"),
    }
)
"""What left4dead2/ has on top: a tree that has one of these on top belongs in there."""


def is_seen(name: str) -> bool:
    """Tell whether the game sees what is at a name below its directory."""
    return name.partition("/")[0] in _LOOKS


def no_effect(names: Iterable[str]) -> str:
    """Return why a tree with these files is nothing to the game, and what would help; empty where it has an effect."""
    split = [name.split("/") for name in names]
    if not split:
        return "holds no files"
    if any(parts[0] in _LOOKS for parts in split):
        return ""
    tops = {f"{parts[0]}/" if len(parts) > 1 else parts[0] for parts in split}
    listed = sorted(tops, key=lambda top: (not top.endswith("/"), top))
    shown = f"{', '.join(listed[:5])}{' …' * (len(listed) > 5)}"
    return f"holds no left4dead2/ on top but {shown}{_advice(split)}"


def _advice(split: list[list[str]]) -> str:
    directories = {parts[0] for parts in split if len(parts) > 1}
    if directories & _INSIDE or any(parts[0].endswith(".vpk") for parts in split):
        below = "left4dead2" if directories & _INSIDE else "left4dead2/addons"
        return f': add "into": "{below}"'
    seconds = {parts[1] for parts in split if len(parts) > 2}
    if len(directories) == 1 and "left4dead2" in seconds:
        return ": leave out one more leading directory (strip)"
    if len(directories) == 1 and seconds & _INSIDE:
        return ': leave out one more leading directory (strip), and add "into": "left4dead2"'
    return ': "into" says which directory of the game it belongs in'
