"""What is measured beside each other computes the same."""

import numpy as np

from sepc_tf.benchmark import pooling


def test_crop_and_resize_computes_the_same():
    pyramid, boxes, _ = pooling.problem(12, image_size=(320, 448), channels=3)
    ours = pooling.ours_pooled(pyramid, boxes)
    np.testing.assert_allclose(pooling.cropped(pyramid, boxes), ours, rtol=0, atol=1e-4)
    assert np.abs(ours).max() > 0.5


def test_a_report_becomes_a_table():
    environment = {"tensorflow": "2", "python": "3", "processor": "p", "cores": 2,
                   "load_average": 0.0}  # fmt: skip
    rows = [
        {"form": form, "boxes": 8, "backward": True, "ms": 1.4, "best_ms": 1.2, "mb": mb}
        for form, mb in (("ours", 3.3), ("crop_and_resize", None))
    ]
    text = pooling.roi_align_markdown({"environment": environment, "rows": rows})
    assert "| 8 | forward + backward | ours | 1 | 1 | 3 |" in text
    assert "| 8 | forward + backward | crop_and_resize | 1 | 1 | not measured |" in text
