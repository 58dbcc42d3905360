"""Build the stand-in game: a tree like SteamCMD's installation of app 222860, with a 32-bit process.

The game is `tests/boxes/standin`, run by Debian's i386 Python. The tree contains libexpat; libc6:i386 and libz must
come from the host, as they must for srcds.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.boxes import mirror

CHECKOUT = Path(__file__).resolve().parents[2]
STATE = CHECKOUT / ".boxes"
SOURCES = Path(__file__).resolve().parent / "standin"

APP_ID = 222860
BUILD_ID = "14716838"
MTIME = 1_700_000_000
"""The modification time of all files in the tree, in seconds since the epoch, so that builds are reproducible."""

# Only bookworm has an i386 python3.11; its binary runs with the libc of both Debians.
SUITE = "bookworm"
IN_TREE = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libexpat1")
# Needed to run the i386 Python at build time; on a host the deploy installs them.
BESIDE_TREE = ("libc6", "zlib1g")

# The real game's maps, by campaign.
CAMPAIGNS = {
    "c1": "hotel streets mall atrium",
    "c2": "highway fairgrounds coaster barns concert",
    "c3": "plankcountry swamp shantytown plantation",
    "c4": "milltown_a sugarmill_a sugarmill_b milltown_b milltown_escape",
    "c5": "waterfront park cemetery quarter bridge",
    "c8": "apartment subway sewers interior rooftop",
}


class BuildError(Exception):
    """The stand-in game could not be built; the message is one line."""


def build() -> Path:
    """Return `<checkout>/.boxes/game`, rebuilt if its sources have changed.

    Raises BuildError if a package cannot be downloaded or this kernel does not run 32-bit programs.
    """
    tree, recipe = STATE / "game", STATE / "game.recipe"
    STATE.mkdir(exist_ok=True)
    with _locked(STATE / "game.lock"):
        sources = _recipe()
        if tree.is_dir() and recipe.is_file() and recipe.read_text() == sources:
            return tree
        new, old = STATE / "game.new", STATE / "game.old"
        for leftover in (new, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        packages = _packages()
        lay_out(new)
        _add_python(new, packages)
        _normalize(new)
        recipe.unlink(missing_ok=True)
        if tree.exists():
            tree.rename(old)
        new.rename(tree)
        recipe.write_text(sources)
        if old.exists():
            shutil.rmtree(old)
    return tree


def lay_out(tree: Path) -> None:
    """Create `tree` with everything except the i386 Python."""
    game = tree / "left4dead2"
    for name in ("addons", "bin", "cfg", "maps", "scripts"):
        (game / name).mkdir(parents=True)
    (tree / "steamapps").mkdir()
    for program in ("srcds_run", "srcds_linux"):
        shutil.copyfile(SOURCES / program, tree / program)
    shutil.copytree(SOURCES / "standin", tree / "bin" / "standin", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(SOURCES / "start.py", tree / "bin" / "start.py")
    shutil.copytree(SOURCES / "left4dead2", game, dirs_exist_ok=True)
    for campaign, names in CAMPAIGNS.items():
        for number, name in enumerate(names.split(), start=1):
            map_name = f"{campaign}m{number}_{name}"
            (game / "maps" / f"{map_name}.bsp").write_bytes(_filler(b"VBSP\x15\0\0\0", map_name, 4096))
    (game / "pak01_dir.vpk").write_bytes(_filler(b"\x34\x12\xaa\x55\x01\0\0\0", "pak01", 1 << 20))
    (game / "modelsounds.cache").write_bytes(_filler(b"", "modelsounds", 4096))
    for library in (game / "bin/server_srv.so", tree / "bin/engine_srv.so", tree / "bin/steamclient.so"):
        library.write_bytes(_filler(b"\x7fELF\x01\x01\x01", library.stem.removesuffix("_srv"), 4096))
    (tree / "steamapps" / f"appmanifest_{APP_ID}.acf").write_text(_manifest())
    _normalize(tree)


def _filler(head: bytes, seed: str, size: int) -> bytes:
    """Return `size` incompressible bytes that start with `head`."""
    return head + hashlib.shake_128(seed.encode()).digest(size - len(head))


def _manifest() -> str:
    fields = {
        "appid": str(APP_ID),
        "Universe": "1",
        "name": "Left 4 Dead 2 Dedicated Server",
        "StateFlags": "4",
        "installdir": "Left 4 Dead 2 Dedicated Server",
        "LastUpdated": str(MTIME),
        "buildid": BUILD_ID,
    }
    lines = "".join(f'\t"{key}"\t\t"{value}"\n' for key, value in fields.items())
    return f'"AppState"\n{{\n{lines}}}\n'


def _recipe() -> str:
    """Return a hash of the sources of the tree."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"\0{path.relative_to(SOURCES)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], *, cwd: Path, failure: str) -> str:
    """Run a command for at most ten minutes and return its output. Raises BuildError, which starts with `failure`."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"stand-in game: {failure}: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise BuildError(f"stand-in game: {failure}: {command[0]}: exit {done.returncode}: {last}")
    return done.stdout


def _packages() -> Path:
    """Return the directory of the .deb files. They are downloaded by an apt with state of its own."""
    debs = STATE / "game-packages"
    names = IN_TREE + BESIDE_TREE
    if all(len(list(debs.glob(f"{name}_*_i386.deb"))) == 1 for name in names):
        return debs
    shutil.rmtree(debs, ignore_errors=True)
    apt = STATE / "game-apt"
    for folder in (debs, apt / "state/lists/partial", apt / "cache/archives/partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    source = f"deb [arch=i386 signed-by={mirror.KEYRING}] {mirror.url()} {SUITE} main\n"
    (apt / "sources.list").write_text(source)
    options = [
        f"Dir::State={apt}/state",
        f"Dir::State::status={apt}/status",
        f"Dir::Cache={apt}/cache",
        f"Dir::Etc::sourcelist={apt}/sources.list",
        "Dir::Etc::sourceparts=/dev/null",
        "APT::Architectures::=i386",
        "Acquire::Languages=none",
        "Acquire::Retries=1",
        # Otherwise an unreadable index is only a warning, and apt reports that the packages do not exist.
        "APT::Update::Error-Mode=any",
        # apt's sandbox user may not be able to read the checkout.
        "APT::Sandbox::User=root",
    ]
    apt_get = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    _run([*apt_get, "update"], cwd=debs, failure=f"cannot read the i386 index of {SUITE} at {mirror.url()}")
    _run([*apt_get, "download", *(f"{name}:i386" for name in names)], cwd=debs, failure="cannot download packages")
    shutil.rmtree(apt)
    return debs


def _add_python(tree: Path, packages: Path) -> None:
    """Put the i386 Python into `bin/`: the program as `bin/srcds_linux`, the modules as bytecode."""
    with tempfile.TemporaryDirectory(dir=STATE, prefix="game.scratch-") as name:
        scratch = Path(name)
        for package in IN_TREE + BESIDE_TREE:
            (deb,) = packages.glob(f"{package}_*_i386.deb")
            _run(["dpkg-deb", "-x", str(deb), str(scratch / package)], cwd=scratch, failure=f"cannot unpack {deb.name}")
        modules = tree / "bin/lib/python3.11"
        shutil.copytree(scratch / "libpython3.11-minimal/usr/lib/python3.11", modules, symlinks=True)
        (modules / "sitecustomize.py").unlink()  # a symlink into the host's /etc
        (modules / "lib-dynload").mkdir(exist_ok=True)
        for extension in (scratch / "libpython3.11-stdlib/usr/lib/python3.11/lib-dynload").glob("mmap.*"):
            shutil.copy(extension, modules / "lib-dynload")
        shutil.copyfile(next((scratch / "libexpat1").rglob("libexpat.so.1")), tree / "bin/libexpat.so.1")
        shutil.copy(scratch / "python3.11-minimal/usr/bin/python3.11", tree / "bin/srcds_linux")
        _compile(tree, [scratch / package for package in BESIDE_TREE])


def _compile(tree: Path, libraries: list[Path]) -> None:
    """Replace every module below `bin/` by its bytecode: at a start there is nothing to compile or to write."""
    loader = next(path for root in libraries for path in root.rglob("ld-linux.so.2") if not path.is_symlink())
    search = ":".join(str(path.parent) for root in libraries for path in root.rglob("lib[cz].so.?"))
    python = [str(loader), "--library-path", f"{search}:{tree}/bin", f"{tree}/bin/srcds_linux"]
    folders = ["lib/python3.11", "standin"]
    _run(
        [*python, "-S", "-m", "compileall", "-q", "-b", "--invalidation-mode", "unchecked-hash", *folders],
        cwd=tree / "bin",
        failure="the i386 Python does not run here (does this kernel run 32-bit programs?)",
    )
    for folder in folders:
        for source in (tree / "bin" / folder).rglob("*.py"):
            source.unlink()


def _normalize(tree: Path) -> None:
    """Set the modes that SteamCMD sets, and the same time, for all files."""
    programs = {tree / "srcds_run", tree / "srcds_linux", tree / "bin/srcds_linux"}
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path in programs else 0o644)
        os.utime(path, (MTIME, MTIME))
