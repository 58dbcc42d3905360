"""A page whose host is this test: it shows what the test says, and records what the page runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Route

from tests.integration.harness import ROOT, wait_for

FILES = ROOT / "files/cockpit"
ADDRESS = "https://page.test/left4me/index.html"
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".json": "application/json"}
# Cockpit's own policy for pages, of both versions.
POLICY = (
    "default-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'self'; object-src 'none'; "
    "font-src 'self' data:; img-src 'self' data:"
)
STREAM = "status --json --follow"


def row(server: str = "3", **different: Any) -> dict[str, Any]:
    """Return a server's row as `status --json` prints it: it runs without players."""
    return {
        **{"id": server, "state": "active", "since": "Sun 2026-11-29 09:14:05 UTC", "held": False, "port": 27015},
        **{"map": "c1m1_hotel", "players": 0, "slots": 8, "unanswered_since": None, "layers": ["sourcemod"]},
        **{"memory": 412 * 2**20, "restart_due": False, "next_map": False, "revision": "abc1234", "build": "14716838"},
        **{"build_due": False, "reset_unfinished": False, "held_by": "", "reset_finished": "", "restart_for": []},
        **{"dropped": {}},
        **different,
    }


def job(number: int = 164, **different: Any) -> dict[str, Any]:
    """Return a job as `jobs --json` prints it: a reset of server 3 that succeeded."""
    return {
        **{"job": number, "verb": "reset", "servers": ["3"], "words": "reset 3", "who": "anna", "origin": ""},
        **{"begun": 1764406000.12, "ended": 1764406001.42, "steps": {"stop": 0.31, "reset": 0.01, "start": 0.98}},
        **{"result": "succeeded", "seconds": 1.3, "error": "", "line_count": 1},
        **different,
    }


def build(name: str = "14716838", **different: Any) -> dict[str, Any]:
    """Return a build as `game status --json` prints it: the current one."""
    return {
        **{"build": name, "current": True, "since": "2026-11-20 10:00", "trial": "good", "servers": ["3"]},
        **{"declared_for": []},
        **different,
    }


def status(*rows: dict[str, Any], **different: Any) -> dict[str, Any]:
    """Return what the stream says: server 3 alone, or `rows`."""
    return {
        **{"servers": list(rows or [row()]), "jobs": [], "builds": [build()], "update": "", "host": "game1"},
        **different,
    }


def attic_entry(when: str = "20261128T150312.123456789", **different: Any) -> dict[str, Any]:
    """Return a row of `attic --json`: the reset that the next undo brings back."""
    path = f"/var/lib/left4me/attic/3@{when}"
    return {"id": "3", "when": when, "by": "reset", "next": True, "path": path, **different}


def shown(**different: Any) -> dict[str, Any]:
    """Return what `show 3 --json` prints."""
    return {
        **{"status": row(), "address": "198.18.1.2:27015", "players": []},
        **{"layers": [{"name": "sourcemod", "version": "1.12-7210"}], "attic": []},
        **{"limits": {"memory_max": 2 * 2**30, "cpu_weight": 100, "nice": -5}},
        **{"declared": {"server.env": "LEFT4ME_PORT=27015\n", "server.cfg": 'hostname "three"\n', "keep": ""}},
        **different,
    }


class FakeHost:
    """What the page's host says."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        """What the browser reports on its console."""
        self.answers: dict[str, Any] = {
            "doctor --json": [],
            "jobs --json": [job()],
            "show 3 --json": shown(),
            "jobs 164 --json": {**job(), "lines": ["server 3: 1.30 s in all"]},
        }
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route("**/*", self._serve)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _serve(self, route: Route) -> None:
        name = route.request.url.removeprefix("https://page.test/").partition("?")[0]
        path = Path(__file__).parent / "cockpit.js" if name == "base1/cockpit.js" else ROOT / "files" / name
        path = FILES / name.removeprefix("left4me/") if name.startswith("left4me/") else path
        if not path.is_file():
            return route.fulfill(status=404)
        headers = {"Content-Type": TYPES[path.suffix], "Content-Security-Policy": POLICY}
        return route.fulfill(body=path.read_bytes(), headers=headers)

    def open(self, where: str, *said: dict[str, Any]) -> None:
        """Open a view, and let the stream say objects."""
        self.page.goto("about:blank")
        self.page.goto(f"{ADDRESS}#/{where}")
        self.answer()
        for each in said:
            self._stream(each)

    def answer(self) -> None:
        """Let the host answer with `answers` from now on."""
        answers = {words: json.dumps(each) for words, each in self.answers.items()}
        self.page.evaluate("answers => Object.assign(host.answers, answers)", answers)

    def update(self, *rows: dict[str, Any], **different: Any) -> None:
        """Let the stream say another status."""
        self._stream(status(*rows, **different))

    def _stream(self, said: dict[str, Any]) -> None:
        for each in said["servers"]:
            self.answers[f"status --json {each['id']}"] = [each]
        self.answer()
        self.says(STREAM, json.dumps(said))

    def says(self, words: str, *lines: str) -> None:
        """Let the latest running l4d2ctl with these words print lines. Waits until the page has started it."""
        self._on(words, "say", "".join(f"{line}\n" for line in lines))

    def ends(self, words: str) -> None:
        """Let it exit with 0."""
        self._on(words, "end", None)

    def fails(self, words: str, **problem: Any) -> None:
        """Let it fail: `message`, `exit_status` and `problem` are those of cockpit.spawn."""
        self._on(words, "fail", {"problem": None, "message": "exited with code 1", "exit_status": 1, **problem})

    def _on(self, words: str, act: str, argument: Any) -> None:
        wait_for(f"the page runs {words}", lambda: self.running(words) > 0)
        self.page.evaluate(
            "([words, act, argument]) => host.running(words).at(-1)[act](argument)", [words, act, argument]
        )

    def started(self, words: str) -> int:
        """Return how often the page has started l4d2ctl with these words."""
        return int(self.page.evaluate("words => host.started(words)", words))

    def running(self, words: str) -> int:
        """Return how many l4d2ctl with these words run."""
        return int(self.page.evaluate("words => host.running(words).length", words))


@contextmanager
def fake_host(browser: Browser, **context: Any) -> Iterator[FakeHost]:
    """Yield a page with a fake host, and fail if the browser has reported an error."""
    with browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}) as opened:
        host = FakeHost(opened.new_page())
        yield host
        assert host.errors == []
