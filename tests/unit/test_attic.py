"""What needs no host of the attic: the order of its names, what an undo takes, what is too old, whose a port was."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from left4me.manifest import ROOT
from left4me.remote import gather
from left4me_host import attic, instance, layout, reset

NOON = 1_767_268_800 * 10**9  # 2026-01-01 12:00 UTC, in ns
LATER = "20260101T130000.000000000"
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Return what puts names into an attic; it is noon."""
    monkeypatch.setattr(layout, "ATTIC", str(tmp_path))
    monkeypatch.setattr(time, "time_ns", lambda: NOON)

    def names(*names: str) -> Path:
        for name in names:
            (tmp_path / name).mkdir()
        return tmp_path

    return names


def test_a_name_is_the_time_where_nothing_is_later(put: Put) -> None:
    put("3@20260101T115959.999999999", f"4@{LATER}", "3@zzz", f".gone-3@{LATER}")
    assert attic.new_name("3") == "3@20260101T120000.000000000"


@pytest.mark.parametrize(
    ("latest", "new"),
    [
        ("20260101T120000.000000000", "20260101T120000.000000001"),
        (LATER, "20260101T130000.000000001"),
        (f"{LATER}-undo", "20260101T130000.000000001"),
        ("20991231T235959.999999999", "20991231T235960.000000000"),
        ("20991231T000000.5", "20991231T000000.500000001"),
        ("20991231T000000.1234567890", "20991231T000000.123456790"),
    ],
)
def test_a_name_is_after_the_latest_whatever_the_clock_says(put: Put, latest: str, new: str) -> None:
    put(f"3@{latest}", "3@20250101T000000.000000000")
    assert attic.new_name("3") == f"3@{new}"
    assert sorted([f"3@{latest}", f"3@{new}"])[1] == f"3@{new}"
    put(f"3@{new}-undo")
    assert attic.new_name("3") > f"3@{new}-undo"


@pytest.mark.parametrize("name", ["3@", "3", "3@2026", "3@20260101 120000.0", "3@20260101T120000", "3@x0260101T12.0"])
def test_what_is_no_name_of_ours_is_not_listed(put: Put, name: str) -> None:
    put(name)
    assert (attic.entries("3"), attic.rows()) == ([], [])


def test_an_undo_takes_the_top_of_the_stack_or_what_is_asked_for(put: Put) -> None:
    first, second, aside = "3@20260101T100000.0", "3@20260101T110000.0", "3@20260102T100000.0-undo"
    put(first, second, aside, "33@20260103T100000.0")
    assert reset._chosen("3", "") == second
    assert reset._chosen("3", "20260101T10") == first
    assert reset._chosen("3", aside) == aside
    with pytest.raises(
        instance.Failed,
        match=r"T1 matches more than one entry: 20260101T100000\.0, 20260101T110000\.0; see l4d2ctl attic 3",
    ):
        reset._chosen("3", "20260101T1")
    with pytest.raises(instance.Failed, match=r"20270101T matches no entry; see l4d2ctl attic 3"):
        reset._chosen("3", "20270101T")
    with pytest.raises(instance.Failed, match=r"server 4: there is no reset to undo in \S+$"):
        reset._chosen("4", "")


def test_the_attic_is_listed_by_server_the_latest_first(put: Put) -> None:
    folder = put("3@20260101T100000.0", "3@20260101T110000.0", "3@20260102T100000.0-undo", "10@20260101T100000.0")
    (folder / "10@20260101T100000.0/port").touch()
    assert attic.table(attic.rows()) == [
        ["ID", "WHEN", "MOVED BY", "UNDO"],
        ["10", "20260101T100000.0", "removal", "next"],
        ["3", "20260102T100000.0", "undo", "-"],
        ["3", "20260101T110000.0", "reset", "next"],
        ["3", "20260101T100000.0", "reset", "-"],
    ]


@pytest.mark.parametrize("text", ["", "\0" * 40, "garbage\n", "back=\nstart=yes\n"])
def test_a_plan_that_is_not_whole_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "reset").write_text(text)
    assert reset._read_plan(str(tmp_path / "reset")) is None


def program(name: str) -> Any:
    """Return a program of the host as a module."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(ROOT / "files/libexec" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader) or pytest.fail(name))
    loader.exec_module(module)
    return module


def test_too_old_is_what_is_beyond_the_latest_of_resets_and_of_undos(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"3@2026010{day}T100000.0{'-undo' * (day in (2, 4, 6))}" for day in range(1, 8)]
    folder = put(*names, "4@20250101T100000.0", ".gone-3@20270101T100000.0")
    cleaner = program("left4me-attic")
    monkeypatch.setattr(cleaner, "ATTIC", str(folder))
    assert cleaner.too_old(2) == ["3@20260103T100000.0", "3@20260102T100000.0-undo", "3@20260101T100000.0"]
    assert cleaner.main(2, math.inf) == 0
    left = ["3@20260104T100000.0-undo", "3@20260105T100000.0", "3@20260106T100000.0-undo", "3@20260107T100000.0"]
    assert sorted(path.name for path in folder.iterdir()) == [*left, "4@20250101T100000.0"]


def test_a_server_that_filled_the_disk_keeps_its_latest_reset_alone(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["3@20260101T100000.0", "3@20260102T100000.0-undo", "3@20260103T100000.0", "3@20260104T100000.0"]
    folder = put(*names, "4@20250101T100000.0", "4@20250102T100000.0")
    for name in ("3@20260101T100000.0", "3@20260104T100000.0"):
        (folder / name / "upper").mkdir()
        (folder / name / "upper/full").write_bytes(b"x" * (1 << 20))
    (folder / "3@20260103T100000.0/out").symlink_to("/usr")  # not followed
    cleaner = program("left4me-attic")
    monkeypatch.setattr(cleaner, "ATTIC", str(folder))
    assert cleaner.too_old(9, 3 << 20) == []
    assert cleaner.too_old(9, (1 << 20) + (1 << 19)) == ["3@20260101T100000.0"]
    assert cleaner.too_old(9, 1 << 19) == ["3@20260103T100000.0", "3@20260101T100000.0"]
    assert cleaner.main(9, 1 << 19) == 0
    left = ["3@20260102T100000.0-undo", "3@20260104T100000.0", "4@20250101T100000.0", "4@20250102T100000.0"]
    assert sorted(path.name for path in folder.iterdir()) == left


def test_a_former_port_is_known_while_nobody_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    monkeypatch.setattr(layout, "SERVERS", str(tmp_path / "servers"))
    monkeypatch.setattr(layout, "ATTIC", str(tmp_path / "attic"))
    write("servers/4/server.env", 'LEFT4ME_ADDRESS="0.0.0.0"\nLEFT4ME_PORT="27016"\n')
    write("attic/3@20260101T100000.0/port", "27020\n")
    write("attic/3@20260102T100000.0/port", "27015\n")
    write("attic/4@20260102T100000.0/port", "27017\n")
    write("attic/5@20260102T100000.0/port", "27016\n")
    write("attic/.gone-6@20260102T100000.0/port", "27018\n")
    write("attic/7@20260102T100000.0/port", "")
    assert gather.ports() == {"3": 27015, "4": 27016}
