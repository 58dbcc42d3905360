"""What of a layer's tree the game would see: trees as upstream archives have them, wrong strips, and `into`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from left4me import model, validation
from left4me_host.game_paths import no_effect
from tests.unit.test_model import DEFAULTS, GAME

SOURCEMOD = ["addons/sourcemod/plugins/a.smx", "addons/metamod.vdf", "cfg/sourcemod/sourcemod.cfg"]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["left4dead2/addons/a.vdf"], ""),
        (["README.md", "left4dead2/cfg/x.cfg"], ""),
        (["left4dead2_dlc3/maps/a.bsp"], ""),
        (["bin/tickrate.so"], ""),
        (["srcds_run"], ""),
        ([f"left4dead2/{name}" for name in SOURCEMOD], ""),
        ([], "has no files"),
        (SOURCEMOD, 'has no left4dead2/ at the top, only addons/, cfg/: add "into": "left4dead2"'),
        (["cfg/x.cfg", "LICENSE"], 'has no left4dead2/ at the top, only cfg/, LICENSE: add "into": "left4dead2"'),
        (
            ["mod-1.0/left4dead2/cfg/x.cfg", "LICENSE"],
            "has no left4dead2/ at the top, only mod-1.0/, LICENSE: increase `strip` by 1",
        ),
        (
            [f"mod-1.0/{name}" for name in SOURCEMOD],
            'has no left4dead2/ at the top, only mod-1.0/: increase `strip` by 1 and add "into": "left4dead2"',
        ),
        (["a.vpk"], 'has no left4dead2/ at the top, only a.vpk: add "into": "left4dead2/addons"'),
        (
            ["sourcemod/plugins/a.smx"],
            'has no left4dead2/ at the top, only sourcemod/: set "into" to the game directory for these files',
        ),
    ],
)
def test_what_has_no_effect_is_told_with_what_would_help(names: list[str], why: str) -> None:
    assert no_effect(names) == why


LISTING = """
import json, sys
from left4me.wanted_versions import listing
print(json.dumps(listing(*sys.argv[1:])))
"""


def listing(*arguments: str) -> dict[str, str]:
    """Return what a deploy lists; pyinfra, which that imports, would patch this process."""
    command = [sys.executable, "-c", LISTING, *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def validated(**layer: Any) -> model.Host:
    layers = {"sm": {"source": "control", **layer}}
    return validation.validate("box", {**DEFAULTS, "game": GAME, "layers": layers})


def test_a_directory_without_effect_is_refused_before_the_first_connection(tmp_path: Path) -> None:
    folder = tree(tmp_path / "sm", *SOURCEMOD)
    with pytest.raises(validation.InvalidData) as refused:
        validated(path=str(folder))
    assert [f"{each.key}: {each.reason}" for each in refused.value.mistakes] == [
        'layers.sm.path: has no left4dead2/ at the top, only addons/, cfg/: add "into": "left4dead2"'
    ]
    assert validated(path=str(folder), into="left4dead2").layers["sm"].into == "left4dead2"


@pytest.mark.parametrize("into", ["", "/left4dead2", "../x", "a/../b", "a b", "left4dead2\n"])
def test_what_is_no_directory_of_the_game(tmp_path: Path, into: str) -> None:
    folder = tree(tmp_path / "sm", *SOURCEMOD)
    with pytest.raises(
        validation.InvalidData, match=r"layers\.sm\.into: .* must be a directory relative to the game's"
    ):
        validated(path=str(folder), into=into)


def test_what_version_control_keeps_is_no_part_of_a_tree(tmp_path: Path) -> None:
    folder = tree(tmp_path / "sm", "left4dead2/cfg/x.cfg", ".git/config", "left4dead2/cfg/.git", ".hg/x", "a/.svn/x")
    (folder / "a/.svn/secret").touch(mode=0o000)
    validated(path=str(folder))
    assert sorted(listing(str(folder))) == ["a", "left4dead2", "left4dead2/cfg", "left4dead2/cfg/x.cfg"]


def test_a_tree_goes_below_into_by_the_same_names(tmp_path: Path) -> None:
    folder = tree(tmp_path / "sm", "cfg/x.cfg")
    here, there = listing(str(folder)), listing(str(folder), "left4dead2/sub")
    above = {"left4dead2": "d", "left4dead2/sub": "d"}
    assert there == above | {f"left4dead2/sub/{name}": what for name, what in here.items()}
