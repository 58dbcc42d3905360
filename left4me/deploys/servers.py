"""The servers that the data names."""

from pyinfra import logger
from pyinfra.api.deploy import deploy
from pyinfra.context import host

from left4me import declared, facts, operations, startup, versions


@deploy("Servers")
def files() -> None:
    """Write each server's files and enable it."""
    items = declared.servers(versions.resolved(facts.declared_here()))
    operations.place(name="Write the servers' files", items=items)
    if startup.changes_nothing() and (servers := operations.restarts(items)):
        logger.info(f"{host.print_prefix}{declared.RESTARTS}: {', '.join(servers)}")


@deploy("Revision")
def revision() -> None:
    """Note on the host which revision it is at; nothing that failed before comes here."""
    operations.place(name="Note the revision", items=declared.deployed())


@deploy("Removal")
def removal() -> None:
    """Take away what nobody declares any more."""
    operations.remove_servers(name="Remove the servers that are not declared", _timeout=300)
    operations.remove_undeclared(name="Remove what is not declared")


@deploy("Start")
def start() -> None:
    """Stop the servers that are declared as stopped; start those that do not run, and the timer."""
    operations.stop_servers(name="Stop the servers that are to be down", _timeout=120)
    operations.start_servers(name="Start the servers that do not run", _timeout=120)
