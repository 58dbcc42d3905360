"""The servers that the data names."""

from pyinfra.api.deploy import deploy

from left4me import declared, operations
from left4me.deploys import declared_here


@deploy("Servers")
def files() -> None:
    """Write each server's files and enable it; take away what nobody declared."""
    host = declared_here()
    items = declared.servers(host, operations.current(host))
    operations.place(name="Write the servers' files", items=items, declares=host)
    operations.remove_undeclared(name="Remove what is not declared", declares=host)


@deploy("Start")
def start() -> None:
    """Start the servers that do not run."""
    operations.start_servers(name="Start the servers that do not run", declares=declared_here(), _timeout=120)
