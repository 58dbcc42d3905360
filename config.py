"""pyinfra runs this file first, before it reads the inventory."""

from left4me import startup

startup.install()
