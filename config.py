"""pyinfra runs this file first, before it reads the inventory."""

from left4me import pyinfra_hooks

pyinfra_hooks.install()
