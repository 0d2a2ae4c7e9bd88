import os
import signal

import pytest

from deit_fast.interrupt import catch_stop_signals


def test_repeated_sigusr1_is_one_request():
    """By itself SIGUSR1 would end this process."""
    before = signal.getsignal(signal.SIGUSR1)
    with catch_stop_signals() as stop:
        assert not stop
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
    with catch_stop_signals():
        assert signal.getsignal(signal.SIGUSR1) != before[0]
    assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)) == before


def test_second_ctrl_c_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with catch_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
