"""What needs no project quotas of disk_max: who asks for them, and what is said and done without."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from left4me.remote import gather
from left4me_host import doctor, instance, layout, quota, status

GIB = 1 << 30


@pytest.fixture
def upper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the upper of server 3, with a disk_max of 1 GiB, on a filesystem without project quotas."""
    monkeypatch.setattr(layout, "RUNTIME", str(tmp_path))
    monkeypatch.setattr(quota, "enforced", lambda _path: False)
    monkeypatch.setattr(instance, "environment", lambda _server: {"LEFT4ME_DISK_MAX": str(GIB)})
    monkeypatch.setattr(instance, "started_with", lambda _server: {"LEFT4ME_DISK_MAX": str(GIB)})
    for name in ("upper", "work"):
        (tmp_path / "3" / name).mkdir(parents=True)
    return tmp_path / "3/upper"


def test_no_filesystem_of_the_kernel_itself_has_project_quotas() -> None:
    assert not quota.enforced("/proc")


def test_a_limit_without_project_quotas_says_so_and_none_needs_none(upper: Path) -> None:
    with pytest.raises(OSError, match=r"/var/lib/left4me enforces no project quotas; mount it with prjquota$"):
        quota.limit("3", GIB)
    quota.limit("3", 0)
    assert quota.usage("3", 1 << 60) is None
    assert os.listdir(upper) == []


def test_a_reset_moves_kept_files_on_a_filesystem_without_projects(
    upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        refused.append(1)
        raise OSError(errno.ENOTTY, "")

    refused: list[int] = []
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    source, target = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (upper.parent / "work", upper))
    quota.admit(source, target, str(upper))
    assert refused
    os.close(source)
    os.close(target)


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        (quota.Usage(GIB * 8 // 10, GIB, 10, 65536), []),
        (quota.Usage(GIB * 9 // 10 + 1, GIB, 10, 65536), ["921 of 1,024 MiB, 10 of 65,536 files"]),
        (quota.Usage(0, GIB, 65000, 65536), ["0 of 1,024 MiB, 65,000 of 65,536 files"]),
        (None, ["its disk_max is not in force: the filesystem of /var/lib/left4me enforces no project quotas"]),
    ],
)
def test_doctor_names_a_server_near_its_limit_or_without(
    usage: quota.Usage | None, said: list[str], upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upper.is_dir()
    monkeypatch.setattr(quota, "usage", lambda _server, _declared: usage)
    found = list(doctor._disk_limits(["3"], {"3"}))
    assert [(each.server, each.what.removeprefix(FULL)) for each in found] == [("3", each) for each in said]
    assert all(each.do for each in found)
    if usage is None:
        assert not list(doctor._disk_limits(["3"], set()))  # a start sets the limit


FULL = "has written almost all that disk_max allows: "


def test_a_removed_limit_is_named_as_the_reason_for_a_restart() -> None:
    started = {"LEFT4ME_PORT": "1", "LEFT4ME_DISK_MAX": "1", "LEFT4ME_GENERATION": "a", "LOWERS": "x"}
    env = {"LEFT4ME_PORT": "1", "LEFT4ME_GENERATION": "b"}
    assert status._differences(started, env, ["x"], ["x"]) == ["disk_max"]


def test_a_new_host_is_asked_for_quotas_where_the_directory_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "VAR", str(tmp_path / "lib/left4me"))
    monkeypatch.setattr(quota, "enforced", lambda path: path == str(tmp_path))
    about = os.statvfs(tmp_path)
    assert gather.project_quotas() == about.f_blocks * about.f_frsize
