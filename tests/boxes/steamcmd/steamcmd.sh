#!/usr/bin/python3 -I
"""The stand-in's steamcmd.sh: command line, output, refusals and exit codes are those of the real one.

What it installs comes from the neighbour whose address is in the file `neighbour` beside it.
"""

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

APP = "222860"
NAME = "Left 4 Dead 2 Dedicated Server"
COMMON, DEPOTS = "222861", {"windows": "222862", "linux": "222863"}
LINUX_ONLY = (".so", "srcds_run", "srcds_linux")
COMMANDS = ("force_install_dir", "login", "app_update", "app_info_update", "app_info_print")
LOGIN_FAILED, UPDATE_FAILED = 5, 8
UNREACHABLE = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
# Steam does not go through a proxy of the environment either.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


RESET = "\x1b[0m" if sys.stdout.isatty() else ""
"""What the real one writes before words that it may have coloured."""


class Failure(Exception):
    """What is printed last, and the exit code."""


class Progress:
    """Prints a state's lines: the first, one for each twentieth of the way, the last."""

    def __init__(self, state: str, total: int) -> None:
        self.state, self.total, self.next = state, total, 0.0
        self.at(0)

    def at(self, done: int) -> None:
        if done >= self.next or done == self.total:
            share = 100 * done / self.total if self.total else 0
            print(f" Update state ({self.state}, progress: {share:.2f} ({done} / {self.total})")
            self.next = done + self.total / 20


def vdf(node: dict[str, Any], indent: str = "") -> str:
    """Write a dictionary in Valve's format."""
    text = ""
    for key, value in node.items():
        if isinstance(value, dict):
            text += f'{indent}"{key}"\n{indent}{{\n{vdf(value, indent + chr(9))}{indent}}}\n'
        else:
            text += f'{indent}"{key}"\t\t"{value}"\n'
    return text


def gid(depot: str, build: str) -> str:
    """Return the number of a depot's manifest."""
    return str(int(hashlib.sha256(f"{depot} {build}".encode()).hexdigest()[:15], 16))


def appmanifest(flags: int, build: str, sizes: dict[str, int]) -> str:
    """Return the appmanifest of a build of which depots of these sizes are installed."""
    fields = {"appid": APP, "Universe": 1, "name": NAME, "StateFlags": flags, "installdir": NAME}
    fields |= {"LastUpdated": int(time.time()), "SizeOnDisk": sum(sizes.values()), "buildid": build}
    depots = {depot: {"manifest": gid(depot, build), "size": size} for depot, size in sizes.items()}
    return vdf({"AppState": fields | {"InstalledDepots": depots}})


def differs(path: Path, content: bytes, mode: int) -> bool:
    """Tell whether something else is where a file should be."""
    if path.is_symlink() or not path.is_file():
        return True
    return bool((path.stat().st_mode ^ mode) & 0o100) or path.read_bytes() != content


class SteamCmd:
    """One run: each command changes what the later ones do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.neighbour = (root / "neighbour").read_text().strip()
        self.directory: Path | None = None
        self.platform = ""
        self.is_logged_in = False
        self.info: dict[str, Any] = {}

    def run(self, name: str, *arguments: str) -> None:
        if name in COMMANDS:
            getattr(self, name)(*arguments)
        elif name.startswith("@"):
            print(f'"{name}" = "{" ".join(arguments)}"')
            if name == "@sSteamCmdForcePlatformType":
                self.platform = " ".join(arguments)
        else:
            print(f"Command not found: {name}")

    def get(self, path: str) -> http.client.HTTPResponse:
        """Ask the neighbour, who may hold his answer for a minute."""
        answer: http.client.HTTPResponse = OPENER.open(f"{self.neighbour}/steam/{path}", timeout=90)
        return answer

    def force_install_dir(self, directory: str = "", *_: str) -> None:
        if self.is_logged_in:
            print("Please use force_install_dir before logon!")
        else:
            self.directory = self.root / directory

    def login(self, user: str = "", *_: str) -> None:
        whom = "Connecting anonymously" if user == "anonymous" else f"Logging in user '{user}'"
        print(f"\n{whom} to Steam Public...", end="")
        if user != "anonymous":
            raise Failure("ERROR (Invalid Password)", LOGIN_FAILED)
        try:
            self.get("login").close()
        except UNREACHABLE:
            raise Failure("ERROR (No Connection)", LOGIN_FAILED) from None
        print("OK\nWaiting for client config...OK\nWaiting for user info...OK")
        self.is_logged_in = True

    def app_info_update(self, *_: str) -> None:
        try:
            with self.get(f"{APP}/info") as answer:
                self.info = json.load(answer) if self.is_logged_in else {}
        except UNREACHABLE:
            raise Failure("ERROR! Timed out waiting for AppInfo update.", 1) from None

    def app_info_print(self, app: str = "", *_: str) -> None:
        if app != APP or not self.info:
            return print(f"No app info for AppID {app} found, requesting...")
        build, sizes = self.info["build"], self.info["depots"]
        depots: dict[str, Any] = {COMMON: {}}
        depots |= {depot: {"config": {"oslist": platform}} for platform, depot in DEPOTS.items()}
        for depot, found in depots.items():
            public = {"gid": gid(depot, build), "size": sizes[depot], "download": sizes[depot] // 2}
            found["manifests"] = {"public": public}
        public = {"buildid": build, "timeupdated": 1732600000}
        depots["branches"] = {"public": public, "beta": {"buildid": 1, "pwdrequired": 1}}
        common = {"name": NAME, "type": "Tool", "oslist": "windows,linux", "gameid": APP}
        config = {"contenttype": 3, "installdir": NAME}
        print(f"AppID : {APP}, change number : 26000000/4294967295, last change : Tue Nov 26 20:00:00 2024 ")
        return print(vdf({APP: {"common": common, "config": config, "depots": depots}}))

    def app_update(self, app: str = "", *options: str) -> None:
        refused = f"ERROR! Failed to install app '{app}' (%s)"
        failed = f"Error! App '{app}' state is %s after update job."
        if not self.is_logged_in or app != APP:
            raise Failure(refused % "No subscription", UPDATE_FAILED)
        if not self.directory:
            raise Failure(refused % "Missing configuration", UPDATE_FAILED)
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        windows_step = self.root / f"appcache/{APP}-{name}"
        if self.platform != "windows" and not (self.platform == "linux" and windows_step.exists()):
            raise Failure(refused % "Invalid platform", UPDATE_FAILED)
        try:
            done = self.update(self.directory, "validate" in options)
            if self.platform == "windows":
                windows_step.touch()
            else:
                windows_step.unlink()
        except UNREACHABLE:
            raise Failure(failed % "0x402", UPDATE_FAILED) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failure(failed % "0x202", UPDATE_FAILED) from None
            (self.root / "logs/stderr.txt").write_text(f"{error}\n")
            raise Failure(refused % "Missing file permissions", UPDATE_FAILED) from None
        print(f"Success! App '{app}' {done}.")

    def update(self, directory: Path, validate: bool) -> str:
        """Bring a directory to the current build; return what was done."""
        with self.get(APP) as answer:
            current = json.load(answer)
        build, depot = current["build"], DEPOTS[self.platform]
        manifest, stage = (directory / "steamapps" / name for name in (f"appmanifest_{APP}.acf", f"downloading/{APP}"))
        before = manifest.read_text() if manifest.is_file() else ""
        if not validate and '"StateFlags"\t\t"4"' in before and gid(depot, build) in before:
            return "already up to date"
        Progress("0x3) reconfiguring", 0)
        stage.mkdir(parents=True, exist_ok=True)
        manifest.write_text(re.sub(r'("StateFlags"\t\t)"\d+"', r'\1"1026"', before) or appmanifest(1026, "0", {}))
        if current["transient"]:
            raise ConnectionError
        self.download(stage / "depot.tar")
        names = self.commit(directory, stage)
        self.remove_old(directory, before, names)
        (self.root / f"depotcache/{depot}_{gid(depot, build)}.manifest").write_text("\n".join(sorted(names)))
        shutil.rmtree(stage)
        manifest.write_text(appmanifest(4, build, {each: current["depots"][each] for each in (COMMON, depot)}))
        return "fully installed"

    def download(self, target: Path) -> None:
        with self.get(f"{APP}/{self.platform}.tar") as answer, target.open("wb") as file:
            done, total = 0, int(answer.headers["Content-Length"])
            progress = Progress("0x61) downloading", total)
            while part := answer.read(min(1 << 20, total // 20 + 1)):
                file.write(part)
                done += len(part)
                progress.at(done)
        if done < total:
            raise ConnectionError

    def commit(self, directory: Path, stage: Path) -> set[str]:
        """Replace the files that differ; return the names of all."""
        with tarfile.open(stage / "depot.tar") as archive:
            for head in archive:
                if head.isdir():
                    (directory / head.name).mkdir(parents=True, exist_ok=True)
            files = {head: archive.extractfile(head) for head in archive if head.isfile()}
            different, done, progress = [], 0, Progress("0x81) verifying update", sum(head.size for head in files))
            for head, source in files.items():
                if source and differs(directory / head.name, source.read(), head.mode):
                    different.append((head, source))
                done += head.size
                progress.at(done)
            done, progress = 0, Progress("0x101) committing", sum(head.size for head, _ in different))
            for head, source in different:
                source.seek(0)
                (stage / "file").write_bytes(source.read())
                (stage / "file").chmod(head.mode)
                (directory / head.name).parent.mkdir(parents=True, exist_ok=True)
                (stage / "file").replace(directory / head.name)
                done += head.size
                progress.at(done)
        return {head.name for head in files}

    def remove_old(self, directory: Path, before: str, names: set[str]) -> None:
        """Remove what an older build or the other platform brought; the Windows step leaves common files be."""
        for listing in (self.root / "depotcache").iterdir():
            if listing.stem.partition("_")[2] in before:
                for name in set(listing.read_text().splitlines()) - names:
                    if self.platform == "linux" or name.endswith(LINUX_ONLY):
                        (directory / name).unlink(missing_ok=True)
                    else:
                        names.add(name)


def main(words: list[str]) -> int:
    """Start as the real one does, and do what the command line says; return the exit code."""
    # As with the real one, whose root is the directory of its $0, a symlink to this file is not followed.
    root = Path(sys.argv[0]).absolute().parent
    if not (library := root / "linux32/steamclient.so").is_file():
        sys.exit(f"{sys.argv[0]}: {library}: No such file or directory")
    home = f"{os.environ.get('HOME', '')}/.steam"
    try:
        Path(home).mkdir(exist_ok=True)
    except OSError as error:
        print(f"mkdir: cannot create directory '{home}': {error.strerror}", file=sys.stderr)
    try:
        for name in ("appcache", "depotcache", "logs"):
            (root / name).mkdir(exist_ok=True)
        (root / "logs/stderr.txt").write_text("")
    except OSError as error:
        sys.exit(f"Fatal Error: cannot write {error.filename}: {error.strerror}")
    print(f"Redirecting stderr to '{root}/logs/stderr.txt'\nLogging directory: '{root}/logs'")
    print("[  0%] Checking for available updates...\n[----] Verifying installation...")
    print("Steam Console Client (c) Valve Corporation - version 1733265444\n-- type 'quit' to exit --")
    print("Loading Steam API...OK")
    steam = SteamCmd(root)
    try:
        for command in re.split(r"(?:^|\0)\+", "\0".join(words))[1:]:
            if command == "quit":
                return 0
            steam.run(*command.split("\0"))
    except Failure as failure:
        print(f"{RESET}{failure.args[0]}")
        return int(failure.args[1])
    print("\nSteam>", end="", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
