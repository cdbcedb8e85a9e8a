"""What `sepc-tf evaluate` prints."""

from sepc_tf.cli import evaluate
from sepc_tf.evaluation.coco import METRIC_NAMES, CocoMetrics


def test_the_last_line_has_the_numbers_of_boxes_and_masks(capsys):
    masks = CocoMetrics(**dict.fromkeys(METRIC_NAMES, 0.25), per_class={"ant": 0.25})
    boxes = CocoMetrics(**dict.fromkeys(METRIC_NAMES, 0.5), per_class={"ant": 0.5}, segm=masks)
    evaluate._show(boxes)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("AP 0.500  AP50 0.500 ") and "  segm/AP 0.250  " in line
