"""Test boxes: Debian machines with systemd, run by systemd-nspawn on an image made by mmdebstrap."""
