"""Ctrl-C in the middle of a deploy: it says so and ends, the evening goes on, and the same command finishes it."""

from tests.integration import sources
from tests.integration.ctl import LAYERS, main_pid
from tests.integration.harness import SERVERS, wait_for_server
from tests.integration.layers import merged
from tests.integration.test_webhook import outside
from tests.stories.operator import Operator


def test_a_deploy_that_is_interrupted_is_finished_by_the_same_command(operator: Operator) -> None:
    host = operator.host()
    deploy = f"pyinfra {operator.inventory} deploy.py"
    before = [main_pid(host, server) for server in SERVERS]
    files = host.run("find /etc/left4me /usr/local -type f | xargs sha256sum").stdout

    with sources.serving(outside(host)) as site:
        # A layer comes from a site that sends half of it, and no more.
        evening = site.archive("/evening.zip", sources.tree("zip", {"left4dead2/evening.txt": b"good evening" * 1000}))
        site.held.add("/evening.zip")
        three = {**SERVERS["3"], "layers": ["evening", "layer"]}
        operator.declare({**SERVERS, "3": three}, layers={**LAYERS, "evening": evening})

        # He looks at what would change, and leaves it at that.
        with operator.begins(deploy) as looking:
            looking.sees("Detected changes")
            looking.types("\x03")
            looking.ends("Interrupted: nothing has changed.", code=130, never=["half done"])
        assert site.downloads() == []

        # He begins it, and loses patience.
        with operator.begins(f"{deploy} -y") as deploying:
            assert site.holding.wait(60), "nobody downloads the layer"
            deploying.types("\x03")
            deploying.ends("Interrupted: hosts may be half done. Run the same command again to finish them.", code=130)
        assert [main_pid(host, server) for server in SERVERS] == before
        assert host.run("find /etc/left4me /usr/local -type f | xargs sha256sum").stdout == files

        # The site has recovered, and so has he.
        site.go_on.set()
        operator.types(f"{deploy} -y", "restart required: 3: l4d2ctl restart 3")
    operator.types(f"{deploy} -y", "No changes")
    operator.on(host, "l4d2ctl restart 3")
    wait_for_server(host, 27015)
    assert merged(host, "evening.txt").read_text().startswith("good evening")
    operator.types(f"make verify INVENTORY={operator.inventory}", never=["pending:", "failed"])
