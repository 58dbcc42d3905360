"""The root helper that mounts a server's overlay."""

from pyinfra.api.deploy import deploy

from left4me import declared, operations
from left4me.deploys import declared_here


@deploy("Helper")
def helper() -> None:
    """Install left4me-overlay."""
    operations.place(name="Install the overlay helper", items=declared.helper(), declares=declared_here())
