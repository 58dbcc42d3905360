"""SourceMod as its own archive has it: refused with what is missing, then where the game looks; and a cfg misspelt."""

from __future__ import annotations

import io
import tarfile

from tests.integration.ctl import LAYERS, main_pid
from tests.integration.harness import SERVERS, wait_for_server
from tests.integration.sources import serving
from tests.integration.test_webhook import outside
from tests.stories.operator import Operator

PLUGIN = "addons/sourcemod/plugins/welcome.smx"
FILES = {PLUGIN: b"a plugin", "addons/metamod.vdf": b"a vdf", "cfg/sourcemod/evening.cfg": b"sv_gravity 555\n"}


def archive() -> bytes:
    """Pack files as SourceMod's releases have them: addons/ and cfg/ on top."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as packed:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return data.getvalue()


def test_sourcemod_works_from_its_own_archive(operator: Operator) -> None:
    host = operator.host()
    deploy, verify = f"pyinfra {operator.inventory} deploy.py -y", f"make verify INVENTORY={operator.inventory}"
    playing = main_pid(host, "3")
    with serving(outside(host)) as web:
        sourcemod = web.archive("/sourcemod-1.12.tar.gz", archive())
        three = {**SERVERS["3"], "layers": ["sourcemod"], "exec": ["sourcemod/evenng.cfg"]}

        operator.declare({**SERVERS, "3": three}, layers={**LAYERS, "sourcemod": sourcemod})
        what = 'layer sourcemod: has no left4dead2/ at the top, only addons/, cfg/: add "into": "left4dead2"'
        operator.types(deploy, f"[{host.name}] {what}", code=1)
        assert main_pid(host, "3") == playing
        assert host.run("ls -A /var/lib/left4me/overlays/sourcemod").stdout == ""

        operator.declare({**SERVERS, "3": three}, layers={**LAYERS, "sourcemod": {**sourcemod, "into": "left4dead2"}})
        operator.types(deploy, "restart required: 3")
        operator.types(verify, "server 3: exec sourcemod/evenng.cfg: the file is in none of its layers", code=2)

        three["exec"] = ["sourcemod/evening.cfg"]
        operator.declare({**SERVERS, "3": three}, layers={**LAYERS, "sourcemod": {**sourcemod, "into": "left4dead2"}})
        operator.types(deploy)
    operator.on(host, "l4d2ctl restart 3")
    wait_for_server(host, 27015)
    # Where the game looks, as the running game has it.
    seen = host.run(f"cat /proc/{main_pid(host, '3')}/root/var/lib/left4me/runtime/3/merged/left4dead2/{PLUGIN}")
    assert seen.stdout == "a plugin"
    operator.on(host, "l4d2ctl rcon 3 sv_gravity", "555")
    operator.types(verify, never=["failed", "pending:"])
