"""What all tests need of the process that runs them."""

from __future__ import annotations

import signal

# A shell has its background jobs ignore it, and all that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
