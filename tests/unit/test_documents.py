"""The documents' links, and the version: one number everywhere, and what `l4d2ctl --version` prints."""

import re
import tomllib
from pathlib import Path

import pytest

from left4me_host import VERSION, commands, layout

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("document", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_every_link_leads_to_a_file(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_pyproject_and_the_library_have_one_version() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == VERSION


def test_the_changelog_has_the_version() -> None:
    assert f"\n## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("noted", "shown"), [("abc1234+\n", " (revision abc1234+)"), ("", ""), (None, "")])
def test_l4d2ctl_prints_version_and_revision(
    noted: str | None,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if noted is not None:
        (tmp_path / "revision").write_text(noted, encoding="utf-8")
    monkeypatch.setattr(layout, "REVISION", str(tmp_path / "revision"))
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"l4d2ctl {VERSION}{shown}\n"
