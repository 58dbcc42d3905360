"""What systemd knows of left4me."""

from pyinfra.api.deploy import deploy

from left4me import declared, operations
from left4me.deploys import declared_here


@deploy("Units")
def units() -> None:
    """Install the template unit and the slice."""
    host = declared_here()
    operations.place(name="Install the systemd units", items=declared.units(host), declares=host)


@deploy("Reload")
def reload() -> None:
    """Have systemd read its files again where it needs to."""
    operations.reload_systemd(name="Reload systemd where it needs it", declares=declared_here())
