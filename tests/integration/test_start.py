"""The thinnest thread: deploy, play, stop."""

from tests.boxes.boxes import Box
from tests.integration.harness import name_over_a2s, overlays, properties, wait_for_server


def test_a_deployed_server_answers_and_stops_clean(deployed: Box) -> None:
    wait_for_server(deployed, 27015)
    assert name_over_a2s(deployed, 27015) == "three"
    deployed.run("systemctl stop left4me-server@3")
    assert properties(deployed, "left4me-server@3", "ActiveState") == {"ActiveState": "inactive"}
    assert overlays(deployed) == ["/var/lib/left4me/runtime/4/merged"]
