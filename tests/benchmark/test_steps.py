"""The batch of the benchmark is one that detectors learn from; a report becomes a table."""

import numpy as np
import pytest

from sepc_tf.benchmark import steps
from sepc_tf.ops.bitmaps import read_bitmaps

pytestmark = pytest.mark.same_on_both_stacks


def test_objects_lie_in_the_image_and_their_masks_in_their_boxes():
    batch = steps.problem((96, 128), 2)
    x1, y1, x2, y2 = np.moveaxis(batch["boxes"], -1, 0)
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 128).all() and (y2 <= 96).all()
    objects = np.tile(np.arange(steps.OBJECTS, dtype=np.int32), [2, 1])
    masks = [batch[name] for name in ("bitmaps", "frames", "offsets")]
    rows, columns = (x.astype(np.int32) for x in np.ogrid[:96, :128])
    pixels = read_bitmaps(*masks, objects, rows[None, None], columns[None, None]).numpy()
    inside = (columns >= x1[..., None, None]) & (columns < x2[..., None, None])
    inside = inside & (rows >= y1[..., None, None]) & (rows < y2[..., None, None])
    assert not pixels[~inside].any()
    shares = pixels.sum(axis=(2, 3)) / inside.sum(axis=(2, 3))
    np.testing.assert_allclose(shares, np.pi / 4, atol=0.05)  # of an ellipse in its box


def test_a_report_becomes_a_table():
    environment = {"tensorflow": "2", "python": "3", "processor": "p", "cores": 2,
                   "load_average": 0.0}  # fmt: skip
    rows = [
        {"config": "a", "ms": 10.4, "best_ms": 9.2, "mb": 3000.3},
        {"config": "b", "ms": 1.0, "best_ms": 1.0, "mb": None},
    ]
    report = {"environment": environment, "size": [320, 480], "batch": 2, "rows": rows}
    text = steps.training_step_markdown(report)
    assert "Images of 320 x 480, 2 a step." in text
    assert "| a | 10 | 9 | 3000 |" in text and "| b | 1 | 1 | not measured |" in text
