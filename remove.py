"""pyinfra INVENTORY remove.py --limit HOST: takes left4me off one host; docs/removing.md tells what stays."""

from left4me.deploys import removal

removal.removal()
