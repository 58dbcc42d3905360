"""The files of the page: what Cockpit's content security policy and our own rules forbid is not in them."""

import inspect
import json
import re
from pathlib import Path

import pytest

from left4me_host import commands, layout

PAGE = Path(__file__).parent.parent.parent / "files/cockpit"
FILES = sorted(path for path in PAGE.iterdir() if path.name != "manifest.json")
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
FORBIDDEN = {
    "superuser is full root": r"superuser",
    "text that could become an element": r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|srcdoc",
    "text that could become a program": r"\beval\b|new Function|setTimeout\(\s*[\"'`]|javascript:",
    "messages of other windows": r"addEventListener\(\s*[\"']message|onmessage|postMessage",
    "another machine": r"https?:|//[a-z]+\.[a-z]",
    "an inline style or handler": r"<style|\sstyle=|\son[a-z]+=\"|setAttribute\(\"style",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_has_what_is_forbidden(what: str) -> None:
    for path in FILES:
        found = re.search(FORBIDDEN[what], path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found and found[0]}"


def test_one_file_runs_programs() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in SCRIPTS}
    assert [name for name, text in texts.items() if "cockpit.spawn" in text] == ["ctl.js"]
    assert [name for name, text in texts.items() if '"sudo"' in text or layout.CTL in text] == ["ctl.js"]
    assert f'["sudo", "-n", "{layout.CTL}"]' in texts["ctl.js"]
    assert not [name for name, text in texts.items() if re.search(r"cockpit\.(file|dbus|http|channel|script)\b", text)]


def test_the_document_names_every_file_and_no_script_is_inline() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>([^<]*)</script>", text) == [""] * text.count("<script")
    named = set(re.findall(r'(?:href|src)="([^"#]+)"', text)) - {"../base1/cockpit.js"}
    assert named == {path.name for path in FILES} - {"index.html"}


def test_every_import_is_exported() -> None:
    exported = {
        path.name: set(re.findall(r"^export (?:async )?(?:const|class|function) (\w+)", path.read_text(), re.MULTILINE))
        for path in SCRIPTS
    }
    for path in SCRIPTS:
        for names, source in re.findall(r'^import \{([^}]+)\} from "\./([^"]+)";', path.read_text(), re.MULTILINE):
            imported = {name.strip() for name in names.split(",") if name.strip()}
            assert imported <= exported[source], f"{path.name} from {source}"
            text = path.read_text()
            unused = {name for name in imported if len(re.findall(rf"\b{name}\b", text)) == 1}
            assert not unused, f"{path.name} does not use {unused}"


def test_an_address_names_a_server_by_what_is_an_id() -> None:
    text = (PAGE / "page.js").read_text(encoding="utf-8")
    assert rf"[/^servers\/({layout.SERVER_ID})$/, ServerView]" in text


def test_a_job_that_is_missing_is_known_by_what_l4d2ctl_says() -> None:
    [missing] = re.findall('MISSING = "(.+)";', (PAGE / "jobs.js").read_text(encoding="utf-8"))
    assert missing in inspect.getsource(commands)


def test_the_manifest() -> None:
    manifest = json.loads((PAGE / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["requires"] == {"cockpit": "287"}
    assert manifest["conditions"] == [{"path-exists": layout.CTL}]
    assert manifest["tools"] == {"index": {"label": "Left 4 Dead 2", "path": "index.html"}}
    assert "content-security-policy" not in manifest  # Cockpit's own stays
