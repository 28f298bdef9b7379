"""What the tests of the training loop share."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture
def ctrl_c():
    """Let Ctrl-C raise KeyboardInterrupt, as it does but for jobs in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
