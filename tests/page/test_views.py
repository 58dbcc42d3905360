"""The views, with a host that says what the test wants: many servers, lost streams, hostile names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.integration.harness import wait_for
from tests.page.browser import keep_screenshot, width_of_content
from tests.page.fake_host import STREAM, FakeHost, attic_entry, build, fake_host, job, row, shown, status

HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
LOG = "logs -f -n 200 3"
FOLLOW = "jobs -f 164"
HELD = "server 3 is stopped but its overlay is held by pid 4711 (sleep) by its cwd: /var/lib/left4me/runtime/3/merged."


@pytest.fixture
def host(browser: Browser) -> Iterator[FakeHost]:
    with fake_host(browser) as opened:
        yield opened


def many(**different: Any) -> list[dict[str, Any]]:
    """Return the rows of 40 servers; server 20 has `different` values."""
    return [row(str(each), **(different if each == 20 else {})) for each in range(40)]


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def row_of(page: Page, server: str) -> Locator:
    table = page.get_by_role("table", name="Servers of this host")
    return table.get_by_role("row").filter(has=page.get_by_role("rowheader", name=server, exact=True))


def acts(page: Page) -> Locator:
    return page.get_by_role("region", name="What this page did").get_by_role("listitem")


# The table of servers


def test_the_table_shows_what_status_says(host: FakeHost) -> None:
    rows = [
        row("3", players=2, restart_due=True, restart_for=["build", "port"]),
        row("4", state="inactive", players=None, map=None, memory=None, held=True, held_by="anna"),
        row("5", state="failed", players=None, map=None, reset_unfinished=True),
        row("6", players=None, unanswered_since="Sun 2026-11-29 09:14:05 UTC", next_map=True),
    ]
    waiting = job(170, words="restart --when-empty 3", result="waiting", ended=None)
    host.open("servers", status(*rows, jobs=[waiting, job()], update="the last update failed on 2026-11-28 04:30: why"))
    page = host.page

    for each in ("active", "2 / 8", "c1m1_hotel", "27015", "14716838", "412 MiB", "restart required (build, port)"):
        expect(row_of(page, "3")).to_contain_text(each)
    expect(row_of(page, "3").get_by_role("link", name="#170 restart --when-empty 3")).to_have_attribute(
        "href", "#/jobs/170"
    )
    expect(row_of(page, "4")).to_contain_text("stopped by hand by anna")
    expect(row_of(page, "5")).to_contain_text("reset is unfinished")
    expect(row_of(page, "6")).to_contain_text("no answer")
    expect(row_of(page, "6")).to_contain_text("applies at the next map")
    expect(page.locator("#sum")).to_have_text("4 servers, 2 active, 2 players")
    expect(page.get_by_text("the last update failed on 2026-11-28 04:30: why")).to_be_visible()
    expect(page.get_by_role("table", name="Running jobs").get_by_role("row")).to_have_count(2)
    expect(page.get_by_text("No problems found.")).to_be_visible()
    expect(page.get_by_text("on game1")).to_be_visible()

    # Buttons where they are safe: a server that runs as declared has none.
    assert [row_of(page, each).get_by_role("button").all_text_contents() for each in "3456"] == [
        ["Restart"],
        ["Start"],
        ["Start"],
        [],
    ]


def test_a_redraw_of_40_servers_moves_nothing(host: FakeHost) -> None:
    host.open("servers", status(*many(state="inactive", players=None)))
    page = host.page
    start = row_of(page, "20").get_by_role("button", name="Start server 20")
    start.scroll_into_view_if_needed()
    start.focus()
    page.evaluate("document.querySelectorAll('tbody tr').forEach((row, index) => { row.number = index; })")
    page.evaluate("""() => {
        const server = [...document.querySelectorAll("tbody th")].find(each => each.textContent === "21");
        getSelection().selectAllChildren(server.parentNode.children[3]);
    }""")
    before = page.evaluate("[scrollX, scrollY, getSelection().toString()]")
    assert before[1] > 0
    columns = "[...document.querySelectorAll('.servers thead th')].map(each => each.getBoundingClientRect().x)"
    lines = page.evaluate(columns)

    host.update(*many(state="failed", players=None, map="c2m1_highway", memory=None, held=True, held_by="anna"))
    expect(row_of(page, "20")).to_contain_text("stopped by hand by anna")
    host.update(*many(state="inactive", players=None, map="c2m1_highway", memory=2**31, held=True, held_by="anna"))
    expect(row_of(page, "20")).to_contain_text("2.0 GiB")
    assert page.evaluate(columns) == lines
    assert page.evaluate("[scrollX, scrollY, getSelection().toString()]") == before
    expect(start).to_be_focused()
    assert page.evaluate("[...document.querySelectorAll('tbody tr')].every(each => each.number !== undefined)")

    # A button that was there before works, from the keyboard too.
    page.keyboard.press("Enter")
    wait_for("server 20 is started", lambda: host.started("start 20") == 1)


def test_servers_that_come_and_go_leave_the_others_in_place(host: FakeHost) -> None:
    host.open("servers", status(row("1"), row("3", state="failed"), row("5")))
    page = host.page
    start = row_of(page, "3").get_by_role("button")
    start.focus()
    host.update(row("0"), row("2"), row("3", state="failed"), row("4"), row("5"))
    expect(page.get_by_role("table", name="Servers of this host").get_by_role("rowheader")).to_have_text(
        ["0", "2", "3", "4", "5"]
    )
    expect(start).to_be_focused()


def test_search_and_sum(host: FakeHost) -> None:
    host.open("servers", status(*many(players=3, map="c2m1_highway", restart_due=True, restart_for=["layers"])))
    page = host.page
    search = page.get_by_label("Search")
    search.fill("HIGHWAY layers")
    expect(row_of(page, "20")).to_be_visible()
    expect(row_of(page, "21")).to_have_count(0)
    expect(page.locator("#sum")).to_have_text("1 of 40 servers, 1 active, 3 players")
    host.update(*many(players=4, map="c2m1_highway", restart_due=True, restart_for=["layers"]))
    expect(page.locator("#sum")).to_have_text("1 of 40 servers, 1 active, 4 players")
    expect(search).to_be_focused()
    # It is still there after a look at the server.
    row_of(page, "20").get_by_role("link", name="20").click()
    expect(page.get_by_role("heading", name="Server 20")).to_be_visible()
    page.get_by_role("navigation").get_by_role("link", name="Servers").click()
    expect(page.locator("#sum")).to_have_text("1 of 40 servers, 1 active, 4 players")
    search.fill("nowhere")
    expect(page.get_by_text("No server to show.")).to_be_visible()


def test_what_the_doctor_finds_is_shown_and_can_be_fixed(host: FakeHost) -> None:
    finding = {"server": "3", "what": "its upper is unused", "do": "l4d2ctl doctor --fix", "done": None}
    host.answers["doctor --json"] = [finding]
    host.open("servers", status())
    problems = host.page.get_by_role("region", name="Problems")
    expect(problems).to_contain_text("server 3: its upper is unused l4d2ctl doctor --fix")
    button(host.page, "Fix what is safe to fix").click()
    host.says("doctor --fix", "job 171 is running; to follow it from elsewhere: l4d2ctl jobs -f 171")
    expect(acts(host.page)).to_contain_text("Fix of what is safe to fix … job #171")
    fix = job(171, verb="doctor --fix", words="doctor --fix", servers=[], result="running", ended=None)
    host.update(jobs=[fix])
    host.answers["doctor --json"] = [{**finding, "do": "deploy this host"}]
    host.ends("doctor --fix")
    host.update(jobs=[{**fix, "result": "succeeded", "ended": 1764406001.42}])
    expect(problems).to_contain_text("deploy this host")
    expect(button(host.page, "Fix what is safe to fix")).to_be_hidden()
    assert host.started("doctor --json") == 2

    # The host is examined once more, and the answers come in the other order.
    host.page.evaluate("delete host.answers['doctor --json']")
    button(host.page, "Examine again").focus()
    host.page.keyboard.press("Enter")
    wait_for("the host is examined", lambda: host.running("doctor --json") == 1)
    expect(button(host.page, "Examine again")).to_be_disabled()
    expect(button(host.page, "Examine again")).to_be_focused()
    host.page.keyboard.press("Enter")
    host.answers["doctor --json"] = []
    host.update(jobs=[{**fix, "job": 172, "result": "succeeded", "ended": 1764406002.42}])
    expect(problems).to_contain_text("No problems found.")
    host.says("doctor --json", json.dumps([finding]))
    host.ends("doctor --json")
    expect(button(host.page, "Examine again")).to_be_enabled()
    expect(problems).to_contain_text("No problems found.")
    assert host.started("doctor --json") == 4


# What changes the host


def test_a_reset_acts_at_once_and_says_how_its_job_ended(host: FakeHost) -> None:
    host.open("servers/3", status())
    button(host.page, "Reset").click()
    expect(acts(host.page)).to_have_text(re.compile("^Reset of server 3 …"))
    button(host.page, "Reset").click()  # impatiently
    host.says("reset 3", "server 3: stop 0.31 s", "job 164 succeeded in 0.87 s")
    host.ends("reset 3")
    expect(acts(host.page)).to_contain_text("job #164 succeeded in 0.87 s")
    expect(acts(host.page)).to_contain_text("server 3: stop 0.31 s")
    expect(host.page.locator("#announcement")).to_have_text("Reset of server 3: job #164 succeeded in 0.87 s")
    expect(acts(host.page).get_by_role("link", name="job #164")).to_have_attribute("href", "#/jobs/164")
    assert host.started("reset 3") == 1

    # It can be reset again, and the entry dismissed.
    button(host.page, "Reset").click()
    wait_for("a second reset", lambda: host.started("reset 3") == 2)
    expect(acts(host.page)).to_have_count(2)
    button(host.page, "Dismiss: Reset of server 3").click()
    expect(acts(host.page)).to_have_count(1)


def test_dismissing_keeps_the_focus_in_the_page(host: FakeHost) -> None:
    host.open("servers/3", status())
    for verb, words in (("Reset", "reset 3"), ("Stop", "stop 3")):
        button(host.page, verb).click()
        host.ends(words)
        expect(acts(host.page).filter(has_text=f"{verb} of server 3")).to_contain_text("done")
    button(host.page, "Dismiss: Reset of server 3").focus()
    host.page.keyboard.press("Enter")
    expect(button(host.page, "Dismiss: Stop of server 3")).to_be_focused()
    host.page.keyboard.press("Enter")
    expect(acts(host.page)).to_have_count(0)
    expect(host.page.get_by_role("main")).to_be_focused()


def test_a_button_that_has_worked_keeps_the_keyboards_focus(host: FakeHost) -> None:
    waiting = job(173, words="restart --when-empty 3", result="waiting", ended=None)
    old = build("old", current=False)
    cases: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
        ("servers", "Start server 3", status(row(state="inactive", players=None)), status(), "start 3"),
        ("servers/3", "Restart when empty", status(), status(jobs=[waiting]), "restart --when-empty 3"),
        ("servers/3", "Cancel the waiting restart", status(jobs=[waiting]), status(), "start 3"),
        ("game", "Make build old current", status(builds=[old]), status(builds=[build("old")]), "game rollback old"),
    ]
    for where, name, before, after, words in cases:
        host.open(where, before)
        used = button(host.page, name)
        used.focus()
        host.page.keyboard.press("Enter")
        if where == "game":
            host.page.get_by_role("dialog").get_by_role("button", name="Make current").press("Enter")
        wait_for(words, lambda words=words: host.started(words) == 1)  # type: ignore[misc]
        host.says(STREAM, json.dumps(after))
        expect(used).to_be_disabled()
        expect(used).to_be_focused()
        host.page.keyboard.press("Enter")
        host.page.keyboard.press("Tab")
        host.says(STREAM, json.dumps(after))
        expect(used).to_be_hidden()
        assert host.started(words) == 1


def test_a_failed_stop_names_the_holder_and_blocks_no_other_verb(host: FakeHost) -> None:
    host.open("servers", status(row("3", restart_due=True), row("4", state="failed")))
    page = host.page
    row_of(page, "3").get_by_role("button", name="Restart server 3").click()
    row_of(page, "4").get_by_role("button", name="Start server 4").click()
    host.says("restart 3", f"l4d2ctl: {HELD}", "job 165 failed after 15.20 s")
    host.fails("restart 3")
    failed = acts(page).filter(has_text="Restart of server 3")
    expect(failed).to_contain_text(HELD)
    expect(failed).to_contain_text("job #165 failed after 15.2 s")
    host.says("start 4", "job 166 succeeded in 1.00 s")
    host.ends("start 4")
    expect(acts(page).filter(has_text="Start of server 4")).to_contain_text("job #166 succeeded in 1 s")
    expect(failed).to_contain_text(HELD)


@pytest.mark.parametrize("verb", ["Stop", "Restart now", "Reset", "Undo"])
def test_with_players_it_asks_and_says_how_many(host: FakeHost, verb: str) -> None:
    host.answers["show 3 --json"] = shown(attic=[attic_entry()])
    words = {"Stop": "stop 3", "Restart now": "restart 3", "Reset": "reset 3"}
    command = words.get(verb, "reset --undo 20261128T150312.123456789 3")
    host.open("servers/3", status(row(players=2)))
    page = host.page
    expect(page.get_by_text("2026-11-28 15:03:12 UTC; 1 entry in the attic")).to_be_visible()
    dialog = page.get_by_role("dialog")
    button(page, verb).focus()
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("2 players are on it and will be disconnected.")

    # The keyboard stays in it, and Escape is "no".
    focused = []
    for _ in range(6):
        focused.append(page.evaluate("document.activeElement.closest('dialog')?.id ?? document.activeElement.tagName"))
        page.keyboard.press("Tab")
    assert set(focused) <= {"question", "BODY"}, focused
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button(page, verb)).to_be_focused()
    button(page, verb).click()
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert host.started(command) == 0

    # They leave meanwhile: the next click does it.
    button(page, verb).click()
    dialog.get_by_role("button", name=re.compile("with 2 players on$")).click()
    wait_for(f"l4d2ctl {command}", lambda: host.started(command) == 1)
    host.ends(command)
    host.update(row(players=0))
    button(page, verb).click()
    wait_for(f"l4d2ctl {command} without a question", lambda: host.started(command) == 2)


def test_a_server_that_does_not_answer_may_have_players(host: FakeHost) -> None:
    started = row()["since"]
    host.open("servers/3", status(row(players=None, unanswered_since="Sun 2026-11-29 10:00:00 UTC")))
    dialog = host.page.get_by_role("dialog")
    unknown = "The server does not answer: players may be on it."
    for verb, command in (("Stop", "stop 3"), ("Restart now", "restart 3"), ("Reset", "reset 3")):
        button(host.page, verb).click()
        expect(dialog).to_contain_text(f"{unknown} It answered last at Sun 2026-11-29 10:00:00 UTC.")
        dialog.get_by_role("button", name="Cancel").click()
        assert host.started(command) == 0
    # Nobody may have asked it since its start.
    host.update(row(players=None, unanswered_since=started))
    expect(host.page.get_by_role("region", name="State")).to_contain_text(started)
    button(host.page, "Stop").click()
    expect(dialog).to_contain_text(f"{unknown} It runs since {started}.")
    dialog.get_by_role("button", name="Stop", exact=True).click()
    wait_for("the stop", lambda: host.started("stop 3") == 1)


@pytest.mark.parametrize("state", ["start", "start-pre", "auto-restart", "failed"])
def test_a_server_whose_game_is_not_up_has_no_players(host: FakeHost, state: str) -> None:
    host.open("servers/3", status(row(state=state, players=None)))
    button(host.page, "Stop").click()
    wait_for("a stop without a question", lambda: host.started("stop 3") == 1)


def test_a_verb_whose_connection_is_lost_goes_on_at_the_host(host: FakeHost) -> None:
    host.open("game", status())
    button(host.page, "Update").click()
    host.says("game update", "job 172 is running; to follow it from elsewhere: l4d2ctl jobs -f 172")
    host.fails("game update", problem="disconnected", message="disconnected")
    expect(acts(host.page)).to_contain_text("job #172 the connection was lost; the job goes on without it")


def test_a_verb_whose_connection_is_lost_before_its_job_began(host: FakeHost) -> None:
    host.page.clock.install()
    host.open("game", status())
    button(host.page, "Update").click()
    # In Cockpit the command just says nothing more.
    host.ends(STREAM)
    expect(acts(host.page)).to_contain_text("the connection was lost; see the jobs whether it began")
    host.page.clock.run_for(4000)
    host.update()
    expect(acts(host.page)).not_to_contain_text("lost")
    host.fails("game update", problem="disconnected", message="disconnected")
    expect(acts(host.page)).to_contain_text("the connection was lost; see the jobs whether it began")


def test_without_a_connection_no_verb_begins(host: FakeHost) -> None:
    host.page.clock.install()
    host.open("servers/3", status(row(players=2)))
    page, dialog = host.page, host.page.get_by_role("dialog")
    not_begun = "not started: no connection to the host"
    # It is lost while the page asks who plays.
    page.evaluate("words => { delete host.answers[words]; }", "status --json 3")
    button(page, "Stop").click()
    wait_for("who plays", lambda: host.running("status --json 3") == 1)
    host.ends(STREAM)
    expect(acts(page).filter(has_text="Stop of server 3")).to_contain_text(not_begun)
    # It is lost already.
    button(page, "Reset").click()
    expect(acts(page).filter(has_text="Reset of server 3")).to_contain_text(not_begun)
    expect(page.locator("#announcement")).to_have_text(f"Reset of server 3: {not_begun}")
    assert (host.started("stop 3"), host.started("reset 3")) == (0, 0)
    # It is lost while the page asks the user.
    page.clock.run_for(4000)
    host.update(row(players=2))
    button(page, "Restart now").click()
    expect(dialog).to_be_visible()
    host.ends(STREAM)
    dialog.get_by_role("button", name="Restart with 2 players on").click()
    expect(acts(page).filter(has_text="Restart of server 3")).to_contain_text(not_begun)
    assert host.started("restart 3") == 0
    # It is back.
    page.clock.run_for(4000)
    host.update(row(players=0))
    button(page, "Reset").click()
    wait_for("the reset", lambda: host.started("reset 3") == 1)


def test_players_that_the_stream_has_not_seen_yet_count(host: FakeHost) -> None:
    host.open("servers/3", status(row()))
    host.answers["status --json 3"] = [row(players=1)]
    host.answer()
    button(host.page, "Reset").click()
    expect(host.page.get_by_role("dialog")).to_contain_text("1 player is on it and will be disconnected.")
    assert host.started("reset 3") == 0


def test_two_commands_ask_one_after_the_other(host: FakeHost) -> None:
    rows = [row(each, players=2, restart_due=True) for each in "34"]
    host.open("servers", status(*rows))
    page, dialog = host.page, host.page.get_by_role("dialog")
    # The answers are on their way while both are clicked.
    for each in "34":
        page.evaluate("words => { delete host.answers[words]; }", f"status --json {each}")
        button(page, f"Restart server {each}").click()

    def answer_late() -> None:
        for words in ("status --json 4", "status --json 3"):
            if host.running(words):
                host.says(words, json.dumps(host.answers[words]))
                host.ends(words)

    answer_late()
    expect(dialog).to_contain_text("Restart server 3?")
    dialog.get_by_role("button", name="Restart with 2 players on").click()
    wait_for("the restart of server 3", lambda: host.started("restart 3") == 1)
    wait_for("the question about server 4", lambda: host.started("status --json 4") == 1)
    answer_late()
    expect(dialog).to_contain_text("Restart server 4?")
    dialog.get_by_role("button", name="Cancel").click()
    expect(button(page, "Restart server 4")).to_have_attribute("aria-busy", "false")
    assert (host.started("restart 3"), host.started("restart 4")) == (1, 0)


# One server


def test_a_server_shows_its_state(host: FakeHost) -> None:
    players = [{"name": "Zoey", "seconds": 3723.2, "score": 4}, {"name": "Bill", "seconds": 30, "score": 0}]
    host.answers["show 3 --json"] = shown(
        players=players, attic=[attic_entry(), attic_entry("20261101T000000.1", by="undo")]
    )
    host.open("servers/3", status(row(players=2, dropped={"one_source": 12})))
    state = host.page.get_by_role("region", name="State")
    for each in ("2 / 8", "c1m1_hotel", "412 MiB of 2.0 GiB", "sourcemod 1.12-7210", "100", "-5", "one source 12"):
        expect(state).to_contain_text(each)
    link = state.get_by_role("link", name="198.18.1.2:27015")
    expect(link).to_have_attribute("href", "steam://connect/198.18.1.2:27015")
    table = host.page.get_by_role("table", name="Players on server 3")
    expect(table.get_by_role("row")).to_contain_text(["Player", "Zoey1 h 2 min4", "Bill< 1 min0"])
    attic = host.page.get_by_role("table", name="Attic of server 3")
    attic.get_by_role("button", name="Bring back the files of 2026-11-01 00:00:00 UTC").click()
    host.page.get_by_role("dialog").get_by_role("button", name="Undo with 2 players on").click()
    wait_for("the undo of that entry", lambda: host.started("reset --undo 20261101T000000.1 3") == 1)


def test_buttons_that_would_have_no_effect_do_nothing(host: FakeHost) -> None:
    host.open("servers/3", status(row()))
    page = host.page
    expect(button(page, "Start")).to_be_disabled()
    expect(button(page, "Undo")).to_be_disabled()
    button(page, "Start").click(force=True)
    host.update(row(state="inactive", players=None))
    expect(button(page, "Start")).to_be_enabled()
    expect(button(page, "Restart now")).to_be_disabled()
    expect(button(page, "Restart when empty")).to_be_disabled()
    button(page, "Restart now").click(force=True)
    assert (host.started("start 3"), host.started("restart 3")) == (0, 0)


def test_a_restart_that_waits_can_be_cancelled(host: FakeHost) -> None:
    host.open("servers/3", status(row(players=2)))
    page = host.page
    button(page, "Restart when empty").click()
    host.says("restart --when-empty 3", "job 173 is running; to follow it from elsewhere: l4d2ctl jobs -f 173")
    waiting = job(173, words="restart --when-empty 3", result="waiting", ended=None)
    host.update(row(players=2), jobs=[waiting])
    button(page, "Cancel the waiting restart").click()
    wait_for("l4d2ctl start 3", lambda: host.started("start 3") == 1)
    host.says("restart --when-empty 3", "job 173 was cancelled")
    host.fails("restart --when-empty 3")
    expect(acts(page).filter(has_text="when it is empty")).to_contain_text("job #173 was cancelled")
    host.update(row(players=2))
    expect(button(page, "Cancel the waiting restart")).to_be_hidden()


def test_what_could_not_be_read_of_a_server_is_read_again(host: FakeHost) -> None:
    del host.answers["show 3 --json"]
    host.open("servers/3", status())
    host.fails("show 3 --json", message="l4d2ctl: too many open files")
    state = host.page.get_by_role("region", name="State")
    expect(state).to_contain_text("too many open files")
    host.answers["show 3 --json"] = shown()
    host.update()
    expect(state).to_contain_text("198.18.1.2:27015")
    expect(state).not_to_contain_text("too many open files")


def test_the_configuration_stays_selected(host: FakeHost) -> None:
    host.open("servers/3?tab=configuration", status())
    panel = host.page.get_by_role("tabpanel", name="Configuration")
    expect(panel).to_contain_text('hostname "three"')
    panel.evaluate("panel => getSelection().selectAllChildren(panel.querySelector('pre'))")
    selected = host.page.evaluate("getSelection().toString()")
    host.answers["show 3 --json"] = shown(layers=[{"name": "another", "version": "1"}])
    host.update(row(map="c2m1_highway"))
    expect(host.page.get_by_role("region", name="State")).to_contain_text("another 1")
    assert host.page.evaluate("getSelection().toString()") == selected != ""
    host.answers["show 3 --json"] = shown(declared={"server.cfg": 'hostname "four"'})
    host.update(row())
    expect(panel).to_contain_text('hostname "four"')


def test_the_log_follows_and_is_bounded(host: FakeHost) -> None:
    host.open("servers/3", status())
    log = host.page.get_by_role("log", name="Log of server 3")
    host.says(LOG, *(f"line {number} {HOSTILE}" for number in range(5000)))
    expect(log).to_contain_text("line 4999 <img")
    assert log.locator("> div").count() == 1000
    assert log.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight") < 8
    # Who has scrolled up keeps the place.
    log.evaluate("box => { box.scrollTop = 0; }")
    host.says(LOG, "one more")
    expect(log).to_contain_text("one more")
    assert log.evaluate("box => box.scrollTop") < 8
    # Nobody looks: nobody reads.
    host.page.get_by_role("tab", name="Console").click()
    expect(log).to_be_hidden()
    assert host.running(LOG) == 0


def test_a_log_that_stops_is_read_again(host: FakeHost) -> None:
    host.page.clock.install()
    host.open("servers/3", status())
    host.says(LOG, "before")
    host.page.clock.run_for(100)
    host.fails(LOG, message="journalctl was killed")
    panel = host.page.get_by_role("tabpanel", name="Log")
    expect(panel).to_contain_text("The log stopped (journalctl was killed)")
    assert host.running(LOG) == 0
    host.page.clock.run_for(4000)
    # What was read stays until there is something else.
    wait_for("the log is read again", lambda: host.running(LOG) == 1)
    host.page.clock.run_for(100)
    expect(panel).to_contain_text("before")
    host.says(LOG, "after")
    host.page.clock.run_for(100)
    expect(panel).to_contain_text("after")
    expect(panel).not_to_contain_text("before")
    expect(panel).not_to_contain_text("stopped")


def test_the_console_answers_and_remembers(host: FakeHost) -> None:
    host.open("servers/3?tab=console", status())
    page = host.page
    command, output = page.get_by_label("Command"), page.get_by_role("log", name="Output of the console of server 3")
    for typed, answer in (("status", "hostname: three"), ("say -hi", ""), ("echo on", "on")):
        command.fill(typed)
        command.press("Enter")
        host.says(f"rcon 3 -- {typed}", *filter(None, [answer]))
        host.ends(f"rcon 3 -- {typed}")
        expect(command).to_have_value("")
    expect(output.locator("> div")).to_have_text(
        ["> status", "hostname: three", "> say -hi", "(no output)", "> echo on", "on"]
    )
    for key, value in (("ArrowUp", "echo on"), ("ArrowUp", "say -hi"), ("ArrowUp", "status"), ("ArrowUp", "status")):
        command.press(key)
        expect(command).to_have_value(value)
    for value in ("say -hi", "echo on", ""):
        command.press("ArrowDown")
        expect(command).to_have_value(value)
    command.fill("quit")
    command.press("Enter")
    host.says("rcon 3 -- quit", "l4d2ctl: server 3 is not running: l4d2ctl start 3")
    host.fails("rcon 3 -- quit")
    expect(output).to_contain_text("server 3 is not running: l4d2ctl start 3")


def test_the_console_is_bounded(host: FakeHost) -> None:
    host.open("servers/3?tab=console", status())
    page = host.page
    page.get_by_label("Command").fill("cvarlist")
    page.get_by_label("Command").press("Enter")
    host.says("rcon 3 -- cvarlist", *(f"cvar {number}" for number in range(3000)))
    output = page.get_by_role("log", name="Output of the console of server 3")
    expect(output).to_contain_text("cvar 2999")
    assert output.locator("> div").count() == 500


def test_tabs_by_keyboard_and_by_address(host: FakeHost) -> None:
    host.answers["jobs --json"] = [job(), job(165, servers=["4"], words="stop 4"), job(166, result="failed")]
    host.open("servers/3?tab=configuration", status())
    page = host.page
    expect(page.get_by_role("tabpanel", name="Configuration")).to_contain_text('hostname "three"')
    page.get_by_role("tab", name="Configuration").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Jobs")).to_be_focused()
    jobs = page.get_by_role("tabpanel", name="Jobs")
    expect(jobs.get_by_role("rowheader")).to_have_text(["#164", "#166"])
    expect(jobs).to_contain_text("succeeded in 1.3 s")
    expect(jobs).to_contain_text("failed after 1.3 s")
    page.keyboard.press("Home")
    host.says(LOG, "a line")
    expect(page.get_by_role("tabpanel", name="Log")).to_contain_text("a line")
    page.keyboard.press("End")
    assert page.url.endswith("#/servers/3?tab=configuration")


def test_a_server_that_is_not_declared(host: FakeHost) -> None:
    host.open("servers/9", status())
    page = host.page
    expect(page.get_by_text("No server 9 is declared on this host.")).to_be_visible()
    expect(page.get_by_role("main").get_by_role("button")).to_have_count(0)
    assert host.page.evaluate("host.all.map(each => each.words)") == [STREAM]
    # A deploy declares it, another one removes it.
    host.update(row("9"))
    host.says("logs -f -n 200 9", "a line")
    expect(page.get_by_role("log", name="Log of server 9")).to_contain_text("a line")
    expect(button(page, "Stop")).to_be_visible()
    host.update(row("3"))
    expect(page.get_by_text("No server 9 is declared on this host.")).to_be_visible()
    expect(page.get_by_role("main").get_by_role("button")).to_have_count(0)
    assert host.running("logs -f -n 200 9") == 0


@pytest.mark.parametrize("where", ["servers/--all", "servers/3%204", "servers/3/x", "jobs/-f", "jobs/1%20--json", "x"])
def test_an_address_is_a_page_of_its_own_or_none(host: FakeHost, where: str) -> None:
    host.open(where, status())
    main = host.page.get_by_role("main")
    expect(main.get_by_role("heading", name="There is no such page")).to_be_visible()
    expect(main.get_by_role("button")).to_have_count(0)
    assert host.page.evaluate("host.all.map(each => each.words)") == [STREAM]
    host.page.get_by_role("link", name="Servers").click()
    expect(row_of(host.page, "3")).to_be_visible()


# Jobs and the game


def test_a_job_shows_its_lines_as_they_come_and_then_its_record(host: FakeHost) -> None:
    running = job(result="running", ended=None, words="game update", servers=[], steps={}, who="timer")
    host.answers["jobs 164 --json"] = {**running, "lines": ["0 %"]}
    host.open("jobs/164", status())
    page = host.page
    expect(page.get_by_text("job #164 is running")).to_be_visible()
    host.says(FOLLOW, "0 %", "50 %")
    lines = page.get_by_role("log", name="Lines of job #164")
    expect(lines.locator("> div")).to_have_text(["0 %", "50 %"])
    host.answers["jobs 164 --json"] = {
        **running,
        "result": "failed",
        "ended": 1764406016.0,
        "seconds": 15.2,
        "lines": [],
    }
    host.answers["jobs 164 --json"] |= {"steps": {"download": 15.04}, "error": "no space left", "origin": "rollout 7"}
    host.answer()
    host.fails(FOLLOW)
    expect(page.get_by_text("job #164 failed after 15.2 s")).to_be_visible()
    for each in ("game update", "timer (rollout 7)", "download 15.04 s", "no space left"):
        expect(page.get_by_role("main")).to_contain_text(each)
    expect(lines.locator("> div")).to_have_text(["0 %", "50 %"])


def test_a_job_that_has_ended_shows_what_is_kept_of_it(host: FakeHost) -> None:
    host.answers["jobs 164 --json"] = {**job(line_count=302), "lines": ["last but one", "last"]}
    host.open("jobs/164", status())
    lines = host.page.get_by_role("log", name="Lines of job #164")
    expect(lines.locator("> div")).to_have_text(["… 300 earlier lines are not kept", "last but one", "last"])
    expect(host.page.get_by_text("job #164 succeeded in 1.3 s")).to_be_visible()
    expect(host.page.get_by_role("main").get_by_role("link", name="3", exact=True)).to_have_attribute(
        "href", "#/servers/3"
    )
    assert host.started(FOLLOW) == 0


def test_a_job_whose_stream_breaks_is_followed_again(host: FakeHost) -> None:
    host.page.clock.install()
    host.answers["jobs 164 --json"] = {**job(result="running", ended=None), "lines": []}
    host.open("jobs/164", status())
    host.says(FOLLOW, "0 %")
    host.fails(FOLLOW, message="killed")
    wait_for("the record is read", lambda: host.started("jobs 164 --json") == 2)
    host.page.clock.run_for(4000)
    wait_for("the job is followed again", lambda: host.running(FOLLOW) == 1)
    host.page.clock.run_for(100)
    lines = host.page.get_by_role("log", name="Lines of job #164")
    expect(lines.locator("> div")).to_have_text(["0 %"])
    host.says(FOLLOW, "0 %", "50 %")
    host.page.clock.run_for(100)
    expect(lines.locator("> div")).to_have_text(["0 %", "50 %"])


def test_a_job_whose_record_was_not_read_is_read_again(host: FakeHost) -> None:
    host.page.clock.install()
    del host.answers["jobs 164 --json"]
    host.open("jobs/164", status())
    host.fails("jobs 164 --json", message="l4d2ctl: too many open files")
    expect(host.page.get_by_text("too many open files")).to_be_visible()
    host.answers["jobs 164 --json"] = {**job(), "lines": ["a line"]}
    host.answer()
    host.page.clock.run_for(4000)
    expect(host.page.get_by_text("job #164 succeeded in 1.3 s")).to_be_visible()
    expect(host.page.get_by_text("too many open files")).to_be_hidden()


def test_a_job_that_is_not_there(host: FakeHost) -> None:
    host.page.clock.install()
    host.open("jobs/9", status())
    host.fails("jobs 9 --json", message="l4d2ctl: there is no job 9; see l4d2ctl jobs")
    expect(host.page.get_by_text("there is no job 9")).to_be_visible()
    # Nor will it be.
    host.page.clock.run_for(10000)
    assert host.started("jobs 9 --json") == 1


def test_the_game_follows_an_update_that_runs(host: FakeHost) -> None:
    running = job(words="game update", verb="game update", servers=[], result="running", ended=None)
    host.answers["jobs 164 --json"] = {**running, "lines": []}
    old = build("14716837", current=False, servers=["3"], declared_for=["3", "4"])
    host.open(
        "game", status(jobs=[running], builds=[build("14716838", servers=[]), old], update="an update is running")
    )
    page = host.page
    expect(page.get_by_text("an update is running")).to_be_visible()
    expect(button(page, "Update")).to_be_disabled()
    host.says(FOLLOW, "downloading 42 %")
    expect(page.get_by_role("region", name="Progress")).to_contain_text("downloading 42 %")
    row = page.get_by_role("row").filter(has_text="14716837")
    expect(row).to_contain_text("3, 4")
    row.get_by_role("button", name="Make build 14716837 current").click()
    expect(page.get_by_role("dialog")).to_contain_text("Make build 14716837 current?")
    page.get_by_role("dialog").get_by_role("button", name="Make current").click()
    wait_for("the rollback", lambda: host.started("game rollback 14716837") == 1)

    host.answers["jobs 164 --json"] = {**job(words="game update", servers=[], seconds=61.5), "lines": []}
    host.answer()
    host.ends(FOLLOW)
    host.update(builds=[build(), old])
    expect(page.get_by_text("job #164 succeeded in 61.5 s")).to_be_visible()
    expect(page.get_by_role("region", name="Progress")).to_contain_text("downloading 42 %")
    expect(button(page, "Update")).to_be_enabled()


# Lost connections and strangers


def test_a_stream_that_ends_comes_back(host: FakeHost) -> None:
    host.page.clock.install()
    host.open("servers", status(row(players=2)))
    page = host.page
    expect(row_of(page, "3")).to_contain_text("2 / 8")
    host.ends(STREAM)
    expect(page.get_by_role("alert")).to_have_text("Connection lost (the stream ended); reconnecting …")
    expect(row_of(page, "3")).to_contain_text("2 / 8")
    expect(page.get_by_role("main")).to_have_css("opacity", "0.55")
    page.clock.run_for(4000)
    host.update(row(players=3))
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(row_of(page, "3")).to_contain_text("3 / 8")
    expect(page.get_by_role("main")).to_have_css("opacity", "1")


@pytest.mark.parametrize("nonsense", ["", "not JSON", '{"servers": ['])
def test_a_host_that_is_silent_or_says_nonsense_is_asked_again(host: FakeHost, nonsense: str) -> None:
    host.page.clock.install()
    host.open("servers", status())
    if nonsense:
        host.says(STREAM, nonsense)
    else:
        host.page.clock.run_for(31000)
    expect(host.page.get_by_role("alert")).to_contain_text("Connection lost")
    assert host.running(STREAM) == 0
    host.page.clock.run_for(4000)
    host.update()
    expect(host.page.get_by_role("alert")).to_be_hidden()


def test_a_host_whose_l4d2ctl_is_too_old(host: FakeHost) -> None:
    host.page.clock.install()
    host.open("servers")
    host.fails(STREAM, message="l4d2ctl: unrecognized arguments: --follow; see l4d2ctl status --help")
    expect(host.page.get_by_role("alert")).to_contain_text("unrecognized arguments: --follow")
    host.page.get_by_role("link", name="Game").click()
    host.page.clock.run_for(4000)
    assert (host.started(STREAM), host.started("doctor --json")) == (2, 0)


@pytest.mark.parametrize("problem", ["silence", "disconnected"])
def test_cockpit_is_loaded_again_when_its_own_connection_is_gone(host: FakeHost, problem: str) -> None:
    host.page.clock.install()
    host.open("servers", status())
    host.page.evaluate("window.before = true")
    # The host cannot be reached for a while.
    host.page.route("**/manifest.json", lambda route: route.abort())
    if problem == "silence":
        host.page.clock.run_for(31000 + 3000)
        assert host.started(STREAM) == 2
        host.page.clock.run_for(31000)
    else:
        host.fails(STREAM, problem="disconnected")
    host.page.clock.run_for(10000)
    assert host.page.evaluate("window.before")
    expect(host.page.get_by_role("alert")).to_contain_text("Connection lost")
    host.errors.clear()  # of the attempts
    host.page.unroute("**/manifest.json")
    with host.page.expect_event("load"):
        host.page.clock.run_for(4000)
    assert host.page.evaluate("window.before === undefined")
    host.update(row(players=7))
    expect(row_of(host.page, "3")).to_contain_text("7 / 8")


def test_a_page_that_nobody_sees_asks_nothing(host: FakeHost) -> None:
    host.open("servers", status(row(restart_due=True)))
    host.page.evaluate("cockpit.hidden = true; cockpit.dispatchEvent(new Event('visibilitychange'))")
    assert host.running(STREAM) == 0
    expect(host.page.get_by_role("alert")).to_be_hidden()
    host.page.evaluate("cockpit.hidden = false; cockpit.dispatchEvent(new Event('visibilitychange'))")
    # What it shows is old, and what is clicked waits for the host.
    expect(host.page.get_by_role("main")).to_have_css("opacity", "0.55")
    button(host.page, "Restart server 3").click()
    assert host.started("restart 3") == 0
    host.update(row(players=0, map="c2m1_highway"))
    expect(row_of(host.page, "3")).to_contain_text("c2m1_highway")
    expect(host.page.get_by_role("main")).to_have_css("opacity", "1")
    wait_for("the restart", lambda: host.started("restart 3") == 1)


@pytest.mark.parametrize(
    "said",
    [
        "sudo: a password is required",
        "sudo: interactive authentication is required",
        "Sorry, user stranger is not allowed to execute '/usr/local/sbin/l4d2ctl status' as root on game1.",
        "sudo: unable to resolve host game1: Name or service not known\nsudo: a password is required",
    ],
)
def test_a_stranger_sees_a_sentence_and_no_data(host: FakeHost, said: str) -> None:
    host.open("servers/3")
    host.fails(STREAM, message=said)
    main = host.page.get_by_role("main")
    expect(main).to_contain_text("Members of the group that the host's setting “operators” names may")
    expect(host.page.get_by_role("table")).to_have_count(0)
    # sudo has been asked once, and is again only where the user wants that.
    assert host.page.evaluate("host.all.length") == 1
    button(host.page, "Try again").click()
    host.says(STREAM, json.dumps(status()))
    expect(host.page.get_by_role("heading", name="Server 3")).to_be_visible()


def test_who_is_no_longer_a_member_sees_nothing_more(host: FakeHost) -> None:
    host.page.clock.install()
    host.open("servers", status(row(map="c5m1_waterfront")))
    expect(host.page.get_by_text("c5m1_waterfront")).to_be_visible()
    host.ends(STREAM)
    host.page.clock.run_for(4000)
    host.fails(STREAM, message="sudo: a password is required")
    expect(host.page.get_by_role("main")).to_contain_text("No access")
    assert "c5m1" not in host.page.content()
    assert "game1" not in host.page.content()


# Hostile text, looks, narrow pages


def test_text_of_strangers_stays_text(host: FakeHost) -> None:
    host.answers["doctor --json"] = [{"server": "3", "what": HOSTILE, "do": HOSTILE, "done": None}]
    host.answers["show 3 --json"] = shown(
        address=f"javascript:{HOSTILE}:1",
        players=[{"name": HOSTILE, "seconds": 1, "score": 1}],
        layers=[{"name": HOSTILE, "version": HOSTILE}],
        declared={HOSTILE: HOSTILE},
    )
    host.answers["jobs 164 --json"] = {**job(words=HOSTILE, who=HOSTILE, error=HOSTILE), "lines": [HOSTILE]}
    host.answers["jobs --json"] = [job(words=HOSTILE, who=HOSTILE)]
    said = status(
        row(map=HOSTILE, held_by=HOSTILE, held=True, restart_for=[HOSTILE], restart_due=True, state=HOSTILE),
        jobs=[job(words=HOSTILE, who=HOSTILE, result="running")],
        builds=[build(HOSTILE, trial=HOSTILE)],
        update=HOSTILE,
        host=HOSTILE,
    )
    page = host.page
    for where in ("servers", "servers/3?tab=configuration", "servers/3?tab=jobs", "jobs/164", "game"):
        host.open(where, said)
        expect(page.get_by_text("<script>").first).to_be_attached()
        assert page.locator("img").count() == 0, where
        assert page.locator("body script").count() == 0, where
        assert page.title() != "run"
        assert page.locator("a[href^='javascript'], a[href^='steam']").count() == 0
    host.open("servers/3?tab=console", said)
    page.get_by_label("Command").fill(HOSTILE)
    page.get_by_label("Command").press("Enter")
    host.says(f"rcon 3 -- {HOSTILE}", HOSTILE)
    button(page, "Reset").click()
    host.says("reset 3", HOSTILE)
    expect(acts(page)).to_contain_text("<script>")
    assert (page.locator("img").count(), page.title()) == (0, "Left 4 Dead 2: Server 3")


def test_the_page_listens_to_no_messages(host: FakeHost) -> None:
    host.open("servers", status())
    session = host.page.context.new_cdp_session(host.page)
    window = session.send("Runtime.evaluate", {"expression": "window"})["result"]["objectId"]
    listeners = session.send("DOMDebugger.getEventListeners", {"objectId": window})["listeners"]
    types = {each["type"] for each in listeners}
    assert "storage" in types  # the list is not empty for another reason
    assert "message" not in types


def test_no_width_needs_to_scroll_sideways(host: FakeHost) -> None:
    rows = [row("a-server-of-20-chars", state="deactivating", players=24, slots=24, map=LONG, restart_due=True)]
    for width in range(320, 1300, 40):
        host.page.set_viewport_size({"width": width, "height": 800})
        host.open("servers", status(*rows, row("4", state="failed")))
        expect(row_of(host.page, "4")).to_be_visible()
        needs, has = width_of_content(host.page.locator("html"))
        assert needs <= has, width
        table = host.page.locator(".servers")
        inside = table.evaluate(
            "table => table.getBoundingClientRect().right <= table.parentNode.getBoundingClientRect().right + 1"
        )
        assert inside, width


LONG = "an_unreasonably_long_name_of_a_map_or_a_player_without_any_space"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_pages_and_dark_ones(browser: Browser, scheme: str) -> None:
    colours = {"light": "rgb(242, 242, 242)", "dark": "rgb(21, 21, 21)"}
    rows = [*many(players=2, map=LONG, restart_due=True), row("4a", state="failed", held=True, held_by="anna")]
    job_of_3 = job(words=f"reset 3 {LONG}", result="running", ended=None)
    said = status(*rows, jobs=[job_of_3], builds=[build(), build("old", current=False, trial=LONG)], host=LONG)
    for width in (1280, 360):
        with fake_host(browser, viewport={"width": width, "height": 800}, color_scheme=scheme) as host:
            host.answers["show 3 --json"] = shown(
                players=[{"name": LONG, "seconds": 1e6, "score": 100000}],
                layers=[{"name": LONG, "version": LONG}],
                attic=[attic_entry()],
                declared={"server.cfg": f"hostname {LONG * 4}"},
            )
            host.answers["doctor --json"] = [{"server": "3", "what": LONG, "do": f"umount /{LONG}", "done": None}]
            host.answers["jobs 164 --json"] = {**job(words=f"reset 3 {LONG}", error=LONG), "lines": [LONG * 9]}
            host.answers["jobs --json"] = [job(words=LONG, who=LONG[:32])]
            for where in ("servers", *(f"servers/3?tab={tab}" for tab in ("log", "console", "jobs", "configuration"))):
                host.open(where, said)
                _looks(host, f"{scheme}-{width}-{where}")
                if where.endswith("log"):
                    host.says(LOG, *[LONG * 5] * 40)
                    button(host.page, "Reset").click()
                    host.says("reset 3", f"l4d2ctl: {HELD}", "job 164 failed after 15.20 s")
                    host.fails("reset 3")
                    expect(acts(host.page)).to_contain_text("failed after")
                    _looks(host, f"{scheme}-{width}-{where}-failed")
            for where in ("jobs/164", "game"):
                host.open(where, said)
                _looks(host, f"{scheme}-{width}-{where}")
            assert host.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == colours[scheme]


def _looks(host: FakeHost, name: str) -> None:
    """Keep a screenshot, and fail if the page is wider than its window."""
    expect(host.page.get_by_role("main")).not_to_contain_text("Reading the status")
    expect(host.page.get_by_role("main")).not_to_contain_text("Examining the host")
    needs, has = width_of_content(host.page.locator("html"))
    keep_screenshot(host.page, name)
    assert needs <= has, name


def test_the_style_chosen_in_cockpit_wins_and_changes_at_once(browser: Browser) -> None:
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    with fake_host(browser, color_scheme="dark") as host:
        host.open("servers", status())
        assert host.page.evaluate(colour) == "rgb(21, 21, 21)"
        # Cockpit's own document, which another one stands in for.
        shell = host.page.context.new_page()
        shell.route("**/*", lambda route: route.fulfill(body="<!DOCTYPE html>", headers={"Content-Type": "text/html"}))
        shell.goto("https://page.test/")
        for style, wanted in (
            ("light", "rgb(242, 242, 242)"),
            ("dark", "rgb(21, 21, 21)"),
            ("auto", "rgb(21, 21, 21)"),
        ):
            shell.evaluate("style => localStorage.setItem('shell:style', style)", style)
            wait_for(f"the page is {style}", lambda wanted=wanted: host.page.evaluate(colour) == wanted)  # type: ignore[misc]
        host.page.emulate_media(color_scheme="light")
        wait_for("the page is light with the system", lambda: host.page.evaluate(colour) == "rgb(242, 242, 242)")


def test_everything_has_a_name(host: FakeHost) -> None:
    host.answers["show 3 --json"] = shown(attic=[attic_entry()], players=[{"name": "Zoey", "seconds": 1, "score": 1}])
    for where in ("servers", "servers/3?tab=console", "jobs/164", "game"):
        host.open(
            where, status(row(), row("4", state="failed"), jobs=[job()], builds=[build(), build("b", current=False)])
        )
        expect(host.page.get_by_role("main")).not_to_contain_text("Reading the status")
        for element in host.page.locator(
            "button:visible, input:visible, a:visible, table:visible, [role=log]:visible"
        ).all():
            snapshot = element.aria_snapshot()
            assert re.search(r'"[^"]+"', snapshot.splitlines()[0]), f"{where}: {snapshot}"
        for heading in host.page.locator("th:not([scope])").all():
            raise AssertionError(f"{where}: {heading.inner_text()} has no scope")
