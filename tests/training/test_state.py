"""The global step, which Keras does not have."""

import numpy as np

from sepc_tf.training.state import RunState, StepCounter


def test_steps_go_on_where_the_run_stood(model):
    state = RunState(steps_per_epoch=4, step=6, seconds=2.0)
    assert state.epoch == 1
    model.fit(np.ones((8, 1)), np.ones((8, 1)), 4, callbacks=[StepCounter(state)], verbose=0)
    assert (state.step, state.epoch) == (8, 2)
    assert state.seconds > 2.0
    assert state.history == [] and RunState(1).history is not state.history
