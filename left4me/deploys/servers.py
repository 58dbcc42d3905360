"""The servers that the data names."""

from pyinfra import logger
from pyinfra.api.deploy import deploy
from pyinfra.context import host as at_hand

from left4me import declared, operations, startup, versions
from left4me.deploys import declared_here


@deploy("Servers")
def files() -> None:
    """Write each server's files and enable it."""
    host = declared_here()
    items = declared.servers(versions.resolved(host))
    operations.place(name="Write the servers' files", items=items, declares=host)
    if startup.changes_nothing() and (servers := operations.restarts(items, host)):
        logger.info(f"{at_hand.print_prefix}{declared.RESTARTS}: {', '.join(servers)}")


@deploy("Revision")
def revision() -> None:
    """Note on the host which revision it is at; nothing that failed before comes here."""
    operations.place(name="Note the revision", items=declared.deployed(), declares=declared_here())


@deploy("Removal")
def removal() -> None:
    """Take away what nobody declares any more."""
    host = declared_here()
    operations.remove_servers(name="Remove the servers that are not declared", declares=host, _timeout=300)
    operations.remove_undeclared(name="Remove what is not declared", declares=host)


@deploy("Start")
def start() -> None:
    """Stop the servers that are declared as stopped; start those that do not run, and the timer."""
    host = declared_here()
    operations.stop_servers(name="Stop the servers that are to be down", declares=host, _timeout=120)
    operations.start_servers(name="Start the servers that do not run", declares=host, _timeout=120)
