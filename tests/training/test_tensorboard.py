"""What TensorBoard is given, read back from its files."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from sepc_tf.errors import OutputError
from sepc_tf.training.state import RunState, StepCounter
from sepc_tf.training.tensorboard import LogWriter, TensorBoardLog


def records(directory):
    """{(tag, step): value} of the event files of a folder."""
    found = {}
    for file in directory.glob("events.*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = event_pb2.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_losses_and_rate_every_so_many_steps(model, tmp_path):
    state, writer = RunState(steps_per_epoch=5), LogWriter(tmp_path)
    log = TensorBoardLog(state, writer, lambda step: 0.1 * (step + 1), batch_size=2, every=2)
    model.fit(
        np.ones((10, 1)), np.zeros((10, 1)), 2, callbacks=[StepCounter(state), log], verbose=0
    )
    writer.close()
    found = records(tmp_path)
    assert {step for _, step in found} == {2, 4}
    assert found["train/learning_rate", 4] == pytest.approx(0.4)
    assert found["train/images_per_second", 4] > 0
    assert found["loss/total", 2] > found["loss/total", 4] > 0


def test_nothing_is_written_without_a_folder():
    writer = LogWriter(None)
    with writer.as_default(step=1):
        tf.summary.scalar("a", 1.0)
    writer.flush()
    writer.close()


def test_a_log_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file/log"):
        LogWriter(tmp_path / "file" / "log")
