"""The page in Debian's Cockpit on a host: an operator at work, and what others can not do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, FrameLocator, Locator, Page, Response, expect

from tests.boxes import boxes as machines
from tests.boxes.boxes import Box
from tests.boxes.game import build
from tests.integration import steam as steams
from tests.integration.ctl import ATTIC, ctl, game_writes, layered, main_pid, rcon, state
from tests.integration.harness import deploy, name_over_a2s, wait_for, wait_for_server, write_inventory
from tests.integration.steam import Steam
from tests.integration.test_webhook import outside
from tests.page.browser import chromium, keep_screenshot, width_of_content
from tests.page.login import COCKPIT, FRAME, GROUP, OPERATOR, PASSWORD, STRANGER, Session, add_users, logged_in

BUILD, NEWER = "15000001", "15000002"
MERGED = "/var/lib/left4me/runtime/3/merged"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "debian" in metafunc.fixturenames:
        metafunc.parametrize("debian", (12, 13), ids=["debian12", "debian13"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def debian(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def empty(debian: int) -> Iterator[Box]:
    """Start a box that has Cockpit in its image."""
    name = f"test-page-{debian}"
    machines.down([each.name for each in machines.boxes() if each.name == name])
    [box] = machines.up([name], debian, COCKPIT)
    yield box
    machines.down([name])


@pytest.fixture(scope="module")
def steam(empty: Box) -> Iterator[Steam]:
    with steams.serving(outside(empty)) as served:
        served.publish(BUILD, build())
        yield served


@pytest.fixture(scope="module")
def box(empty: Box, steam: Steam, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """Deploy servers 3 and 4, and the page."""
    add_users(empty)
    data = layered(
        game={"source": "steamcmd"},
        steamcmd_url=steam.steamcmd_url,
        steamcmd_sha256=steam.steamcmd_sha256,
        operators=GROUP,
        web={"listen": "0.0.0.0:9090"},
    )
    deploy(write_inventory(tmp_path_factory.mktemp("fleet") / "inventory", [empty], **data))
    return empty


@pytest.fixture(scope="module")
def browser(empty: Box) -> Iterator[Browser]:
    with chromium(empty) as started:
        yield started


@pytest.fixture(scope="module")
def session(browser: Browser, box: Box) -> Iterator[Session]:
    """Log in as the operator."""
    with logged_in(browser, box, OPERATOR) as opened:
        yield opened


@pytest.fixture
def operator(session: Session) -> Iterator[Session]:
    """The operator, with both servers up and nobody on them; the tabs of the test are closed afterwards."""
    ctl(session.box, "start --all")
    for port in (27015, 27016):
        wait_for_server(session.box, port)
        rcon(session.box, port, "standin_players 0")
    first = session.context.pages[0]
    yield session
    for page in session.context.pages:
        if page != first:
            page.close()


def button(frame: FrameLocator, name: str) -> Locator:
    return frame.get_by_role("button", name=name, exact=True)


def result(frame: FrameLocator, headline: str) -> Locator:
    """Return the entry about a command that the page has run."""
    return frame.get_by_role("region", name="What this page did").get_by_role("listitem").filter(has_text=headline)


def number_of(entry: Locator) -> int:
    """Return the number of the job of an entry."""
    return int((entry.get_by_role("link").text_content() or "").removeprefix("job #"))


def record(box: Box, number: int) -> dict[str, Any]:
    """Return the record of a job, read on the host."""
    found: dict[str, Any] = json.loads(box.run(f"cat /var/lib/left4me/jobs/{number}.json").stdout)
    return found


def numbers(box: Box) -> list[str]:
    return box.run("ls /var/lib/left4me/jobs").stdout.split()


def test_open_server_3_start_reset_undo(operator: Session) -> None:
    box = operator.box
    ctl(box, "stop 3")
    _page, frame = operator.open("servers")
    row = frame.get_by_role("row").filter(has=frame.get_by_role("rowheader", name="3", exact=True))
    expect(row).to_contain_text("inactive")
    expect(row).to_contain_text("stopped by hand by root")
    row.get_by_role("link", name="3", exact=True).click()

    button(frame, "Start").click()
    started = result(frame, "Start of server 3")
    expect(started).to_contain_text(re.compile(r"job #\d+ succeeded in [\d.]+ s"))
    assert state(box, "3") == "active"
    wait_for_server(box, 27015)
    expect(frame.get_by_role("region", name="State")).to_contain_text("0 / 8")

    game_writes(box, "addons/left.txt", "behind")
    before = main_pid(box, "3")
    button(frame, "Reset").click()
    reset = result(frame, "Reset of server 3")
    expect(reset).to_contain_text(re.compile(r"job #\d+ succeeded in [\d.]+ s"))
    assert main_pid(box, "3") not in (before, "0")
    assert box.run(f"ls {MERGED}/left4dead2/addons/left.txt", check=False).returncode != 0

    # The job, as others see it.
    number = number_of(reset)
    found = record(box, number)
    assert (found["words"], found["who"], found["result"]) == ("reset 3", OPERATOR, "succeeded")
    assert f"{number}\t" in ctl(box, "jobs").stdout
    reset.get_by_role("link").click()
    expect(frame.get_by_role("heading", name=f"Job #{number}")).to_be_visible()
    expect(frame.get_by_role("main").get_by_text(re.compile(f"^job #{number} succeeded in"))).to_be_visible()
    for each in ("reset 3", OPERATOR, "stop ", "start "):
        expect(frame.get_by_role("main")).to_contain_text(each)

    # The attic has what the server wrote.
    frame.get_by_role("main").get_by_role("link", name="3", exact=True).click()
    attic = frame.get_by_role("table", name="Attic of server 3")
    expect(attic.get_by_role("row").nth(1)).to_contain_text("reset")
    assert box.run(f"cat {ATTIC}/3@*/upper/left4dead2/addons/left.txt").stdout == "behind\n"
    wait_for_server(box, 27015)
    button(frame, "Undo").click()
    expect(result(frame, "Undo for server 3")).to_contain_text("succeeded in")
    assert box.run(f"cat {MERGED}/left4dead2/addons/left.txt").stdout == "behind\n"


def test_log_console_jobs_and_configuration(operator: Session) -> None:
    _page, frame = operator.open("servers/3")
    log = frame.get_by_role("log", name="Log of server 3")
    expect(log).to_contain_text("srcds")
    frame.get_by_role("tab", name="Console").click()
    command = frame.get_by_label("Command")
    command.fill("say good evening; -1")
    command.press("Enter")
    output = frame.get_by_role("log", name="Output of the console of server 3")
    expect(output).to_contain_text("> say good evening")
    command.fill("hostname from the page")
    command.press("Enter")
    wait_for("the server has the name", lambda: name_over_a2s(operator.box, 27015) == "from the page")
    command.fill("status")
    command.press("Enter")
    expect(output).to_contain_text("hostname: from the page")
    command.press("ArrowUp")
    command.press("ArrowUp")
    expect(command).to_have_value("hostname from the page")
    frame.get_by_role("tab", name="Log").click()
    expect(log).to_contain_text("good evening")
    frame.get_by_role("tab", name="Jobs").click()
    expect(frame.get_by_role("table", name="Jobs of server 3")).to_contain_text("start")
    frame.get_by_role("tab", name="Configuration").click()
    panel = frame.get_by_role("tabpanel", name="Configuration")
    expect(panel).to_contain_text('LEFT4ME_PORT="27015"')
    expect(panel).not_to_contain_text("swordfish")


def test_players_are_shown_and_keep_a_stop_from_happening_at_once(operator: Session) -> None:
    box = operator.box
    rcon(box, 27015, "standin_players 2")
    before = main_pid(box, "3")
    _page, frame = operator.open("servers/3")
    players = frame.get_by_role("table", name="Players on server 3")
    expect(players.get_by_role("rowheader")).to_have_text(["Player 2", "Player 1"])
    button(frame, "Stop").click()
    dialog = frame.get_by_role("dialog")
    expect(dialog).to_contain_text("2 players are on it")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert main_pid(box, "3") == before
    button(frame, "Stop").click()
    dialog.get_by_role("button", name="Stop with 2 players on").click()
    expect(result(frame, "Stop of server 3")).to_contain_text("succeeded in")
    assert state(box, "3") == "inactive"
    expect(frame.get_by_role("region", name="State")).to_contain_text(f"stopped by hand by {OPERATOR}")


def test_a_held_stop_names_its_holder(operator: Session) -> None:
    box = operator.box
    holder = box.run(f"cd {MERGED} && {{ sleep 600 </dev/null >/dev/null 2>&1 & echo $!; }}").stdout.strip()
    _page, frame = operator.open("servers/3")
    button(frame, "Stop").click()
    stop = result(frame, "Stop of server 3").first
    expect(stop).to_contain_text(re.compile(r"job #\d+ failed after"))
    expect(stop).to_contain_text(re.compile(rf"held by pid {holder} \(sleep\) by its cwd"))
    # Another server is not affected.
    ctl(box, "stop 4")
    frame.get_by_role("navigation").get_by_role("link", name="Servers").click()
    button(frame, "Start server 4").click()
    expect(result(frame, "Start of server 4")).to_contain_text("succeeded in")
    box.run(f"kill {holder}")
    frame.get_by_role("rowheader", name="3", exact=True).get_by_role("link").click()
    button(frame, "Stop").click()
    expect(result(frame, "Stop of server 3").first).to_contain_text("succeeded in")


def test_an_update_goes_on_without_its_tab_and_is_followed_again(operator: Session, steam: Steam) -> None:
    box = operator.box
    steam.publish(NEWER, build(), {"left4dead2/build.txt": b"newer"})
    steam.hold = True
    page, frame = operator.open("game")
    button(frame, "Update").click()
    update = result(frame, "Update of the game")
    expect(update).to_contain_text(re.compile(r"job #\d+"))
    number = number_of(update)
    wait_for("Steam has sent half of the build", steam.holding.is_set, 60)
    progress = frame.get_by_role("region", name="Progress")
    expect(progress.get_by_role("log")).not_to_be_empty()
    page.close()

    _page, frame = operator.open("game")
    progress = frame.get_by_role("region", name="Progress")
    expect(progress).to_contain_text(f"job #{number} is running")
    expect(progress.get_by_role("log")).not_to_be_empty()
    expect(button(frame, "Update")).to_be_disabled()
    steam.hold = False
    steam.go_on.set()
    expect(progress).to_contain_text(re.compile(rf"job #{number} succeeded in"), timeout=120_000)
    assert record(box, number)["who"] == OPERATOR
    assert box.run("readlink /var/lib/left4me/installation").stdout.strip() == f"releases/{NEWER}"
    row = frame.get_by_role("row").filter(has=frame.get_by_role("rowheader", name=NEWER, exact=True))
    expect(row).to_contain_text("current")

    button(frame, f"Make build {BUILD} current").click()
    frame.get_by_role("dialog").get_by_role("button", name="Make current").click()
    rollback = result(frame, f"Rollback of the game to build {BUILD}")
    expect(rollback).to_contain_text("succeeded in")
    assert box.run("readlink /var/lib/left4me/installation").stdout.strip() == f"releases/{BUILD}"


def test_a_stream_that_breaks_comes_back(operator: Session) -> None:
    _page, frame = operator.open("servers")
    row = frame.get_by_role("row").filter(has=frame.get_by_role("rowheader", name="3", exact=True))
    expect(row).to_contain_text("active")
    operator.box.run("pkill -f '[l]4d2ctl status --json --follow'")
    expect(frame.get_by_role("alert")).to_contain_text("Connection lost")
    expect(row).to_contain_text("active")
    expect(frame.get_by_role("alert")).to_be_hidden(timeout=20_000)
    ctl(operator.box, "stop 3")
    expect(row).to_contain_text("inactive")


def test_closed_tabs_leave_nothing_behind(operator: Session) -> None:
    box, first = operator.box, operator.context.pages[0]
    count = "pgrep -c -f '[l]4d2ctl (status --json --follow|jobs -f)|[j]ournalctl.*--follow' || true"
    first.goto(f"{operator.address}/system")  # the session stays, without left4me's page
    wait_for("what other tabs ran has ended", lambda: box.run(count).stdout.strip() == "0")
    page, frame = operator.open("servers/3")
    expect(frame.get_by_role("log", name="Log of server 3")).to_contain_text("srcds")
    assert int(box.run(count).stdout) > 0
    page.close()
    wait_for("what the tab ran has ended", lambda: box.run(count).stdout.strip() == "0")


def test_a_stranger_sees_a_sentence_and_no_data(browser: Browser, box: Box) -> None:
    before = numbers(box)
    with logged_in(browser, box, STRANGER) as stranger:
        for route in ("servers", "servers/3"):
            page, frame = stranger.open(route)
            main = frame.get_by_role("main")
            expect(main).to_contain_text("Members of the group that the host's setting “operators” names may")
            for each in ("27015", "c1m1_hotel", BUILD, OPERATOR):
                expect(main).not_to_contain_text(each)
            expect(frame.get_by_role("table")).to_have_count(0)
            keep(page, box, f"stranger-{route}")
    assert numbers(box) == before


def test_without_a_session_there_is_no_page(browser: Browser, operator: Session) -> None:
    page, frame = operator.open("servers")
    expect(frame.get_by_role("table", name="Servers of this host")).to_be_visible()
    inside = page.frame(name=FRAME)
    assert inside
    with browser.new_context() as anonymous:
        visitor = anonymous.new_page()
        # The addresses of the page itself, as the operator's browser has them.
        for name in ("index.html", "ctl.js"):
            visitor.goto(inside.url.partition("#")[0].replace("index.html", name))
            assert "l4d2ctl" not in visitor.content()
            assert "Left 4 Dead 2" not in visitor.content()
        visitor.goto(f"{operator.address}/left4me#/servers")
        expect(visitor.locator("#login-button")).to_be_visible()
        assert "27015" not in visitor.content()


def test_cockpits_policy_holds(operator: Session) -> None:
    page = operator.tab()
    headers: dict[str, dict[str, str]] = {}

    def note(answer: Response) -> None:
        headers.setdefault(answer.url.partition("?")[0], answer.headers)

    page.on("response", note)
    page.goto(f"{operator.address}/left4me#/servers")
    frame = page.frame_locator(f'iframe[name="{FRAME}"]')
    expect(frame.get_by_role("table", name="Servers of this host")).to_be_visible()
    [inside] = [found for url, found in headers.items() if url.endswith("/left4me/index.html")]
    policy = inside["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers[f"{operator.address}/left4me"]["x-frame-options"].lower() == "sameorigin"
    # All that the page loads is from this host.
    assert all(url.startswith((operator.address, "data:")) for url in headers), list(headers)


FORGED = """
const spawn = ["sudo", "-n", "/usr/local/sbin/l4d2ctl", "stop", "3"];
const open = {command: "open", channel: "77!1", payload: "stream", spawn, host: "localhost"};
const messages = ["\\n" + JSON.stringify(open), JSON.stringify(open), open, {data: open}, "stop 3", ["stop", "3"],
    {verb: "stop", server: "3"}, {type: "click", target: "stop 3"}, "#/servers/3?stop"];
"""


def test_messages_of_other_origins_do_nothing(operator: Session) -> None:
    box, context = operator.box, operator.context
    before, jobs = main_pid(box, "3"), numbers(box)
    # The same machine, another port: it shares the cookies, and is another origin all the same.
    other = "http://127.0.0.1:9443"
    framed = f"<!DOCTYPE html><iframe src='{operator.address}/left4me#/servers/3'></iframe>"
    html = {"Content-Type": "text/html"}
    context.route(f"{other}/**", lambda route: route.fulfill(body=framed, headers=html))
    attacker = operator.tab()
    attacker.goto(other)
    with context.expect_page() as opened:
        attacker.evaluate(f"window.victim = window.open('{operator.address}/left4me#/servers/3')")
    victim = opened.value
    frame = victim.frame_locator(f'iframe[name="{FRAME}"]')
    expect(frame.get_by_role("button", name="Stop", exact=True)).to_be_visible(timeout=30_000)
    inside = victim.frame(name=FRAME)
    assert inside
    inside.evaluate("window.got = 0; addEventListener('message', event => { got += event.origin.endsWith(':9443'); })")
    sent = attacker.evaluate(
        FORGED
        + """
        let sent = 0;
        for (const target of [victim, ...Array.from({length: victim.length}, (_, at) => victim[at]), frames[0]]) {
            for (const message of messages) {
                target.postMessage(message, "*");
                sent += 1;
            }
        }
        sent
        """
    )
    assert sent >= 18, "no frame could be reached"
    wait_for("the messages have arrived", lambda: inside.evaluate("got") == 9)
    # What was sent first is handled first: after an answer to a later click, nothing is on its way.
    frame.get_by_role("tab", name="Jobs").click()
    expect(frame.get_by_role("table", name="Jobs of server 3")).to_be_visible()
    assert (main_pid(box, "3"), numbers(box)) == (before, jobs)
    # Nor does Cockpit let itself be framed.
    assert [each.url for each in attacker.frames[1:]] in ([], ["chrome-error://chromewebdata/"])


def keep(page: Page, box: Box, name: str) -> None:
    keep_screenshot(page, f"debian{box.debian}-{name}")


@pytest.mark.parametrize("style", ["light", "dark"])
def test_it_looks_at_home(operator: Session, style: str) -> None:
    rcon(operator.box, 27015, "standin_players 3")
    views = {
        **{"servers": "No problems found.", "servers/3": "Player 3", "servers/3?tab=console": "Player 3"},
        **{"servers/3?tab=jobs": "succeeded in", "jobs/1": "succeeded in", "game": BUILD},
    }
    page, frame = operator.open("servers")
    expect(frame.locator("html")).to_have_attribute("data-theme", re.compile("light|dark"))
    page.evaluate("style => localStorage.setItem('shell:style', style)", style)
    expect(frame.locator("html")).to_have_attribute("data-theme", style)
    for route, shows in views.items():
        page.goto(f"{operator.address}/left4me#/{route}")
        expect(frame.get_by_role("main")).to_contain_text(shows)
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 800})
            needs, has = width_of_content(frame.locator("html"))
            keep(page, operator.box, f"{style}-{width}-{route}")
            assert needs <= has <= width, route
    page.evaluate("localStorage.removeItem('shell:style')")


def test_a_cockpit_that_restarts_leads_to_its_login_and_back(session: Session) -> None:
    """The last test, because it ends the session."""
    page, frame = session.open("servers/3")
    expect(frame.get_by_role("heading", name="Server 3")).to_be_visible()
    session.box.run("systemctl restart cockpit.service")
    page.get_by_role("button", name="Reconnect").click()  # Cockpit's
    page.fill("#login-user-input", OPERATOR)
    page.fill("#login-password-input", PASSWORD)
    page.click("#login-button")
    expect(frame.get_by_role("heading", name="Server 3")).to_be_visible()
