"""Roll out to a fleet in waves: pyinfra deploys, pytest verifies; this package orders, restarts and stops."""
