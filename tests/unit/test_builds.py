"""What needs no host of builds of the game: what Steam says, how often it is asked, and when servers are restarted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from left4me_host import gc, idle, instance, layout, steam, steamcmd_words, update_restarts

MANIFEST = """"AppState"
{
\t"appid"\t\t"222860"
\t"StateFlags"\t\t"4"
\t"name"\t\t"Left 4 Dead 2 \\"Dedicated\\" Server"
\t"buildid"\t\t"14716838"
\t"UserConfig"
\t{
\t}
}
"""


def test_a_manifest_is_read() -> None:
    state = steamcmd_words.parsed(MANIFEST)["AppState"]
    assert (state["StateFlags"], state["buildid"], state["UserConfig"]) == ("4", "14716838", {})


@pytest.mark.parametrize("text", ["", "}", '"a"', '"a" {', "} } {", '"a" { "b" "c'])
def test_what_is_no_manifest_is_read_as_far_as_it_goes(text: str) -> None:
    assert isinstance(steamcmd_words.parsed(text), dict)


def test_steam_is_asked_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    tries = 0

    def fails() -> None:
        nonlocal tries
        tries += 1
        raise steam.TransientError("Steam is away")

    with pytest.raises(steam.TransientError, match="Steam is away"):
        steam.with_retries(fails)
    assert tries == 5
    assert waited == sorted(waited)
    assert waited[0] < waited[-1]


def test_no_try_begins_after_the_time_for_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def passes(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    monkeypatch.setattr(time, "sleep", passes)
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    begun = []

    def falls_silent() -> None:
        begun.append(clock)
        passes(steam.ASKING)
        raise steam.TransientError(f"SteamCMD said nothing for {steam.ASKING} s")

    with pytest.raises(steam.TransientError):
        steam.with_retries(falls_silent, steam.WITHIN)
    assert len(begun) > 1
    assert begun[-1] <= steam.WITHIN
    assert clock <= 180


def test_what_will_not_pass_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))

    def fails() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        steam.with_retries(fails)


def at(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M"))


@pytest.mark.parametrize(
    ("clock", "now", "then"),
    [
        ("05:30", "2026-11-26 04:30", "2026-11-26 05:30"),
        ("05:30", "2026-11-26 05:30", "2026-11-27 05:30"),
        ("00:00", "2026-12-31 23:59", "2027-01-01 00:00"),
    ],
)
def test_the_next_time_of_a_clock(clock: str, now: str, then: str) -> None:
    assert update_restarts.seconds_until(clock, at(now)) == at(then) - at(now)


@pytest.mark.parametrize(
    ("declared", "then"),
    [
        ({"04:00": "at 05:30", "05:00": "at 04:30"}, "2026-11-27 04:30"),
        ({"04:00": "at 05:30", "05:00": "at 06:30", "05:45": "at 05:30"}, "2026-11-27 05:30"),
        ({"04:00": "at 05:30", "05:00": "at 06:30"}, "2026-11-26 06:30"),
    ],
    ids=("already past", "back to one that is past", "later"),
)
def test_a_time_that_a_deploy_changes_waits_for_its_next_day(
    declared: dict[str, str], then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update waits from 04:00 on."""
    clock = at("2026-11-26 04:00")
    restarted: list[float] = []

    def passes(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    def policy(_server: str) -> str:
        return [policy for since, policy in declared.items() if clock >= at(f"2026-11-26 {since}")][-1]

    monkeypatch.setattr(time, "sleep", passes)
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(time, "time", lambda: clock)
    monkeypatch.setattr(update_restarts, "policy", policy)
    monkeypatch.setattr(update_restarts, "waiting", lambda: {} if restarted else {"3": None})
    monkeypatch.setattr(update_restarts, "_restart", lambda _row: restarted.append(clock))
    monkeypatch.setattr(instance, "lowers", lambda _server: ["layer", "build"])
    assert update_restarts.main([]) == 0
    assert restarted == [pytest.approx(at(then), abs=idle.POLL)]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with four builds, the latest current: of the others two are good, and one does not run."""
    for name, path in vars(layout).items():
        if isinstance(path, str):
            here = path.replace("/var/lib/left4me", f"{tmp_path}/var").replace("/etc/left4me", f"{tmp_path}/etc")
            monkeypatch.setattr(layout, name, here)
    monkeypatch.setattr(gc, "PROC", str(tmp_path / "proc"))
    for name in ("var/game/verdicts", "var/overlays", "etc/servers/3", "proc"):
        (tmp_path / name).mkdir(parents=True)
    for build, verdict in (("1", "good"), ("2", "left by a rollback to 1"), ("3", "does not run"), ("4", "good")):
        (tmp_path / "var/releases" / build).mkdir(parents=True)
        (tmp_path / "var/game/verdicts" / build).write_text(f"{verdict}\n")
    (tmp_path / "var/installation").symlink_to("releases/4")
    (tmp_path / "etc/servers/3/layers").write_text("")
    return tmp_path


def left(host: Path, kept: int, build: str = "null") -> list[str]:
    (host / "etc/game").write_text(f'{{"kept": {kept}, "build": {build}}}')
    return sorted(Path(path).name for path in gc.unused())


def test_the_latest_good_builds_are_kept(host: Path) -> None:
    assert left(host, 0) == ["1", "2", "3"]
    assert left(host, 1) == ["1", "3"]
    assert left(host, 2) == left(host, 9) == ["3"]


def test_what_data_name_or_a_trial_has_is_kept(host: Path) -> None:
    assert left(host, 0, '"1"') == ["2", "3"]
    (host / "etc/servers/3/build").write_text("2\n")
    assert left(host, 0) == ["1", "3"]
    (host / "var/candidate").symlink_to("releases/3")
    assert left(host, 0) == ["1"]
