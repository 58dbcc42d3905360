"""An installation on the host is copied whole; what its owner puts in the way of the copy leads nowhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "files/lib"))

from left4me_host.source_kinds import host

SECRET = "only root reads this"


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    host.fill({"source": {"path": str(source)}}, str(target), None)
    return target


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    game = tmp_path / "game"
    (game / "left4dead2/sub").mkdir(parents=True)
    (game / "srcds_run").write_bytes(b"x" * 3_000_000)
    (game / "srcds_run").chmod(0o755)
    (game / "left4dead2/empty").touch()
    (game / "left4dead2/sub/a.cfg").write_text("a")
    (game / "left4dead2/link").symlink_to("sub/a.cfg")
    (game / "left4dead2/away").symlink_to("/nowhere")
    for path in game.rglob("*"):
        os.utime(path, ns=(10**18, 10**18 + 1), follow_symlinks=False)
    return game


def test_files_directories_links_modes_and_times_are_copied(installation: Path, tmp_path: Path) -> None:
    def listed(top: Path) -> dict[str, tuple[object, ...]]:
        return {
            str(path.relative_to(top)): (
                path.lstat().st_mode,
                os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes(),
                path.lstat().st_mtime_ns if not path.is_symlink() else 0,
            )
            for path in top.rglob("*")
        }

    assert len(listed(installation)) == 7
    assert listed(copied(installation, tmp_path / "new")) == listed(installation)


def test_a_directory_that_becomes_a_link_leads_nowhere(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner acts at the worst moment: between the look at `sub` and what is opened of it."""
    secrets = tmp_path / "root"
    secrets.mkdir()
    (secrets / "a.cfg").write_text(SECRET)
    looked = os.stat

    def look(path: str, **more: object) -> os.stat_result:
        found = looked(path, **more)  # type: ignore[arg-type]
        if path == "sub":
            (installation / "left4dead2/sub").rename(installation / "left4dead2/was")
            (installation / "left4dead2/sub").symlink_to(secrets)
        return found

    monkeypatch.setattr(os, "stat", look)
    with pytest.raises(OSError, match="sub"):
        copied(installation, tmp_path / "new")
    assert SECRET not in "".join(path.read_text() for path in (tmp_path / "new/left4dead2").rglob("*.cfg"))


def test_holes_stay_holes_and_what_is_appended_meanwhile_is_not_copied(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = installation / "left4dead2/big"
    with big.open("wb") as file:
        file.seek(1 << 30)
        file.write(b"in the middle")
        file.truncate(1 << 40)
    opened = os.fstat

    def look(handle: int) -> os.stat_result:
        found = opened(handle)
        with (installation / "left4dead2/empty").open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(os, "fstat", look)
    new = copied(installation, tmp_path / "new") / "left4dead2/big"
    assert (new.stat().st_size, new.stat().st_blocks < 1000) == (1 << 40, True)
    with new.open("rb") as copy:
        copy.seek(1 << 30)
        assert copy.read(14) == b"in the middle\0"
    assert (tmp_path / "new/left4dead2/empty").stat().st_size < (installation / "left4dead2/empty").stat().st_size


def test_a_fifo_is_refused_and_waited_for_by_nobody(installation: Path, tmp_path: Path) -> None:
    os.mkfifo(installation / "left4dead2/steam.pipe")
    with pytest.raises(ValueError, match=r"steam\.pipe is neither a file nor"):
        copied(installation, tmp_path / "new")


def test_a_tree_without_end_is_refused(installation: Path, tmp_path: Path) -> None:
    deep = installation
    for _ in range(host.DEEPEST + 1):
        deep /= "d"
        deep.mkdir()
    with pytest.raises(ValueError, match="deeper than 100"):
        copied(installation, tmp_path / "new")
