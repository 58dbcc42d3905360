"""Snapshots: boxes that begin as another one ended, and are boxes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_boxes import Checkout, _api, new_checkout

KEPT = """
[one] = up(["one"])
one.run("echo kept >/etc/kept; echo data >/var/lib/data; rm /etc/issue; mkdir /etc/emptied; touch /etc/emptied/f")
one.run("rm -r /etc/skel; mkdir /etc/skel; logger of-the-one; mkdir -m 1777 /srv/sticky; chown 1000 /srv/sticky")
one.keep(one.directory.parent / "snapshots/try")
"""
UP = """
from tests.boxes.system import STATE
up(["a", "b"], snapshot=STATE / "snapshots/try")
"""
IDENTITY = "cat /etc/machine-id /etc/hostname /etc/hosts /etc/ssh/ssh_host_ed25519_key.pub; hostname"


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    with new_checkout() as made:
        yield made


def everything(folder: Path) -> str:
    """Return type, mode, owner, time of change, size, target, name and content of all below a directory."""
    find = f"find {folder} -printf '%y %m %U %G %C@ %s %l %p\\n' | sort; find {folder} -type f | sort | xargs sha256sum"
    return subprocess.run(["sh", "-c", find], capture_output=True, text=True, check=True).stdout


def test_boxes_of_a_snapshot_have_what_it_had_and_are_boxes_of_their_own(checkout: Checkout) -> None:
    _api(checkout, KEPT)
    assert checkout.listed() == {}
    snapshot = checkout.path / ".boxes/snapshots/try"
    before = everything(snapshot)
    assert "upper/etc/kept" in before
    assert all(left not in before for left in ("upper/etc/machine-id", "ssh_host", "journal/", "authorized_keys"))

    _api(checkout, UP)
    state = "systemctl is-system-running; cat /etc/kept /var/lib/data; ls /etc/issue /etc/skel /etc/emptied 2>&1"
    listed = checkout.ssh("a", state, check=False).splitlines()
    assert listed[:3] == ["running", "kept", "data"]
    assert "cannot access '/etc/issue'" in listed[3]
    assert listed[4:] == ["/etc/emptied:", "f", "", "/etc/skel:"]
    assert checkout.ssh("b", "stat -c '%a %u' /srv/sticky") == "1777 1000"
    ours, theirs = checkout.ssh("a", IDENTITY).split(), checkout.ssh("b", IDENTITY).split()
    assert set(ours) & set(theirs) == {"ssh-ed25519", "127.0.0.1", "127.0.1.1", "localhost"}
    assert checkout.ssh("a-admin", "id -un") == "admin"
    for name in "ab":
        assert checkout.ssh(name, "journalctl --list-boots --quiet | wc -l; ls /var/log/journal | wc -l") == "1\n1"
        assert "of-the-one" not in checkout.ssh(name, "journalctl")

    # What becomes of one is nobody else's, and is its own over a power cut.
    checkout.ssh("a", "echo mine | tee /etc/kept /var/lib/data; rm -r /etc/emptied; sync")
    checkout.box("crash", "a")
    checkout.box("start", "a")
    assert checkout.ssh("a", "cat /etc/kept /var/lib/data; ls -d /etc/emptied || true") == "mine\nmine"
    assert checkout.ssh("b", "cat /etc/kept /var/lib/data; ls /etc/emptied") == "kept\ndata\nf"
    assert everything(snapshot) == before

    # Without it there is nothing to start from, and a line says so.
    checkout.box("crash", "a")
    subprocess.run(["rm", "-r", snapshot], check=True)
    said = checkout.box("start", "a", check=False)
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert f"{snapshot}/upper is missing; run ./box down a, then ./box up a" in said.stderr
