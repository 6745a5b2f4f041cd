"""Shared by all tests: an absolute wall-clock limit for each one, and the hypothesis profiles.

The limit is wall clock on purpose: a test under virtual time can hang for ever without its own clock moving.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from types import FrameType

import hypothesis
import pytest
import trio

# A shell starts what it puts into the background with Ctrl-C ignored; processes below inherit that, but tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.support.fixtures"]

#: No test needs longer; below faulthandler_timeout, so that a test that resists still leaves its stacks.
LIMIT_S_DEFAULT = 90.0
#: After the limit the alarm repeats at this distance, so that a clean-up that hangs ends as well, and each
#: example that hypothesis tries again while it shrinks one that hung.
REPEAT_S = 3.0

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, max_examples=300)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class _Limit:
    """The alarm of one test: ends the trio run it hangs in; raises where there is none or that fails."""

    def __init__(self, limit_s: float) -> None:
        self.message = f"exceeded the absolute limit of {limit_s:g} s"
        self.rang = False
        self._told: trio.lowlevel.TrioToken | None = None

    def fail(self) -> None:
        pytest.fail(self.message)

    def ring(self, _signal: int, _frame: FrameType | None) -> None:
        self.rang = True
        try:
            running = trio.lowlevel.current_trio_token()
        except RuntimeError:
            running = None
        if running is None or running is self._told:
            self.fail()
        else:
            # Raised here it could hit the middle of the scheduler and leave it unusable for later tests;
            # raised from within the run it cancels every task and surfaces from trio.run.
            self._told = running
            running.run_sync_soon(self.fail)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """End a test that takes longer than its limit; the next tests still run."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return (yield)
    marker = item.get_closest_marker("limit_s")
    limit_s = float(marker.args[0]) if marker else LIMIT_S_DEFAULT
    limit = _Limit(limit_s)
    earlier = signal.signal(signal.SIGALRM, limit.ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s, REPEAT_S)
    try:
        result = yield
    except Exception as error:
        if limit.rang:
            raise pytest.fail.Exception(limit.message) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, earlier)
    if limit.rang:
        limit.fail()
    return result
