"""A server is stopped by hand: down and green all along, until it is started by hand."""

from tests.stories.operator import Operator


def test_a_server_stopped_by_hand_stays_down_and_all_is_green(operator: Operator) -> None:
    host = operator.host()
    operator.on(host, "l4d2ctl stop 3")
    operator.types(f"make verify INVENTORY={operator.inventory}", "stopped by hand", "l4d2ctl start 3")
