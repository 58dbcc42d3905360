"""Test boxes: real Debian machines with systemd, made of systemd-nspawn on a mmdebstrap image."""
