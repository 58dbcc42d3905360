"""What the game needs of Debian."""

from pyinfra.api.deploy import deploy

from left4me import operations


@deploy("Packages")
def packages() -> None:
    """Install the 32-bit libraries that srcds is linked against."""
    operations.packages(name="Install the i386 libraries that srcds needs", _timeout=900)
