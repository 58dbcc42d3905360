"""The page of `make status HTML=PATH`: what it shows, what a hostile host cannot do to it, and how it is written."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from left4me import fleet_page, fleet_status, model, validation
from left4me.fleet_status import Unreachable
from left4me_host.status import Status
from tests.unit.test_answers import JSON, STATUS, ended
from tests.unit.test_model import DEFAULTS, GAME, ROOT

VOID = {"meta", "input"}
WHEN = datetime(2026, 11, 29, 9, 14, 6, tzinfo=UTC)
GOOD = Status(**{**STATUS, "map": "c1m1_hotel", "layers": ["evening"], "build": "14716838", "since": "Sun"})
ANSWERED_LAST = "Sun 2026-11-29 08:59:10 UTC"
URL = "https://game1.example.org:9090"


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        """Yield this element and all elements in it, in their order."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child

    def all(self, tag: str) -> list[Node]:
        return [each for each in self if each.tag == tag]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def texts(self, tag: str) -> list[str]:
        return [each.text.strip() for each in self.all(tag)]


class Parser(HTMLParser):
    """Python's own reader of HTML, which knows nothing of the template."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(text: str) -> Node:
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert len(parser.open) == 1
    return parser.root


def data(**own: Any) -> model.Host:
    servers = {"3": {"port": 27015, "hostname": "Our evening"}}
    return validation.validate("h", {**DEFAULTS, "game": GAME, "servers": servers, **own})


ABOUT = data()


def page(*hosts: fleet_page.Host) -> Node:
    return parsed(fleet_page.render(hosts, "../fleet/inventory", [], WHEN))


def with_url(about: model.Host, url: str | None) -> model.Host:
    """Return a host with the URL of its Cockpit; one that the model refuses, too."""
    web = model.Web.model_construct(listen="127.0.0.1:9090", url=url)
    return about.model_copy(update={"web": web})


def found(name: str, *rows: Status, url: str | None = None, about: model.Host = ABOUT) -> fleet_page.Host:
    return fleet_page.host(name, list(rows), with_url(about, url))


def away(name: str, reason: str = "no answer within 30 s", url: str | None = None) -> fleet_page.Host:
    return fleet_page.host(name, Unreachable(reason), with_url(ABOUT, url))


def printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


def shape(root: Node) -> list[tuple[str, list[str]]]:
    """Return all elements and the names of their attributes, which a text must not change."""
    return [(each.tag, sorted(set(each.attributes) - {"class", "data-name", "open"})) for each in root]


def figures(root: Node) -> dict[str, str]:
    return {each.text: there.text for each, there in zip(root.all("dt"), root.all("dd"), strict=True)}


# -- what a hostile host cannot do

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></tr></table><h1>owned",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "<!--",
    "</script><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;",
    "\x1b]0;owned\x07",
    "\u202egnp.exe",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hosts_text_stays_text(text: str) -> None:
    for key in ("state", "since", "map", "build", "layers", "unanswered_since"):
        rows = []
        for each in (text, "harmless"):
            own: dict[str, Any] = {key: [each] if key == "layers" else each}
            rows.append(replace(GOOD, players=None, slots=None, **own))
        hostile, harmless = (page(found("h", row, url=URL)) for row in rows)
        assert shape(hostile) == shape(harmless)
        assert any(printable(text) in cell for cell in hostile.texts("td"))


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_reasons_stay_text(text: str) -> None:
    hostile, harmless = (
        parsed(fleet_page.render([found(each, GOOD, url=URL), away(each, each)], f"/fleets/{number}", [each], WHEN))
        for number, each in enumerate((text, "harmless"))
    )
    assert shape(hostile) == shape(harmless)
    assert hostile.texts("h3") == [printable(text), printable(text)]
    assert printable(text) in hostile.texts("li")
    assert hostile.texts("h1") == [f"Servers of fleets/0, only {printable(text)}"]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "' onmouseover='alert(1)", "{{ 7 * 7 }}"])
def test_a_declared_hostname_stays_text(text: str) -> None:
    about = data(servers={"3": {"port": 27015, "hostname": text}})
    root = page(found("h", GOOD, about=about))
    assert text in root.texts("td")
    assert shape(root) == shape(page(found("h", GOOD)))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*STATUS]), JSON)
@example("players", 9 * 10**4299)
@example("slots", -(10**4200))
@example("port", 10**4200)
@example("memory", 1 << 62)
def test_no_lie_of_a_host_breaks_the_page(key: str, lie: Any) -> None:
    rows = [{**STATUS, key: lie}, {**STATUS, key: lie, "id": "4"}]
    said = fleet_status.ask("h", {}, lambda *_: ended(dumped(rows)))
    root = page(fleet_page.host("h", said, with_url(ABOUT, URL)), found("g", GOOD))
    assert sorted(root.texts("h3")) == ["g", "h"]
    assert {each.tag for each in root} <= {each.tag for each in page(away("h", url=URL), found("g", GOOD))}


def dumped(value: Any) -> str:
    """Return JSON, also of an integer that Python does not print."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize("server", ["", "3; reboot", "../3", "_bare", "3\n", "x" * 21])
def test_an_id_that_is_none_is_not_shown_in_a_command(server: str) -> None:
    said = fleet_status.ask("h", {}, lambda *_: ended(json.dumps([{**STATUS, "id": server, "restart_due": True}])))
    assert isinstance(said, Unreachable)
    assert "is no server id" in str(said)


def test_the_policy_allows_the_pages_own_style_and_script_alone() -> None:
    root = page(found("h", GOOD, url=URL))
    [policy] = [each.attributes["content"] for each in root.all("meta") if each.attributes.get("http-equiv")]
    assert policy is not None
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        [element] = root.all(tag)
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
        assert element.attributes == {}
    assert not rules
    # Nothing is loaded from anywhere, and nothing is sent.
    assert not {each.tag for each in root} & {"link", "img", "iframe", "form", "base", "object", "embed"}
    names = {name for each in root for name in each.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "style", "srcset", "action"}
    assert "url(" not in root.all("style")[0].text
    assert "@import" not in root.all("style")[0].text


# -- what it shows


def test_a_server_has_the_cells_of_the_table_and_its_hostname() -> None:
    host = found("h", replace(GOOD, players=2, memory=300 << 20))
    root = parsed(fleet_page.render([host], "../fleet/inventory", ["h", "west"], WHEN))
    assert root.texts("th")[:2] == ["ID", "HOSTNAME"]
    row = root.all("tr")[1]
    assert row.texts("th") == ["3"]
    cells = dict(zip(root.texts("th")[1:], row.texts("td"), strict=False))
    assert cells == {
        **{"HOSTNAME": "Our evening", "STATE": "active", "SINCE": "Sun", "STOPPED": "-", "PORT": "27015"},
        **{"MAP": "c1m1_hotel", "PLAYERS": "2/8", "BUILD": "14716838", "LAYERS": "evening", "MEMORY": "300M"},
        "CHANGE": "-",
    }
    assert root.texts("h1") == ["Servers of fleet/inventory, only h, west"]
    [time] = root.all("time")
    assert (time.text, time.attributes["datetime"]) == ("Sun 2026-11-29 09:14:06 UTC", "2026-11-29T09:14:06+00:00")


def test_a_long_cell_is_cut() -> None:
    root = page(found("h", replace(GOOD, map="x" * 5000)))
    assert max(map(len, root.texts("td"))) == 200


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}/games/", "http://localhost:9090"])
def test_servers_are_links_where_the_url_is_known(url: str) -> None:
    about = data(servers={"3": {}, "b_2": {}}, operators="gamers", web={"listen": "127.0.0.1:9090", "url": url})
    known = fleet_page.host("h", [GOOD, replace(GOOD, id="b_2")], about)
    none = data(operators="gamers", web={"listen": "127.0.0.1:9090"})
    root = page(known, fleet_page.host("f", [GOOD], none), fleet_page.host("g", [GOOD], ABOUT))
    base = f"{url.rstrip('/')}/left4me#/servers"
    links = [(each.text, each.attributes["href"]) for each in root.all("a")]
    assert links == [("Operate the servers of h", base), ("3", f"{base}/3"), ("b_2", f"{base}/b_2")]


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "file:///etc", "//x", "ftp://x", " https://x", "x https://x"]
)
def test_no_other_url_is_a_link(url: str) -> None:
    assert page(found("h", GOOD, url=url)).all("a") == []


@pytest.mark.parametrize("path", [" onmouseover=alert(1)", '" onmouseover="alert(1)', "'><script>alert(1)</script>"])
def test_a_url_stays_in_its_link(path: str) -> None:
    root = page(found("h", GOOD, url=URL + path))
    assert shape(root) == shape(page(found("h", GOOD, url=URL)))
    assert root.all("a")[1].attributes["href"] == f"{URL}{path}/left4me#/servers/3"


def test_a_host_that_is_away_has_its_reason_and_its_link() -> None:
    root = page(away("h", url=URL))
    [article] = root.all("article")
    assert article.texts("li") == ["no answer within 30 s"]
    assert article.texts("a") == ["Operate the servers of h"]
    assert "1 server declared" in article.texts("span")
    assert article.all("table") == []


DOWN: dict[str, dict[str, Any]] = {
    "failed: 3: l4d2ctl logs 3": {"state": "failed"},
    "crashed, starts again: 3: l4d2ctl logs 3": {"state": "auto-restart"},
    "not running: 3: l4d2ctl start 3": {"state": "inactive"},
    "does not answer: 3: l4d2ctl logs 3": {"players": None, "unanswered_since": ANSWERED_LAST},
}
PENDING: dict[str, dict[str, Any]] = {
    "restart required: 3: l4d2ctl restart 3": {"restart_due": True, "restart_for": ["port"]},
    "configuration at the next map: 3: wait, or l4d2ctl restart 3": {"next_map": True},
    "stopped by hand: 3: l4d2ctl start 3": {"state": "inactive", "held": True},
    "reset unfinished: 3: l4d2ctl reset 3": {"state": "inactive", "reset_unfinished": True},
}


@pytest.mark.parametrize("line", DOWN)
def test_a_server_that_is_down_is_named_with_a_command(line: str) -> None:
    root = page(found("h", replace(GOOD, **DOWN[line])))
    assert root.texts("li") == [line]
    assert (figures(root)["down"], figures(root)["pending"]) == ("1", "0")
    assert "1 down" in root.texts("span")


@pytest.mark.parametrize("line", PENDING)
def test_a_pending_state_is_named_with_a_command_and_is_not_down(line: str) -> None:
    root = page(found("h", replace(GOOD, **PENDING[line])))
    assert root.texts("li") == [line]
    assert (figures(root)["down"], figures(root)["pending"]) == ("0", "1")
    assert "1 pending" in root.texts("span")


@pytest.mark.parametrize(
    ("own", "row"),
    [
        ({}, {}),
        ({}, {"state": "start-pre"}),
        ({}, {"state": "deactivating"}),
        ({"state": "stopped"}, {"state": "inactive"}),
    ],
)
def test_what_is_as_declared_needs_no_attention(own: dict[str, Any], row: dict[str, Any]) -> None:
    root = page(found("h", replace(GOOD, **row), about=data(servers={"3": {"port": 27015, **own}})))
    assert root.texts("li") == []
    assert (figures(root)["down"], figures(root)["pending"], figures(root)["without answer"]) == ("0", "0", "0")


def test_what_needs_attention_comes_first() -> None:
    four = data(servers={server: {} for server in ("3", "4", "5", "10")})
    due, failed = replace(GOOD, restart_due=True), replace(GOOD, state="failed")
    root = page(
        found("fine", GOOD),
        found("pending", due),
        found("down", GOOD, replace(due, id="10"), replace(GOOD, id="4"), replace(failed, id="5"), about=four),
        away("away"),
        found("fine too", GOOD),
    )
    assert root.texts("h3") == ["away", "down", "pending", "fine", "fine too"]
    down = root.all("article")[1]
    assert [row.texts("th")[0] for row in down.all("tr")[1:]] == ["5", "10", "3", "4"]


def test_the_sums_are_of_all_hosts() -> None:
    # A host may say anything; A2S has a byte for the number of players.
    two = data(servers={"3": {}, "4": {}})
    root = page(
        found("a", replace(GOOD, players=3, slots=8), replace(GOOD, id="4", players=8, slots=8), about=two),
        found("b", replace(GOOD, state="failed", players=None, slots=None)),
        found("c", replace(GOOD, players=-5, slots=10**9)),
        away("d"),
        found("e", about=data(servers={})),
    )
    assert figures(root) == {
        **{"hosts": "5", "without answer": "1", "servers": "4", "down": "1", "pending": "0"},
        "players": "11 of 271",
    }
    assert "0 servers declared" in root.all("article")[-1].texts("span")


def test_two_hundred_hosts_with_two_thousand_servers_are_all_there(capsys: pytest.CaptureFixture[str]) -> None:
    servers = {str(number): {"port": 27000 + number, "hostname": f"Evening {number}"} for number in range(15, 25)}
    about = data(servers=servers)
    rows = [replace(GOOD, id=server, players=1, slots=8) for server in servers]
    names = [f"game{number}.example.org" for number in range(200)]
    hosts = [found(name, *rows, url=URL, about=about) for name in names]
    text = fleet_page.render(hosts, "../fleet/inventory", [], WHEN)
    with capsys.disabled():
        print(f"\n200 hosts with 2,000 servers: {len(text.encode()) / 2**20:.1f} MB")
    assert len(text.encode()) < 3 << 20
    root = parsed(text)
    articles = root.all("article")
    assert [each.texts("h3") for each in articles] == [[name] for name in names]
    for article in articles:
        assert [row.texts("th")[0] for row in article.all("tr")[1:]] == list(servers)
    assert len(root.all("a")) == 2200
    assert figures(root) == {
        **{"hosts": "200", "servers": "2,000", "players": "2,000 of 16,000"},
        **{"without answer": "0", "down": "0", "pending": "0"},
    }
    # So many would be a long way to scroll; few are all shown.
    assert not any("open" in each.attributes for each in root.all("details"))
    assert all("open" in each.attributes for each in page(found("h", *rows, about=about)).all("details"))


# -- how it is written


def test_the_file_is_replaced_by_rename_and_readable_by_a_web_server(tmp_path: Path) -> None:
    path = tmp_path / "fleet.html"
    path.write_text("before")
    path.chmod(0o600)
    before = os.umask(0o077)
    try:
        with path.open() as reader:
            fleet_page.check(str(path))
            fleet_page.write(str(path), "after …")
            assert reader.read() == "before"
    finally:
        os.umask(before)
    assert path.read_text(encoding="utf-8") == "after …"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["fleet.html"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fleet.html"
    path.write_text("before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(fleet_page.Unwritable, match=r"cannot write it: No space left on device; .* as it was before"):
        fleet_page.write(str(path), "after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["fleet.html"]


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """An inventory that leaves a trace when it is read."""
    path = tmp_path / "hosts" / "inventory"
    path.parent.mkdir()
    about: dict[str, Any] = {"game": GAME, "ssh_password": "s3same"}
    about["servers"] = {"3": {"port": 27015, "rcon_password": "swordfish"}}
    about["webhook"] = "https://hooks.example.org/t0ken"
    path.write_text(f"open({str(tmp_path / 'was read')!r}, 'w')\nhosts = {[('good', about), ('bad', about)]!r}\n")
    return path


def make(*words: str) -> subprocess.CompletedProcess[str]:
    # -o: the environment is whatever runs this test.
    command = ["make", "-s", "-o", ".venv/installed", "status", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ("", "HTML= needs a path, such as HTML=fleet.html"),
        ("{}/nowhere/fleet.html", "cannot write in {}/nowhere: No such file or directory"),
        ("{}/file/fleet.html", "cannot write in {}/file: Not a directory"),
        ("/proc/fleet.html", "cannot write in /proc: "),
        ("{}", "is there and is no regular file"),
        ("{}/link", "is there and is no regular file"),
        ("{}/a'; touch '{}/owned", "cannot write in {}/a'; touch '{}"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_asked(
    html: str, said: str, fleet: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    before = sorted(os.listdir(tmp_path))
    done = make(f"INVENTORY={fleet}", f"HTML={html.replace('{}', str(tmp_path))}")
    assert done.returncode == 2
    [line, _of_make] = done.stderr.splitlines()
    assert line.startswith("refused: HTML=")
    assert said.replace("{}", str(tmp_path)) in line
    assert sorted(os.listdir(tmp_path)) == before
    assert done.stdout == ""


def test_a_directory_of_somebody_else_is_refused() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        os.chmod(folder, 0o555)
        if user == 0:  # who may write anywhere
            os.seteuid(65534)
        try:
            with pytest.raises(fleet_page.Unwritable, match=f"cannot write in {folder}: Permission denied"):
                fleet_page.check(f"{folder}/fleet.html")
        finally:
            os.seteuid(user)


def run(fleet: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Be `make status`, of whose two hosts one does not answer."""

    def ask(name: str, _connection: Any) -> list[Status] | Unreachable:
        return [GOOD] if name == "good" else Unreachable("no answer within 30 s")

    monkeypatch.setattr(fleet_status, "ask", ask)
    monkeypatch.setattr(sys, "argv", ["fleet_status", str(fleet), *words])
    monkeypatch.chdir(ROOT)
    return fleet_status.main()


def test_the_terminal_and_the_exit_code_are_as_without_a_page(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(fleet, monkeypatch) == 1
    before = capsys.readouterr()
    assert not (tmp_path / "fleet.html").exists()
    assert run(fleet, monkeypatch, "--html", f"{tmp_path}/fleet.html") == 1
    assert capsys.readouterr() == before
    text = (tmp_path / "fleet.html").read_text(encoding="utf-8")
    assert parsed(text).texts("h3") == ["bad", "good"]
    assert parsed(text).texts("h1") == ["Servers of hosts/inventory"]
    assert str(tmp_path) not in text
    for secret in ("swordfish", "s3same", "t0ken"):
        assert secret not in text


def test_a_limit_holds_for_the_page_which_says_so(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(fleet, monkeypatch, "--limit=good", f"--html={tmp_path}/fleet.html") == 0
    root = parsed((tmp_path / "fleet.html").read_text(encoding="utf-8"))
    assert root.texts("h3") == ["good"]
    assert root.texts("h1") == ["Servers of hosts/inventory, only good"]


def test_a_page_that_cannot_be_written_after_all_fails(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    assert run(fleet, monkeypatch, "--limit=good", f"--html={tmp_path}/fleet.html") == 1
    said = capsys.readouterr()
    assert "c1m1_hotel" in said.out
    assert said.err == (
        f"HTML={tmp_path}/fleet.html: cannot write it: No space left on device; the page is as it was before\n"
    )


def test_help_has_the_page() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search("make status .*HTML=", done.stdout)
