"""The directories of /var/lib/left4me."""

from pyinfra.api.deploy import deploy

from left4me import declared, facts, operations


@deploy("Layout")
def layout() -> None:
    """Make the directories, with the owners that let the game write in merged/ and nowhere else."""
    operations.place(name="Lay out the directories", items=declared.directories(facts.declared_here()))
