"""A fleet in waves: pyinfra deploys, pytest proves; this has the order, the restarts, and the stop at a bad sign."""
