"""Ctrl-C during a training run belongs to whoever trains, not to Ray."""

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from toque.functions.training.loop.keeping import interruptible


def _leave(*_: object) -> None:
    sys.exit(0)


def _fail(*_: object) -> None:
    raise ValueError("the run was aborted")


def _swallow(*_: object) -> None:
    pass


def test_the_callers_signal_handler_is_restored():
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        signal.signal(signal.SIGINT, _leave)  # as Ray Train does, and leaves it
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("handler", [_leave, _fail, _swallow, signal.default_int_handler])
def test_ctrl_c_ends_in_keyboard_interrupt_whatever_the_library_raises(handler: Callable[..., None]):
    def interrupted() -> None:
        with interruptible():
            signal.signal(signal.SIGINT, handler)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()


@pytest.mark.parametrize("error", [ValueError("poor"), SystemExit(3)])
def test_without_a_signal_errors_pass_through(error: BaseException):
    with pytest.raises(type(error)), interruptible():
        raise error


def test_outside_the_main_thread_no_handler_is_touched():
    def within() -> int:
        with interruptible():
            return 1

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(within).result() == 1
