"""What layers come from: each source on a real host, what goes wrong with it, and what that leaves."""

from __future__ import annotations

import base64
import re
import socket
import tarfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.boxes.boxes import Box
from tests.integration.ctl import ctl, main_pid
from tests.integration.harness import assert_idle, changed, deploy, pyinfra, standing, started, wait_for_server
from tests.integration.layers import control, current, declare, deploy_fails, lowers, merged, untouched, versions
from tests.integration.sources import DETAILS, Item, Repository, Sources, info, repository, serving, tar, tree
from tests.integration.test_verification import must_fail, must_pass
from tests.integration.test_webhook import outside

BROUGHT = ["Put the layers in place"]
NUMBERS = count()
CAMPAIGNS = {"source": "workshop", "items": [101, 102]}


@pytest.fixture(scope="module")
def sources(box: Box) -> Iterator[Sources]:
    with serving(outside(box)) as served:
        served.items = {101: Item(b"first campaign", 1_600_000_000), 102: Item(b"second" * 9000, 1_700_000_000)}
        yield served


@pytest.fixture(scope="module")
def mod(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A repository with a tag at its first commit."""
    with repository(outside(box), tmp_path_factory.mktemp("git")) as served:
        served.commit("left4dead2/cfg/git.cfg", "at the tag")
        served.git("tag", "v1")
        yield served


@pytest.fixture(scope="module")
def inventory(box: Box, sources: Sources, mod: Repository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four sources at once."""
    path = tmp_path_factory.mktemp("fleet")
    (path / "mine/left4dead2/cfg").mkdir(parents=True)
    (path / "mine/left4dead2/cfg/control.cfg").write_text("of this machine")
    layers = {
        "mine": control(path / "mine"),
        "sm": sources.archive("/sm", tree("tar.gz", {"sm-1.12/left4dead2/cfg/archive.cfg": b"downloaded"}), 1),
        "mod": {"source": "git", "url": mod.url, "ref": "v1"},
        "campaigns": CAMPAIGNS,
    }
    return declare(path / "inventory", box, layers, workshop_api=sources.url)


@pytest.fixture
def host(deployed: Box, sources: Sources) -> Box:
    """The box with both servers up, and nothing asked of the sources yet."""
    for port in (27015, 27016):
        wait_for_server(deployed, port)
    sources.downloads()
    return deployed


def test_all_four_at_once_and_a_second_deploy_downloads_nothing(
    host: Box, inventory: Path, sources: Sources, mod: Repository
) -> None:
    found = {name: merged(host, f"cfg/{name}.cfg").read_text() for name in ("control", "archive", "git")}
    assert found == {"control": "of this machine", "archive": "downloaded", "git": "at the tag"}
    for number, item in sources.items.items():
        assert merged(host, f"addons/{number}.vpk").read_bytes() == item.content
    assert [path.split("/")[5] for path in lowers(host)[:-1]] == ["mine", "sm", "mod", "campaigns"]
    assert not merged(host, "cfg/control.cfg", "4").exists()
    before, fetches = standing(host), mod.fetches()
    assert_idle(deploy(inventory), [host])
    assert (sources.downloads(), mod.fetches(), standing(host)) == ([], fetches, before)
    must_pass(inventory)


DAMAGES = {
    "campaigns": ("rm {}/left4dead2/addons/101.vpk", "an item is missing or its file was changed"),
    "mine": ("echo >>{}/left4dead2/cfg/control.cfg", "left4dead2/cfg/control.cfg differs from "),
    "mod": ("rm -r {}/*", "version [a-z2-7]{8} is empty"),
    "sm": ("mv {0}/left4dead2 {0}/lost", "version [a-z2-7]{8} has no files in left4dead2/"),
}


def test_damaged_layers_are_found_and_healed_as_the_finding_says(host: Box, inventory: Path) -> None:
    deploy(inventory)
    ctl(host, "restart 3")
    wait_for_server(host, 27015)
    deploy(inventory)
    ctl(host, "stop 3")
    for layer, (command, _) in DAMAGES.items():
        host.run(command.format(current(host, layer)))
    # On CI pytest's summary has all of it once more.
    said = must_fail(inventory, "layer mine").partition("short test summary")[0]
    heal = re.findall(r": stop the servers that use it, remove (/var/lib/left4me/overlays/\S+), deploy", said)
    for layer, (_, finding) in DAMAGES.items():
        assert re.search(f"{host.name}: layer {layer}: {finding}", said), said
    assert {*heal} == {current(host, layer) for layer in DAMAGES}
    assert len(re.findall(f"(?m)^E? *{host.name}: layer ", said)) == 2 * len(DAMAGES), said
    host.run(f"rm -r {' '.join(heal)}")
    deploy(inventory)
    ctl(host, "start 3")
    wait_for_server(host, 27015)
    must_pass(inventory)


# -- archives


def fresh() -> dict[str, bytes]:
    """Return files, below a directory to strip, that no layer had yet."""
    return {"top/left4dead2/cfg/archive.cfg": f"number {next(NUMBERS)}".encode() * 500}


def test_an_archive_of_each_kind_is_unpacked(host: Box, sources: Sources, tmp_path: Path) -> None:
    kinds = {kind: fresh() for kind in ("tar.gz", "tar.xz", "zip")}
    layers = {kind: sources.archive(f"/?{kind}", tree(kind, files), strip=1) for kind, files in kinds.items()}
    before = untouched(host, "sm")
    deploy(declare(tmp_path / "inventory", host, layers))
    assert sources.downloads() == ["/?tar.gz", "/?tar.xz", "/?zip"]
    assert untouched(host, "sm") == before
    for kind, files in kinds.items():
        assert (
            host.run(f"cd {current(host, kind)} && find . -type f -exec cat {{}} +").stdout.encode() in files.values()
        )
        assert host.run(f"cd {current(host, kind)} && find . -type f").stdout == "./left4dead2/cfg/archive.cfg\n"
    ctl(host, "restart 3")
    assert merged(host, "cfg/archive.cfg").read_bytes() in kinds["tar.gz"].values()
    assert lowers(host)[:-1] == [current(host, kind) for kind in kinds]


OUT = "../../../../../../etc/shadow"
EVIL = {
    "up": (info("../../../left4me-escaped"), r"contains '\.\./\.\./\.\./left4me-escaped', a path outside"),
    "absolute": (info("/left4me-escaped"), "contains '/left4me-escaped', a path outside"),
    "device": (info("left4me-escaped", tarfile.CHRTYPE), "contains 'left4me-escaped', a device"),
    "fifo": (info("left4me-escaped", tarfile.FIFOTYPE), "contains 'left4me-escaped', a device"),
    "symlink": (info("escaped", tarfile.SYMTYPE, OUT), f"escaped is a symlink to {OUT}, outside of the tree"),
    "hardlink": (info("escaped", tarfile.LNKTYPE, OUT), f"contains '{OUT}', a path outside"),
}


@pytest.fixture
def no_route(host: Box) -> Iterator[str]:
    """An address (of RFC 5737) to which the box has no route."""
    host.run("ip route add unreachable 192.0.2.1")
    yield "http://192.0.2.1"
    host.run("ip route delete unreachable 192.0.2.1")


def bad_archives(sources: Sources, no_route: str, silent: str) -> dict[str, tuple[dict[str, Any], str]]:
    """Return layers with the reason why each cannot be built."""
    whole = {name: sources.archive(f"/{name}", tree("tar.gz", fresh()), strip=1) for name in ("cut", "sum")}
    sources.cut.add("/cut")
    sources.files["/sum"] += b" "
    found = {
        "cut": (whole["cut"], f"cannot download {sources.url}/cut: the connection broke, [0-9]+ bytes are missing"),
        "sum": (whole["sum"], f"/sum has the SHA256 [0-9a-f]+, but {whole['sum']['sha256']} is declared"),
        "html": (
            sources.archive("/html", b"<html>Sorry</html>"),
            "is not a tar.gz, tar.xz, zip or 7z",
        ),
        "strip": (sources.archive("/strip", tree("zip", fresh()), 9), "has no files left after `strip` 9"),
    }
    for name, url, why in (
        ("gone", f"{sources.url}/gone", "HTTP Error 404: Not Found"),
        ("refused", f"http://{sources.server_address[0]!s}:9", r"\[Errno 111\] Connection refused"),
        ("route", no_route, "No route to host"),
        ("silent", silent, "timed out"),
    ):
        found[name] = ({**whole["sum"], "url": url}, f"cannot download {url}: .*{why}")
    for name, (member, why) in EVIL.items():
        archive = tar("gz", (info("left4dead2/cfg/archive.cfg"), b"evil"), (member, b""))
        found[name] = (sources.archive(f"/{name}", archive), why)
    return found


def test_each_bad_archive_is_one_line_and_leaves_all_as_it_was(
    host: Box, sources: Sources, tmp_path: Path, no_route: str
) -> None:
    with socket.create_server((outside(host), 0)) as listening:
        silent = f"http://{outside(host)}:{listening.getsockname()[1]}"
        bad = bad_archives(sources, no_route, silent)
        old = sources.archive("/old", tree("tar.gz", fresh()), strip=1)
        deploy(declare(tmp_path / "old", host, dict.fromkeys(bad, old)))
        ctl(host, "restart 3")
        before = untouched(host)
        said = [rf"\[{host.name}\] layer {name}: .*{why}" for name, (_, why) in sorted(bad.items())]
        deploy_fails(declare(tmp_path / "bad", host, {name: layer for name, (layer, _) in bad.items()}), *said)
    assert untouched(host) == before
    assert host.run("find / /var/lib -xdev -name 'left4me-escaped*'").stdout == ""
    files = fresh()
    new = sources.archive("/new", tree("tar.gz", files), strip=1)
    deploy(declare(tmp_path / "new", host, dict.fromkeys(bad, new)))
    assert (main_pid(host, "3"), lowers(host)) == before["3"]
    ctl(host, "restart 3")
    assert merged(host, "cfg/archive.cfg").read_bytes() == next(iter(files.values()))
    read = host.run("cat /var/lib/left4me/overlays/*/current/left4dead2/cfg/archive.cfg").stdout
    assert read.encode() == next(iter(files.values())) * len(bad)


def test_a_source_that_is_back_lets_the_same_deploy_finish(host: Box, sources: Sources, tmp_path: Path) -> None:
    layer = sources.archive("/sm", tree("tar.xz", fresh()), strip=1)
    inventory = declare(tmp_path / "inventory", host, {"sm": layer})
    content = sources.files.pop("/sm")
    deploy_fails(inventory, r"layer sm: .*HTTP Error 404")
    sources.files["/sm"] = content
    assert BROUGHT[0] in changed(deploy(inventory))
    deploy(inventory)
    assert_idle(deploy(inventory), [host])


def test_a_bad_layer_leaves_all_as_they_were_and_the_next_deploy_does_its_part_only(
    host: Box, sources: Sources, tmp_path: Path
) -> None:
    layer = sources.archive("/sm", tree("zip", files := fresh()), strip=1)
    layers = {"first": {**layer, "sha256": "0" * 64}, "sm": layer, "third": {**layer, "url": f"{layer['url']}/x"}}
    links = "find /var/lib/left4me/overlays -name current -printf '%p %l\n' | sort"
    before = host.run(links).stdout
    deploy_fails(declare(tmp_path / "bad", host, layers), r"layer first: .*SHA256", r"layer third: .*404")
    assert host.run(links).stdout == before
    sources.downloads()
    deploy(declare(tmp_path / "good", host, {"first": layer, "sm": layer}))
    assert sources.downloads() == ["/sm"]  # for the first alone
    assert host.run(f"cat {current(host, 'sm')}/left4dead2/cfg/archive.cfg").stdout.encode() in files.values()


def test_a_layer_that_never_came_to_be_is_gone_when_it_is_not_declared(
    host: Box, sources: Sources, tmp_path: Path
) -> None:
    layer = sources.archive("/sm", tree("zip", fresh()), strip=1)
    good = declare(tmp_path / "good", host, {"sm": layer})
    deploy(good)
    ctl(host, "restart 3")
    wait_for_server(host, 27015)
    deploy(good)
    typo = declare(tmp_path / "typo", host, {"sm": layer, "typo": {**layer, "sha256": "0" * 64}})
    deploy_fails(typo, r"layer typo: .*SHA256")
    deploy(good)
    assert host.run("ls -A /var/lib/left4me/overlays").stdout == "sm\n"
    assert_idle(deploy(good), [host])
    must_pass(good)


def test_doctor_removes_nothing_while_a_deploy_builds(host: Box, sources: Sources, tmp_path: Path) -> None:
    layer = sources.archive("/sm", tree("tar.gz", files := fresh()), strip=1)
    deploy(declare(tmp_path / "old", host, {"sm": sources.archive("/old", tree("tar.gz", fresh()), strip=1)}))
    unused = current(host, "sm").rpartition("/")[0] + "/unused"
    host.run(f"mkdir {unused}")
    sources.held.add("/sm")
    with started(declare(tmp_path / "new", host, {"sm": layer}), "deploy.py", "-y") as deploying:
        assert sources.holding.wait(60)
        said = ctl(host, "doctor --fix", code=1).stderr
        sources.held.clear()
        sources.go_on.set()
        out, err = deploying.communicate(timeout=120)
    assert f"{unused}: a deploy is running" in said
    assert deploying.returncode == 0, out + err
    assert host.run(f"cat {current(host, 'sm')}/left4dead2/cfg/archive.cfg").stdout.encode() in files.values()
    host.run(f"mkdir {unused}")
    assert f"{unused}: removed" in host.run("l4d2ctl doctor --fix", check=False).stdout


def test_a_7z_is_unpacked_by_what_the_deploy_installs_for_it(host: Box, sources: Sources, tmp_path: Path) -> None:
    host.run("apt-get -q update && apt-get -qy install libarchive-tools", timeout=300)
    host.run("mkdir -p /srv/7z/left4dead2/cfg && echo sv_gravity 7 >/srv/7z/left4dead2/cfg/seven.cfg")
    host.run("cd /srv/7z && bsdtar --create --format=7zip --file=/srv/campaign.7z left4dead2")
    layer = sources.archive("/campaign.7z", base64.b64decode(host.run("base64 /srv/campaign.7z").stdout))
    host.run("rm -r /srv/7z /srv/campaign.7z && apt-get -qy purge libarchive-tools", timeout=300)
    path = declare(tmp_path / "inventory", host, {"campaign": layer})
    assert changed(deploy(path))[:1] == ["Install the i386 libraries that srcds needs"]
    assert host.run(f"cat {current(host, 'campaign')}/left4dead2/cfg/seven.cfg").stdout == "sv_gravity 7\n"
    deploy(path)
    must_pass(path)


def test_the_hosts_locale_plays_no_part(host: Box, tmp_path: Path) -> None:
    host.run("apt-get -q update && apt-get -qy install locales", timeout=300)
    host.run("localedef -i de_DE -f ISO-8859-1 de_DE")
    host.run("cp /root/.bashrc /root/bashrc && sed -i '1i export LC_ALL=de_DE' /root/.bashrc")
    folder = tmp_path / "layer/left4dead2/cfg"
    folder.mkdir(parents=True)
    (folder / "Überleben.cfg").write_text("sv_gravity 8")
    layers = {"german": {"source": "control", "path": str(tmp_path / "layer")}}
    try:
        assert host.run("locale charmap").stdout == "ISO-8859-1\n"
        path = declare(tmp_path / "inventory", host, layers)
        deploy(path)
        deploy(path)
        must_pass(path)
        names = host.run(f"LC_ALL=C ls -b {current(host, 'german')}/left4dead2/cfg").stdout
        assert names == "\\303\\234berleben.cfg\n"
    finally:
        host.run("mv /root/bashrc /root/.bashrc")


# -- git


def test_git_at_a_tag_at_a_commit_and_at_nothing(host: Box, mod: Repository, tmp_path: Path) -> None:
    def at(ref: str) -> Path:
        return declare(tmp_path / ref, host, {"mod": {"source": "git", "url": mod.url, "ref": ref}})

    commit = mod.commit("left4dead2/cfg/git.cfg", "at the commit")
    mod.commit("left4dead2/cfg/git.cfg", "at the branch")
    for ref, text in (("v1", "at the tag"), (commit, "at the commit")):
        deploy(at(ref))
        ctl(host, "restart 3")
        assert merged(host, "cfg/git.cfg").read_text() == text
        assert not merged(host, "../.git").exists()
    wait_for_server(host, 27015)
    before = untouched(host, "mod")
    for ref in ("v9", "0" * 40):
        deploy_fails(at(ref), rf"layer mod: cannot fetch {ref} of {mod.url}: .*(find|not our ref)")
    assert untouched(host, "mod") == before


def unreachable(host: Box, no_route: str) -> dict[str, str]:
    """Return addresses that a host does not reach, with the reason why."""
    return {no_route: "No route to host", f"http://{outside(host)}:9": "Connection refused"}


def test_a_repository_that_is_not_reached_is_one_line_and_leaves_all_as_it_was(
    host: Box, mod: Repository, tmp_path: Path, no_route: str
) -> None:
    deploy(declare(tmp_path / "old", host, {"mod": {"source": "git", "url": mod.url, "ref": "v1"}}))
    before = untouched(host)
    for number, (address, why) in enumerate(unreachable(host, no_route).items()):
        url = address.replace("http:", "git:") + "/mod"
        layers = {"mod": {"source": "git", "url": url, "ref": "v1"}}
        deploy_fails(
            declare(tmp_path / str(number), host, layers),
            rf"\[{host.name}\] layer mod: cannot fetch v1 of {url}: fatal: unable to connect to .*{why}$",
        )
        assert untouched(host) == before


# -- the workshop


@pytest.fixture
def campaigns(host: Box, sources: Sources, tmp_path: Path) -> Path:
    """An inventory with the workshop's layer, deployed, with server 3 on it."""
    path = declare(tmp_path / "campaigns", host, {"campaigns": CAMPAIGNS}, workshop_api=sources.url)
    deploy(path)
    ctl(host, "restart 3")
    wait_for_server(host, 27015)
    deploy(path)
    sources.asked.clear()
    return path


def test_only_what_was_updated_in_the_workshop_is_downloaded(host: Box, sources: Sources, campaigns: Path) -> None:
    assert_idle(deploy(campaigns), [host])
    assert sources.asked == [DETAILS]
    first, second = (merged(host, f"addons/{number}.vpk") for number in (101, 102))
    old = first.read_bytes()
    sources.items[101] = Item(b"with a new finale", sources.items[101].updated + 1)
    results = deploy(campaigns)
    assert changed(results) == BROUGHT
    assert (sources.downloads(), first.read_bytes()) == (["/ugc/101/"], old)
    ctl(host, "restart 3")
    wait_for_server(host, 27015)
    assert (first.read_bytes(), second.read_bytes()) == (sources.items[101].content, sources.items[102].content)
    deploy(campaigns)
    assert_idle(deploy(campaigns), [host])
    assert sources.downloads() == []
    must_pass(campaigns)


def test_a_missing_item_is_named_and_the_others_are_there(
    host: Box, sources: Sources, campaigns: Path, tmp_path: Path
) -> None:
    layers = {"campaigns": {"source": "workshop", "items": [103, 900, 999]}}
    sources.items[103] = Item(b"third campaign", 1_650_000_000)
    sources.collections[900] = [102]
    path = declare(tmp_path / "inventory", host, layers, workshop_api=sources.url)
    done = pyinfra(path, "deploy.py", "-y")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "workshop item" in line]
    assert lines == [f"[{host.name}] layer campaigns: workshop item 999 is not available from Steam; skipped"]
    assert sources.downloads() == ["/ugc/103/"]
    ctl(host, "restart 3")
    assert sorted(path.name for path in merged(host, "addons").glob("[0-9]*")) == ["102.vpk", "103.vpk"]
    deploy(path)
    assert_idle(deploy(path), [host])


def test_an_item_that_breaks_off_leaves_the_old_ones(host: Box, sources: Sources, campaigns: Path) -> None:
    before = untouched(host, "campaigns")
    sources.items[102] = Item(b"longer" * 9000, sources.items[102].updated + 1)
    sources.cut.add("/ugc/102/")
    try:
        deploy_fails(
            campaigns, rf"layer campaigns: cannot download {sources.url}/ugc/102/: the connection broke, [0-9]+ bytes"
        )
    finally:
        sources.cut.clear()
    assert untouched(host, "campaigns") == before
    assert BROUGHT[0] in changed(deploy(campaigns))
    assert len(versions(host, "campaigns")) == 2


def test_an_item_whose_file_is_not_reached_leaves_the_old_ones(
    host: Box, sources: Sources, campaigns: Path, no_route: str
) -> None:
    before, old = untouched(host), sources.items[102]
    sources.items[102] = Item(b"newer", old.updated + 1)
    try:
        for address, why in unreachable(host, no_route).items():
            sources.elsewhere = address
            deploy_fails(campaigns, rf"\[{host.name}\] layer campaigns: cannot download {address}/ugc/102/: .*{why}$")
            assert untouched(host) == before
    finally:
        sources.elsewhere = ""
    assert BROUGHT[0] in changed(deploy(campaigns))


def is_down(sources: Sources, url: str) -> tuple[str, str]:
    sources.is_down = True
    return url, "HTTP Error 503: Service Unavailable"


def is_refused(_sources: Sources, url: str) -> tuple[str, str]:
    return re.sub(r":\d+$", ":9", url), r"\[Errno 111\] Connection refused"


@pytest.mark.parametrize("down", [is_down, is_refused])
def test_without_the_workshop_a_host_is_refused_and_unchanged(
    host: Box, sources: Sources, campaigns: Path, tmp_path: Path, down: Callable[[Sources, str], tuple[str, str]]
) -> None:
    sources.items[101] = Item(b"another", sources.items[101].updated + 1)
    before = standing(host)
    api, why = down(sources, sources.url)
    try:
        path = declare(tmp_path / "down", host, {"campaigns": CAMPAIGNS}, workshop_api=api)
        failed = f"the request to {api} failed: .*{why}; deploy again later"
        deploy_fails(path, rf"\[{host.name}\] refused, nothing changed: Steam's workshop: {failed}")
    finally:
        sources.is_down = False
    assert standing(host) == before
    assert changed(deploy(campaigns)) == BROUGHT
