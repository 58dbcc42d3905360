"""The servers that the data names."""

from pyinfra.api.deploy import deploy

from left4me import declared, facts, operations, versions


@deploy("Servers")
def files() -> None:
    """Write each server's files and enable it."""
    items = declared.servers(versions.resolved(facts.declared_here()))
    operations.place(name="Write the servers' files", items=items)


@deploy("Revision")
def revision() -> None:
    """Note on the host which revision it is at; nothing that failed before comes here."""
    operations.place(name="Note the revision", items=declared.deployed())


@deploy("Records")
def record() -> None:
    """Keep what servers run with comparable, before this deploy changes units and servers' files."""
    operations.record(name="Record what running servers were started with")


@deploy("Pending")
def report() -> None:
    """End with what is pending."""
    operations.report(name="Say what is pending", items=declared.servers(versions.resolved(facts.declared_here())))


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
