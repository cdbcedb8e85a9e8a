import numpy as np
import pytest
from PIL import ImageDraw

from sepc_tf import visualization
from sepc_tf.visualization import (
    class_colour,
    draw_detections,
    one_per_object,
    prediction_grid,
)

pytestmark = pytest.mark.same_on_both_stacks

GREY = np.full((400, 500, 3), 128, np.uint8)


def has_colour(picture, label):
    return (picture == np.array(class_colour(label), np.uint8)).all(-1)


def test_outline_is_where_the_box_is():
    picture = draw_detections(GREY, [[100, 120, 300, 350]], [3])
    assert picture.shape == GREY.shape and picture.dtype == np.uint8
    coloured = has_colour(picture, 3)
    assert coloured[120:351, 100].all() and coloured[120:351, 300].all()
    assert coloured[350, 100:301].all()
    assert not coloured[130:340, 110:290].any(), "the inside stays free"
    assert (GREY == 128).all(), "the input is not drawn on"


@pytest.mark.parametrize("shape", [(7, 9), (40, 60), (240, 320), (1500, 2000), (50, 900)])
def test_every_size_is_enlarged_or_not_and_names_stay_inside(shape, monkeypatch):
    texts = []
    original = ImageDraw.ImageDraw.text

    def record(self, position, text, **options):
        texts.append(self.textbbox(position, text, font=options["font"]))
        return original(self, position, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    height, width = shape
    corners = [
        [-5, -5, 3, 3],
        [width - 4, height - 4, width + 9, height + 9],
        [width - 4, -3, width, 4],
        [0, 0, width, height],
        [2, 2, 2, 2],
    ]
    image = np.zeros((*shape, 3), np.uint8)
    picture = draw_detections(image, corners, range(5), [0.5] * 5, list("abcde"))
    factor = picture.shape[0] / height
    assert factor == int(factor) and picture.shape[1] == width * factor
    assert max(picture.shape) >= 320
    assert len(texts) == 5
    for left, top, right, bottom in texts:
        assert left >= 0 and top >= 0
        assert right <= picture.shape[1] + 1 and bottom <= picture.shape[0] + 1


def test_padding_is_not_drawn_and_nothing_to_draw_is_fine():
    picture = draw_detections(GREY, [[-1, -1, -1, -1]] * 2, [-1, -1], [0, 0])
    np.testing.assert_array_equal(picture, GREY)
    np.testing.assert_array_equal(draw_detections(GREY, [], []), GREY)


def test_best_score_is_on_top():
    boxes = [[50, 50, 200, 200]] * 2
    picture = draw_detections(GREY, boxes, [1, 2], [0.9, 0.2])
    assert has_colour(picture, 1)[200, 60:190].all()
    assert not has_colour(picture, 2)[200, 60:190].any()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="labels: expected 1, one per box, got 2"):
        draw_detections(GREY, [[0, 0, 1, 1]], [1, 2])
    with pytest.raises(ValueError, match="scores: expected 1"):
        draw_detections(GREY, [[0, 0, 1, 1]], [1], [])
    with pytest.raises(ValueError, match=r"image: expected uint8 \[H, W, 3\], got float32"):
        draw_detections(GREY.astype(np.float32), [], [])


def test_colours_of_80_classes_differ():
    colours = np.array([class_colour(label) for label in range(80)], int)
    assert len({tuple(colour) for colour in colours}) == 80
    assert (np.abs(np.diff(colours, axis=0)).sum(1) > 100).all(), "neighbours differ clearly"


def test_grid_has_predictions_left_and_truth_right():
    small = np.zeros((100, 330, 3), np.uint8)
    box = [[20, 60, 90, 95]]
    grid = prediction_grid(
        [(GREY, (box, [0], [0.5]), (box, [1])), (small, ([], [], []), (box, [2]))], list("abc")
    )
    assert grid.shape[1] == 2 * 500 + visualization.GAP and grid.shape[0] > 500
    half = grid.shape[1] // 2
    assert has_colour(grid[:, :half], 0).any() and not has_colour(grid[:, half:], 0).any()
    for label in (1, 2):
        assert has_colour(grid[:, half:], label).any()
        assert not has_colour(grid[:, :half], label).any()
    with pytest.raises(ValueError, match="at least one image"):
        prediction_grid([])


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        # Half of the union is one object, a little less is two.
        ([[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.8], [1, 0]),
        ([[0, 0, 10, 10], [0, 0, 10, 4.9]], [0.9, 0.8], [1, 1]),
        # The best score stays, wherever it stands; of equal ones the first.
        ([[0, 0, 10, 10], [0, 0, 10, 9]], [0.3, 0.8], [0, 1]),
        ([[0, 0, 10, 10], [0, 0, 10, 9]], [0.5, 0.5], [1, 0]),
        # The second is the first's; the third overlaps only the second, which is not there: 7 of
        # 13 shared with it, 4 of 16 with the first.
        ([[0, 0, 10, 1], [3, 0, 13, 1], [6, 0, 16, 1]], [0.9, 0.8, 0.7], [1, 0, 1]),
        # Boxes without area share nothing.
        ([[5, 5, 5, 5], [5, 5, 5, 5]], [0.9, 0.8], [1, 1]),
        ([], [], []),
    ],
)
def test_one_box_per_object(boxes, scores, kept):
    np.testing.assert_array_equal(one_per_object(boxes, scores), np.array(kept, bool))


def test_masks_are_tinted_and_their_contours_are_opaque():
    mask = np.zeros(GREY.shape[:2], bool)
    mask[150:250, 120:280] = True
    boxes = [[100, 120, 300, 350], [400, 300, 450, 350]]
    picture = draw_detections(GREY, boxes, [3, 4], masks=[mask, None])
    opaque = has_colour(picture, 3)
    mixed = np.rint(0.45 * np.array(class_colour(3)) + 0.55 * 128)
    inside = np.s_[155:245, 125:275]
    assert (np.abs(picture[inside] - mixed) <= 1).all(), "translucent"
    assert opaque[[150, 249], 120:280].all(), "the contour is inside of the mask"
    assert opaque[150:250, [120, 279]].all()
    untouched = (picture == 128).all(-1)
    assert untouched[130:149, 110:290].all() and untouched[251:340, 110:290].all()
    assert untouched[305:345, 405:445].all(), "an object without a mask has its box"
    empty = draw_detections(GREY, boxes, [3, 4], masks=[np.zeros_like(mask), None])
    np.testing.assert_array_equal(empty, draw_detections(GREY, boxes, [3, 4]))


def test_masks_of_small_images_are_enlarged_with_them():
    image, mask = np.full((40, 60, 3), 128, np.uint8), np.zeros((40, 60), np.uint8)
    mask[10:20, 30:60] = 1  # to the border
    picture = draw_detections(image, [[25, 5, 60, 25]], [1], masks=[mask])
    factor = picture.shape[0] // 40
    drawn = (picture != 128).any(-1)
    tinted = np.zeros_like(drawn)
    tinted[10 * factor : 20 * factor, 30 * factor :] = True
    assert drawn[tinted].all() and not drawn[tinted.shape[0] * 3 // 4 :].any()


def test_masks_must_be_as_many_as_boxes():
    with pytest.raises(ValueError, match="masks: expected 2, one per box, got 1"):
        draw_detections(GREY, [[0, 0, 9, 9]] * 2, [1, 2], masks=[None])
