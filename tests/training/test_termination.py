"""SIGTERM: at once where nothing is lost by it, after saving otherwise, and never for good."""

import os
import signal
import threading

import pytest
import tensorflow as tf

from sepc_tf.errors import Terminated
from sepc_tf.training.termination import Termination


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def handler():
    """The handler of the process, which every test has to leave in place."""

    def mine(number, frame):
        raise AssertionError("the signal was not the training's")

    before = signal.signal(signal.SIGTERM, mine)
    yield
    assert signal.getsignal(signal.SIGTERM) is mine
    signal.signal(signal.SIGTERM, before)


def test_everything_being_saved_the_block_is_left_at_once():
    message = "SIGTERM: no step was done"
    with pytest.raises(Terminated, match=message), Termination().listening():
        try:
            sigterm()
            pytest.fail("went on")
        except Exception:  # what a library between may catch
            pytest.fail("was caught")


def test_unsaved_work_is_finished_first_whatever_comes_again():
    termination = Termination()
    termination.unsaved = lambda: True
    done = []
    with pytest.raises(Terminated, match="saved step 3"), termination.listening():
        termination.check()
        sigterm()
        sigterm()
        done.append("saved")
        termination.saved = lambda: "saved step 3"
        termination.check()
        done.append("never")
    assert done == ["saved"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_the_handler_comes_back_however_the_block_ends(error):
    try:
        with Termination().listening():
            if error:
                raise error
    except (KeyboardInterrupt, ValueError) as raised:
        assert type(raised) is error


def test_inside_a_function_that_tensorflow_calls():
    def work():
        sigterm()
        for _ in range(1000):  # the handler runs between two lines
            pass
        return 1.0

    with pytest.raises(Terminated), Termination().listening():
        tf.py_function(work, [], tf.float32)


def test_inside_a_library_that_swallows_the_exception_and_trips_over_it():
    # As TensorFlow 2.15's `nest.flatten` did while a layer was made.
    with pytest.raises(Terminated), Termination().listening():
        try:
            sigterm()
            pytest.fail("went on")
        except BaseException as error:
            assert type(error).__name__ == "_Leave"
        raise AttributeError("'Policy' object has no attribute 'keys'")


def test_another_thread_gets_no_signals():
    results = []

    def work():
        with Termination().listening() as termination:
            results.append(termination.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False]
