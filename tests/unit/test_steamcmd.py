"""The stand-in's SteamCMD, unpacked from the neighbour's archive and run on loopback with a tiny tree."""

from __future__ import annotations

import hashlib
import io
import os
import re
import select
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration import steam as neighbours
from tests.integration.steam import Steam

GAME: Mapping[str, bytes] = {
    "srcds_run": b"#!/bin/sh\n",
    "bin/engine_srv.so": b"\x7fELF\x01",
    "left4dead2/gameinfo.txt": b"GameInfo",
    "left4dead2/steam.inf": b"appID=550",
    "left4dead2/maps/c1m1_hotel.bsp": os.urandom(1 << 16),
}
BOTH = "windows", "linux"
INSTALLED = 0, "Success! App '222860' fully installed."
TRANSIENT = 8, "Error! App '222860' state is 0x402 after update job."


def refused(why: str) -> tuple[int, str]:
    return 8, f"ERROR! Failed to install app '222860' ({why})"


class SteamCmd:
    """SteamCMD as it is unpacked, with a HOME of its own, and the directory that it installs to."""

    def __init__(self, top: Path, archive: bytes) -> None:
        self.root, self.home, self.game = top / "steamcmd", top / "home", top / "game"
        self.said = self.complained = ""
        self.home.mkdir()
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(self.root, filter="data")

    def start(
        self, *words: str | Path, program: Path | None = None, stdout: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [program or self.root / "steamcmd.sh", *words],
            env={"HOME": str(self.home), "http_proxy": "http://127.0.0.1:9"},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str | Path, program: Path | None = None) -> tuple[int, str]:
        """Run it; return the exit code and the last line that it said."""
        process = self.start(*words, program=program)
        self.said, self.complained = process.communicate(timeout=20)
        assert "Traceback" not in self.complained, self.complained
        return process.returncode, (self.said.splitlines() or [""])[-1]

    def step(self, platform: str) -> list[str | Path]:
        return [
            *("+force_install_dir", self.game, "+login", "anonymous"),
            *("+@sSteamCmdForcePlatformType", platform, "+app_update", "222860", "validate", "+quit"),
        ]

    def install(self, *platforms: str) -> tuple[int, str]:
        """Take steps; return what came of the last, after those that succeeded."""
        for platform in platforms[:-1]:
            assert self(*self.step(platform))[0] == 0
        return self(*self.step(platforms[-1]))

    def manifest(self, field: str) -> str:
        text = (self.game / "steamapps/appmanifest_222860.acf").read_text()
        found = re.search(rf'^\t"{field}"\t\t"(.*)"$', text, re.MULTILINE)
        assert found, text
        return found[1]

    def files(self) -> dict[str, bytes]:
        """Return what is installed, without SteamCMD's own notes."""
        return {
            name: path.read_bytes()
            for path in self.game.rglob("*")
            if path.is_file() and not (name := path.relative_to(self.game).as_posix()).startswith("steamapps/")
        }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, content in GAME.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "tree/srcds_run").chmod(0o755)
    (tmp_path / "tree/left4dead2/addons").mkdir()
    (tmp_path / "tree/steamapps").mkdir()
    (tmp_path / "tree/steamapps/appmanifest_222860.acf").write_text("of the tree")
    return tmp_path / "tree"


@pytest.fixture
def steam(tree: Path) -> Iterator[Steam]:
    with neighbours.serving("127.0.0.1") as served:
        served.publish("15000001", tree)
        yield served


@pytest.fixture
def steamcmd(steam: Steam, tmp_path: Path) -> SteamCmd:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(steam.steamcmd_url) as answer:
        archive = answer.read()
    assert hashlib.sha256(archive).hexdigest() == steam.steamcmd_sha256
    return SteamCmd(tmp_path, archive)


# -- what it does


def test_installs_in_two_steps(steamcmd: SteamCmd, steam: Steam) -> None:
    assert steamcmd.install("windows") == INSTALLED
    assert "srcds.exe" in steamcmd.files()
    assert "srcds_run" not in steamcmd.files()
    assert steamcmd.install("linux") == INSTALLED
    assert steamcmd.said.startswith(f"Redirecting stderr to '{steamcmd.root}/logs/stderr.txt'\n")
    lines = re.findall(
        r"^ Update state (\(\w+\) [\w ]+), progress: ([\d.]+) \(\d+ / \d+\)$", steamcmd.said, re.MULTILINE
    )
    assert list(dict.fromkeys(state for state, _ in lines)) == [
        "(0x3) reconfiguring",
        "(0x61) downloading",
        "(0x81) verifying update",
        "(0x101) committing",
    ]
    downloading = [float(progress) for state, progress in lines if state.endswith("downloading")]
    assert (downloading[0], downloading[-1]) == (0, 100)
    assert downloading == sorted(downloading)
    assert len(downloading) > 10
    assert steamcmd.files() == GAME
    assert (steamcmd.game / "srcds_run").stat().st_mode & 0o777 == 0o755
    assert (steamcmd.game / "left4dead2/addons").is_dir()
    assert (steamcmd.manifest("StateFlags"), steamcmd.manifest("buildid")) == ("4", "15000001")
    assert not list((steamcmd.game / "steamapps/downloading").iterdir())
    assert steam.asked[1:] == [
        *("/steam/login", "/steam/222860", "/steam/222860/windows.tar"),
        *("/steam/login", "/steam/222860", "/steam/222860/linux.tar"),
    ]


def test_both_steps_in_one_run(steamcmd: SteamCmd) -> None:
    assert steamcmd(*steamcmd.step("windows")[:-1], *steamcmd.step("linux")[4:]) == INSTALLED
    assert steamcmd.said.count("Success!") == 2
    assert steamcmd.files() == GAME


def test_an_update_replaces_what_differs_and_leaves_what_is_not_steams(
    steamcmd: SteamCmd, steam: Steam, tree: Path
) -> None:
    assert steamcmd.install(*BOTH) == INSTALLED
    (steamcmd.game / "left4dead2/addons/mine.vpk").write_bytes(b"mine")
    kept = (steamcmd.game / "left4dead2/gameinfo.txt").stat().st_ino
    changes = {"srcds_run": b"#!/bin/false\n", "left4dead2/maps/c1m1_hotel.bsp": None, "left4dead2/new.txt": b"new"}
    steam.publish("15000002", tree, changes)
    assert steamcmd.install("windows") == INSTALLED
    assert not {"srcds_run", "bin/engine_srv.so"} & steamcmd.files().keys()
    assert steamcmd.install("linux") == INSTALLED
    wanted = {**GAME, **changes, "left4dead2/addons/mine.vpk": b"mine"}
    assert steamcmd.files() == {name: content for name, content in wanted.items() if content is not None}
    assert (steamcmd.game / "srcds_run").stat().st_mode & 0o777 == 0o755
    assert (steamcmd.game / "left4dead2/gameinfo.txt").stat().st_ino == kept
    assert steamcmd.manifest("buildid") == "15000002"


def test_validate_repairs_a_damaged_file(steamcmd: SteamCmd) -> None:
    assert steamcmd.install(*BOTH) == INSTALLED
    (steamcmd.game / "left4dead2/maps/c1m1_hotel.bsp").write_bytes(b"damaged")
    (steamcmd.game / "left4dead2/gameinfo.txt").unlink()
    assert steamcmd.install(*BOTH) == INSTALLED
    assert steamcmd.files() == GAME
    assert steamcmd.install(*BOTH) == INSTALLED, "nothing to repair"


def test_without_validate_the_manifest_is_believed(steamcmd: SteamCmd, steam: Steam) -> None:
    assert steamcmd.install("windows") == INSTALLED
    steam.asked.clear()
    words = [word for word in steamcmd.step("windows") if word != "validate"]
    assert steamcmd(*words) == (0, "Success! App '222860' already up to date.")
    assert steam.asked == ["/steam/login", "/steam/222860"]
    assert steamcmd.install("linux") == INSTALLED


def test_app_info(steamcmd: SteamCmd, steam: Steam) -> None:
    missing = (0, "No app info for AppID 222860 found, requesting...")
    assert steamcmd("+login", "anonymous", "+app_info_print", "222860", "+quit") == missing
    assert steamcmd("+app_info_update", "1", "+app_info_print", "222860", "+quit") == missing
    steam.fail_next(1)
    assert steamcmd("+login", "anonymous", "+app_info_update", "1", "+app_info_print", "222860", "+quit")[0] == 0
    header, _, body = steamcmd.said.partition("AppID : ")[2].partition("\n")
    assert header == "222860, change number : 26000000/4294967295, last change : Tue Nov 26 20:00:00 2024 "
    assert body.startswith('"222860"\n{\n\t"common"\n\t{\n\t\t"name"\t\t"Left 4 Dead 2 Dedicated Server"\n')
    assert '\t\t"branches"\n\t\t{\n\t\t\t"public"\n\t\t\t{\n\t\t\t\t"buildid"\t\t"15000001"\n' in body
    sizes = dict(re.findall(r'"(22286[1-3])"\n.*?"size"\t\t"(\d+)"', body, re.DOTALL))
    assert int(sizes["222861"]) + int(sizes["222863"]) == sum(map(len, GAME.values()))
    assert steam.failures == 1, "that was no attempt to install"


def test_unknown_commands_are_named_and_passed_over(steamcmd: SteamCmd) -> None:
    assert steamcmd("+nonsense", "1", *steamcmd.step("windows")) == INSTALLED
    assert "\nCommand not found: nonsense\n" in steamcmd.said
    assert '\n"@sSteamCmdForcePlatformType" = "windows"\n' in steamcmd.said


def test_without_quit_it_asks_for_more(steamcmd: SteamCmd) -> None:
    assert steamcmd("+login", "anonymous") == (0, "Steam>")


# -- what it refuses


@pytest.mark.parametrize("steps", [["linux"], ["windows", "linux", "linux"], ["macos"]])
def test_linux_needs_the_windows_step_first(steamcmd: SteamCmd, steps: list[str]) -> None:
    assert steamcmd.install(*steps) == refused("Invalid platform")


def test_the_windows_step_is_one_directorys(steamcmd: SteamCmd, tmp_path: Path) -> None:
    assert steamcmd.install("windows") == INSTALLED
    steamcmd.game = tmp_path / "a+b +c"
    assert steamcmd.install("linux") == refused("Invalid platform")
    assert steamcmd.install(*BOTH) == INSTALLED
    assert steamcmd.files() == GAME


def test_without_a_forced_platform(steamcmd: SteamCmd) -> None:
    words = steamcmd.step("windows")
    assert steamcmd(*words[:4], *words[6:]) == refused("Invalid platform")


def test_force_install_dir_comes_before_login(steamcmd: SteamCmd) -> None:
    words = steamcmd.step("windows")
    assert steamcmd(*words[2:4], *words[:2], *words[4:]) == refused("Missing configuration")
    assert "\nPlease use force_install_dir before logon!\n" in steamcmd.said
    assert steamcmd(*words[2:]) == refused("Missing configuration")
    assert not steamcmd.game.exists()


def test_app_update_comes_after_login(steamcmd: SteamCmd) -> None:
    words = steamcmd.step("windows")
    assert steamcmd(*words[:2], *words[4:]) == refused("No subscription")


def test_a_login_that_fails(steamcmd: SteamCmd, steam: Steam) -> None:
    user = "Logging in user 'somebody' to Steam Public...ERROR (Invalid Password)"
    assert steamcmd("+login", "somebody", "secret", "+quit") == (5, user)
    steam.is_down = True
    assert steamcmd.install("windows") == (5, "Connecting anonymously to Steam Public...ERROR (No Connection)")


def test_a_symlink_to_it_is_refused(steamcmd: SteamCmd, tmp_path: Path) -> None:
    link = tmp_path / "bin/steamcmd.sh"
    link.parent.mkdir()
    link.symlink_to(steamcmd.root / "steamcmd.sh")
    assert steamcmd(*steamcmd.step("windows"), program=link) == (1, "")
    assert steamcmd.complained == f"{link}: {tmp_path}/bin/linux32/steamclient.so: No such file or directory\n"


def test_its_own_directory_has_to_be_writable(steamcmd: SteamCmd) -> None:
    (steamcmd.root / "logs").write_text("in the way")
    assert steamcmd("+quit") == (1, "")
    assert f"cannot write {steamcmd.root}/logs: " in steamcmd.complained


def test_a_home_that_cannot_be_written_is_a_complaint(steamcmd: SteamCmd) -> None:
    steamcmd.home = steamcmd.root / "steamcmd.sh"
    assert steamcmd("+quit")[0] == 0
    assert steamcmd.complained.startswith(f"mkdir: cannot create directory '{steamcmd.home}/.steam': ")


# -- what goes wrong on the way


def test_a_transient_failure_and_then_success(steamcmd: SteamCmd, steam: Steam) -> None:
    assert steamcmd.install("windows") == INSTALLED
    steam.fail_next(2)
    for _ in range(2):
        assert steamcmd.install("linux") == TRANSIENT
        assert steamcmd.manifest("StateFlags") == "1026"
    assert steamcmd.install("linux") == INSTALLED
    assert steamcmd.files() == GAME


def test_a_first_attempt_that_fails_leaves_no_build(steamcmd: SteamCmd, steam: Steam) -> None:
    steam.fail_next(1)
    assert steamcmd.install("windows") == TRANSIENT
    assert (steamcmd.manifest("StateFlags"), steamcmd.manifest("buildid")) == ("1026", "0")
    assert steamcmd.install("linux") == refused("Invalid platform")


def test_a_connection_that_is_cut(steamcmd: SteamCmd, steam: Steam) -> None:
    steam.cut = True
    assert steamcmd.install(*BOTH) == TRANSIENT
    assert re.search(r"downloading, progress: [45]\d\.", steamcmd.said)
    steam.cut = False
    assert steamcmd.install("linux") == INSTALLED
    assert steamcmd.files() == GAME


@pytest.mark.parametrize("name", ["depot.tar", "file"])
def test_a_full_disk(steamcmd: SteamCmd, name: str) -> None:
    stage = steamcmd.game / "steamapps/downloading/222860"
    stage.mkdir(parents=True)
    (stage / name).symlink_to("/dev/full")
    assert steamcmd.install("windows") == (8, "Error! App '222860' state is 0x202 after update job.")
    shutil.rmtree(stage)
    assert steamcmd.install(*BOTH) == INSTALLED


def test_a_directory_that_cannot_be_written(steamcmd: SteamCmd) -> None:
    steamcmd.game.write_text("in the way")
    assert steamcmd.install("windows") == refused("Missing file permissions")


def test_a_terminal_sees_how_far_a_held_download_is(steamcmd: SteamCmd, steam: Steam) -> None:
    assert steamcmd.install("windows") == INSTALLED
    steam.hold = True
    ours, theirs = os.openpty()
    seen = ""
    with steamcmd.start(*steamcmd.step("linux"), stdout=theirs) as process:
        os.close(theirs)
        while not re.search(r"downloading, progress: 4[5-9]\.", seen):
            seen += os.read(ours, 4096).decode()
        assert steam.holding.wait(20)
        assert process.poll() is None
        process.kill()
    os.close(ours)
    assert "committing" not in seen
    assert steamcmd.manifest("StateFlags") == "1026"


def test_a_pipe_sees_nothing_before_the_end(steamcmd: SteamCmd, steam: Steam) -> None:
    assert steamcmd.install("windows") == INSTALLED
    steam.hold = True
    with steamcmd.start(*steamcmd.step("linux")) as process:
        assert process.stdout
        assert steam.holding.wait(20)
        assert not select.select([process.stdout], [], [], 0.2)[0]
        steam.go_on.set()
        assert process.communicate(timeout=20)[0].splitlines()[-1] == INSTALLED[1]
    assert steamcmd.files() == GAME
