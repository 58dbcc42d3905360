"""left4me: Left 4 Dead 2 game servers on one's own Debian hosts."""
