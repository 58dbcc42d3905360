"""What systemd knows of left4me."""

from pyinfra.api.deploy import deploy

from left4me import declared, facts, operations


@deploy("Units")
def units() -> None:
    """Install the template unit and the slice."""
    operations.place(name="Install the systemd units", items=declared.units(facts.declared_here()))


@deploy("Reload")
def reload() -> None:
    """Have systemd read its files again where it needs to."""
    operations.reload_systemd(name="Reload systemd where it needs it")
