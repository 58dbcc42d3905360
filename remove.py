"""pyinfra INVENTORY remove.py --limit HOST: removes left4me from one host; docs/removing.md says what stays."""

from left4me import removal

removal.removal()
