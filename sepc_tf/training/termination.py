"""What SIGTERM does to a training: nothing that is done is lost, and it ends soon."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from sepc_tf.errors import Terminated


class Termination:
    """Turns SIGTERM into `Terminated`, inside a `with` block of `listening`.

    While everything done is on disk (before the first step, during an evaluation, right after a
    checkpoint) the block is left at once. Otherwise `requested` is set and whoever saves the state
    calls `check` afterwards. Further signals change nothing, so that they cannot disturb saving.

    Attributes:
        requested: whether SIGTERM has come.
        unsaved: function that says whether the run has done steps that are not on disk.
        saved: what is on disk, for the message.

    Example:
        >>> termination = Termination()
        >>> with termination.listening():
        ...     signal.raise_signal(signal.SIGTERM)
        Traceback (most recent call last):
        ...
        sepc_tf.errors.Terminated: SIGTERM: no step was done; start again with ...
    """

    def __init__(self) -> None:
        self.requested = False
        self._left = False
        self.unsaved: Callable[[], bool] = lambda: False
        self.saved: Callable[[], str] = lambda: "no step was done"

    @contextlib.contextmanager
    def listening(self) -> Iterator[Termination]:
        """Listens to SIGTERM inside a `with` block, and puts the handler before it back.

        Outside the main thread, which alone gets signals, the block is run as it is.

        Raises:
            Terminated: SIGTERM came.
        """
        try:
            before = signal.signal(signal.SIGTERM, self._receive)
        except ValueError:
            yield self
            return
        try:
            yield self
        except _Leave:
            raise self._terminated() from None
        except Exception as error:
            # The handler may have run inside a Python function that TensorFlow's C++ called, which
            # turns the exception into one of its own, or goes on without the function's result.
            if self._left:
                raise self._terminated() from error
            raise
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not set from Python

    def check(self) -> None:
        """Raises `Terminated` if SIGTERM has come; called when everything done is saved."""
        if self.requested:
            raise self._terminated()

    def _receive(self, number, frame):
        first, self.requested = not self.requested, True
        if first and not self.unsaved():
            self._left = True
            raise _Leave

    def _terminated(self):
        return Terminated(
            f"SIGTERM: {self.saved()}; start again with the same run directory to continue"
        )


class _Leave(BaseException):
    """Leaves the block past every `except Exception` on the way."""
