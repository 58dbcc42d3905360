"""A host that deploys itself, as `@local`: with this checkout and its environment on it."""

from __future__ import annotations

import secrets
import site
import subprocess
import sys

import pytest

from tests.boxes.boxes import Box
from tests.integration.harness import GAME, ROOT, SERVERS, wait_for_server

# Its Python takes this one's packages where both are of one version.
DEBIANS = {(3, 11): 12, (3, 13): 13}
NOT_ASKED = ["--exclude=mypy*", "--exclude=ruff*", "--exclude=__pycache__"]


@pytest.fixture(
    scope="module", params=[pytest.param(DEBIANS.get(sys.version_info[:2]), id="the Python that runs this")]
)
def debian(request: pytest.FixtureRequest) -> int:
    if not request.param:
        pytest.skip("no Debian here has the Python that runs the tests")
    number: int = request.param
    return number


def put(box: Box, target: str, *what: str) -> None:
    """Unpack files of this machine in a box; `what` are tar's arguments."""
    packed = subprocess.run(["tar", "-c", *NOT_ASKED, *what], stdout=subprocess.PIPE, check=True).stdout
    box.run(f"mkdir -p {target} && tar -x -C {target}", input=packed, timeout=120)


def test_a_host_rolls_itself_out(box: Box, game: object) -> None:
    [packages] = site.getsitepackages()
    put(box, "/root/packages", "-C", packages, ".")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    put(box, "/root/left4me", "-C", str(ROOT), GAME["path"], *tracked)
    data = {"game": GAME, "servers": {**SERVERS, "4": {**SERVERS["4"], "rcon_password": "PASSWORD"}}}
    hosts = repr(data).replace("'PASSWORD'", "os.environ['RCON_PASSWORD']")
    box.run("cat >/root/inventory", input=f"import os\nhosts = [('@local', {hosts})]\n".encode())
    # As an operator's shell has it: in no command line.
    box.run("cat >/root/environment", input=f"export RCON_PASSWORD={secrets.token_hex(8)}\n".encode())
    rollout = ". /root/environment && cd /root/left4me && "
    rollout += "PYTHONPATH=/root/packages python3 rollout.py /root/inventory -y"
    said = box.run(rollout, timeout=300).stdout
    assert "Done and verified: 1 host." in said
    for server in SERVERS.values():
        wait_for_server(box, server["port"])
    assert "nothing to change" in box.run(rollout, timeout=300).stdout
