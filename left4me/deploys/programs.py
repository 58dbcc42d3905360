"""The programs on the host."""

from pyinfra.api.deploy import deploy

from left4me import declared, operations
from left4me.deploys import declared_here


@deploy("Programs")
def programs() -> None:
    """Install the overlay helper, l4d2ctl, and who may run it."""
    host = declared_here()
    operations.place(name="Install the overlay helper and l4d2ctl", items=declared.programs(host), declares=host)
