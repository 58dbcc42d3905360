"""The page of `make status HTML=PATH` in a browser, from a file: 200 hosts with 2,000 servers, and hostile names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from left4me import fleet_page
from tests.page.browser import keep_screenshot, width_of_content
from tests.unit.test_fleet_page import GOOD, WHEN, data, found

HOSTILE = "</td></h3><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">'\""
LONG = "an_unreasonably_long_name_without_any_space_of_a_host_or_a_map"
IDS = [str(number) for number in range(15, 25)]
NAMES = [f"game{number}.example.org" for number in range(198)] + [HOSTILE, LONG]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page. Server 20 of game7 is down, game9 has most players, all is long on LONG."""
    about = data(servers={each: {"port": 27000 + int(each), "hostname": f"Evening {each}"} for each in IDS})
    # The model refuses a quote in a hostname.
    refused = about.servers["15"].model_copy(update={"hostname": HOSTILE})
    hostile = about.model_copy(update={"servers": {**about.servers, "15": refused}})
    hosts = []
    for name in NAMES:
        rows = [replace(GOOD, id=each, port=27000 + int(each), players=int(name == NAMES[9]), slots=8) for each in IDS]
        if name == HOSTILE:
            rows[0] = replace(rows[0], map=HOSTILE)
        if name == LONG:
            rows = [replace(row, map=LONG, layers=[LONG], restart_due=True, restart_for=[LONG]) for row in rows]
        if name == NAMES[7]:
            rows[5] = replace(rows[5], state="failed", players=None)
        url = f"https://{name}:9090" if name.startswith("game") else None
        hosts.append(found(name, *rows, url=url, about=hostile if name == HOSTILE else about))
    path = tmp_path_factory.mktemp("fleet") / "fleet.html"
    fleet_page.write(str(path), fleet_page.render(hosts, "../fleet/inventory", [], WHEN))
    return path


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    """Open the page; fail if the browser reports anything, such as a script that its policy refuses."""
    said: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.extend([] if request.is_navigation_request() else [request.url]))
        page.goto(file.as_uri())
        # The policy allows its own script and style.
        expect(page.get_by_role("search")).to_be_visible()
        expect(page.locator("dl")).to_have_css("display", "flex")
        yield page
    assert said == []


def host(page: Page, name: str) -> Locator:
    return page.get_by_role("article").filter(has=page.get_by_role("heading", name=name, exact=True))


def test_all_servers_can_be_searched(page: Page) -> None:
    articles, search = page.get_by_role("article"), page.get_by_label("Search")
    assert page.locator("tbody tr").count() == 2000
    expect(articles).to_have_count(200)
    expect(page.locator("tbody tr:visible")).to_have_count(0)
    search.fill("GAME7.example evening 20")
    expect(page.get_by_role("status")).to_have_text("1 server on 1 host")
    expect(articles).to_have_count(1)
    expect(page.locator("tbody tr:visible")).to_contain_text("Evening 20")
    search.fill("27024")
    expect(page.get_by_role("status")).to_have_text("200 servers on 200 hosts")
    expect(page.locator("tbody tr:visible")).to_have_count(200)
    search.fill("nowhere")
    expect(page.get_by_role("status")).to_have_text("0 servers on 0 hosts")
    expect(articles).to_have_count(0)
    # The end of a search brings back what was open.
    search.fill("")
    host(page, NAMES[3]).locator("summary").click()
    search.fill("evening 20")
    search.fill("")
    expect(page.locator("tbody tr:visible")).to_have_count(len(IDS))
    expect(host(page, NAMES[3]).get_by_role("row")).to_have_count(1 + len(IDS))


def test_hosts_can_be_sorted(page: Page) -> None:
    names, order = page.locator("article h3"), page.get_by_label("Sort hosts by")

    def first(count: int) -> list[str]:
        return names.all_text_contents()[:count]

    assert first(4) == [NAMES[7], LONG, *NAMES[:2]]  # what needs attention
    order.select_option("players")
    assert first(2) == [NAMES[9], NAMES[7]]
    order.select_option("name")
    assert [each for each in names.all_text_contents() if each.startswith("game")] == NAMES[:198]
    order.select_option("attention")
    assert first(3) == [NAMES[7], LONG, NAMES[0]]


def test_its_links_lead_to_the_hosts(page: Page) -> None:
    page.route("**/left4me", lambda route: route.fulfill(body="<!DOCTYPE html><title>Cockpit</title>"))
    expect(page.get_by_role("link")).to_have_count(0)  # all hosts are closed
    assert host(page, LONG).locator("a").count() == 0
    for link, address in (("Operate the servers of game7.example.org", "servers"), ("20", "servers/20")):
        host(page, NAMES[7]).locator("summary").click()
        host(page, NAMES[7]).get_by_role("link", name=link, exact=True).click()
        expect(page).to_have_url(f"https://game7.example.org:9090/left4me#/{address}")
        page.go_back()


def test_hostile_names_are_text(page: Page) -> None:
    page.get_by_label("Search").fill("<script>")
    hostile = page.get_by_role("article")
    expect(hostile.get_by_role("heading")).to_have_text(HOSTILE)
    expect(page.locator("tbody tr:visible").first.get_by_role("cell").first).to_have_text(HOSTILE)
    assert hostile.locator("td", has_text="onerror").all_text_contents() == [HOSTILE, HOSTILE]
    assert page.locator("body script").count() == 1  # its own
    assert page.locator("img").count() == 0
    assert page.title() == "fleet/inventory: servers of all hosts"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_needs_to_scroll_sideways(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.get_by_label("Search").fill("evening 20")  # opens all hosts
    for width in (320, 360, 800, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        needs, has = width_of_content(page.locator("html"))
        assert needs <= has == width
        wide = page.evaluate("""() => [...document.querySelectorAll("details")]
            .filter(each => each.scrollWidth > each.clientWidth).map(each => each.textContent.slice(0, 100))""")
        assert wide == [], width
    page.set_viewport_size({"width": 360, "height": 800})
    page.get_by_label("Search").fill("unreasonably")
    keep_screenshot(page, f"fleet-{scheme}-360")
