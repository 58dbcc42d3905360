"""The programs on the host."""

from pyinfra.api.deploy import deploy

from left4me import declared, facts, operations


@deploy("Programs")
def programs() -> None:
    """Install the overlay helper, l4d2ctl, and who may run it."""
    operations.place(name="Install the overlay helper and l4d2ctl", items=declared.programs(facts.declared_here()))
