"""pyinfra INVENTORY remove.py --limit HOST: takes left4me off one host; docs/removing.md tells what stays."""

from left4me import removal

removal.removal()
