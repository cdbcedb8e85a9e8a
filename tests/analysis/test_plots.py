"""What the figures say; how they look was judged by eye."""

import numpy as np
import pytest
from matplotlib.text import Text

from sepc_tf.analysis import plots
from sepc_tf.analysis.groups import Group

pytestmark = pytest.mark.same_on_both_stacks


def texts(figure):
    figure.canvas.draw()
    return [item.get_text() for item in figure.findobj(Text) if item.get_text()]


def test_of_many_classes_the_most_confused_are_shown_and_the_rest_added_up():
    rng = np.random.default_rng(0)
    matrix = np.diag(np.append(rng.integers(5, 9, 30), 0))
    matrix[3, 7] = matrix[7, 30] = 40
    matrix[:30, 30] += np.arange(30) % 3
    names = [f"c{number:02d}" for number in range(30)]
    shown, kept = plots._most_confused(matrix, [*names, "background"])
    assert shown.shape == (22, 22) and shown.sum() == matrix.sum()
    assert {"c03", "c07"} < set(kept) and kept[-2:] == ["10 others", "background"]
    row = kept.index("c03")
    assert shown[row, kept.index("c07")] == 40
    found = texts(plots.confusion(matrix, names))
    assert "40" in found and "10 others" in found and "detected as" in found


def test_few_classes_are_shown_as_they_are():
    shown, kept = plots._most_confused(np.arange(9).reshape(3, 3), ["a", "b", "background"])
    assert shown.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]] and len(kept) == 3


def test_bars_carry_their_numbers():
    gains = dict.fromkeys(plots.ERROR_NAMES, 0.0) | {"Loc": 0.123}
    counts = dict.fromkeys(plots.ERROR_NAMES, 0) | {"Miss": 17}
    found = texts(plots.error_types(gains, counts))
    assert "12.3" in found and "17" in found and "class and place" in found
    found = texts(plots.groups({"size": [Group("below 16", 3, 0.4, 0.7), Group("x", 1, None, 0)]}))
    assert {"40", "70", "below 16 (3)", "AP50"} < set(found)


def test_a_class_without_objects_has_no_curve():
    precision = np.full([1, 101, 12], 0.5)
    precision[:, :, 4] = np.nan
    names = [f"c{number}" for number in range(12)]
    found = texts(plots.precision_recall(np.linspace(0, 1, 101), precision, [0.5], names))
    assert "IoU 0.5: AP 50.0" in found and "the 10 worst classes at IoU 0.5" in found
    assert not any(text.startswith("c4:") for text in found) and "c0: 50.0" in found


@pytest.mark.filterwarnings("error")
def test_nothing_to_show_is_no_error():
    nothing = np.full([1, 101, 2], np.nan)
    plots.precision_recall(np.linspace(0, 1, 101), nothing, [0.5], ["a", "b"]).canvas.draw()
    plots.confusion(np.zeros([3, 3], int), ["a", "b"]).canvas.draw()
    empty = {"bin_lower": 0.0, "bin_upper": 0.5, "avg_confidence": 0, "avg_accuracy": 0, "count": 0}
    plots.reliability([empty], 0.0).canvas.draw()
    plots.groups({"size": []}).canvas.draw()
