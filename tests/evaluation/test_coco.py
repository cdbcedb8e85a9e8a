import contextlib
import io
import json

import numpy as np
import pytest

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.segmentations import decode_mask, encode_mask
from sepc_tf.evaluation.coco import (
    METRIC_NAMES,
    evaluate_detections,
    to_coco_results,
    write_evaluation,
)

pytestmark = pytest.mark.same_on_both_stacks


@pytest.fixture(scope="module")
def coco128(coco128_dir):
    return CocoDataset.load(
        coco128_dir / "annotations" / "instances_train2017.json", coco128_dir / "train2017"
    )


def small_dataset(annotations, images=2):
    content = {
        "images": [
            {"id": 10 + i, "file_name": f"{i}.jpg", "width": 200, "height": 100}
            for i in range(images)
        ],
        "annotations": [
            {"id": i + 1, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a}
            for i, a in enumerate(annotations)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
    }
    return CocoDataset.from_content(content, lambda name: None, "small")


def truth_as_results(dataset):
    return [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 1.0,
        }
        for a in dataset.coco.anns.values()
        if not a["iscrowd"]
    ]


def noisy_results(dataset, seed=0):
    """Truth moved and scored at random, with wrong ones in between."""
    rng = np.random.default_rng(seed)
    results = truth_as_results(dataset)
    for result in results:
        box = np.array(result["bbox"])
        result["bbox"] = (box + rng.normal(0, 0.08, 4) * box[[2, 3, 2, 3]]).tolist()
        result["score"] = float(np.float32(rng.random()))
        if rng.random() < 0.2:
            result["category_id"] = int(rng.choice(dataset.category_ids))
    return results


def pycocotools_metrics(annotations_json, results, kind="bbox"):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations_json))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_perfect_detections_on_real_annotations_give_ap_1(coco128):
    metrics = evaluate_detections(coco128, truth_as_results(coco128))
    assert pytest.approx(1) == metrics.AP and metrics.APs == pytest.approx(1)
    assert pytest.approx(1) == metrics.AR100
    assert metrics.per_class["person"] == pytest.approx(1), "label 0 is counted"


def test_detections_on_crowds_are_not_false_positives(coco128):
    crowds = [a for a in coco128.coco.anns.values() if a["iscrowd"]]
    assert crowds
    results = truth_as_results(coco128)
    for crowd in crowds:
        x, y, width, height = crowd["bbox"]
        inside = [x + width / 4, y + height / 4, width / 2, height / 2]
        on_crowd = {"image_id": crowd["image_id"], "category_id": crowd["category_id"]}
        results.append({**on_crowd, "bbox": inside, "score": 2.0})
    assert pytest.approx(1) == evaluate_detections(coco128, results).AP


def test_equals_pycocotools_and_files_give_the_same_numbers_again(coco128, coco128_dir, tmp_path):
    annotations_json = coco128_dir / "annotations" / "instances_train2017.json"
    results = noisy_results(coco128)
    metrics = evaluate_detections(coco128, results)
    assert 0.1 < metrics.AP < 0.9
    expected = pycocotools_metrics(annotations_json, json.loads(json.dumps(results)))
    np.testing.assert_array_equal(list(metrics.summary.values()), expected)

    write_evaluation(tmp_path / "out", metrics, results)
    again = pycocotools_metrics(annotations_json, str(tmp_path / "out" / "detections.json"))
    np.testing.assert_array_equal(again, expected)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["AP"] == metrics.AP and written["per_class"] == metrics.per_class
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "detections.json",
        "metrics.json",
    ]
    classes = [value for value in metrics.per_class.values() if value is not None]
    assert np.mean(classes) == pytest.approx(metrics.AP)
    assert None in metrics.per_class.values(), "coco128 lacks objects of some classes"


def test_any_overlap_is_pycocotools_own(coco128, coco128_dir):
    """Directly: its parameters set to one overlap, its summary of it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = noisy_results(coco128)
    metrics = evaluate_detections(coco128, results, [0.33, 0.5, 0.875])
    plain = evaluate_detections(coco128, results)
    assert plain.at_iou == {} and metrics.per_class == plain.per_class
    assert {**plain.summary, **metrics.at_iou} == metrics.summary
    assert set(metrics.at_iou) == {"mAP@0.33", "mAP@0.5", "mAP@0.875"}
    assert metrics.at_iou["mAP@0.5"] == metrics.AP50
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco128_dir / "annotations" / "instances_train2017.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.iouThrs = np.array([0.33])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert metrics.at_iou["mAP@0.33"] == evaluation.stats[0] > metrics.AP50
    assert metrics.to_dict()["mAP@0.875"] == metrics.at_iou["mAP@0.875"] < metrics.AP75


def test_no_detections_at_all_is_ap_0():
    dataset = small_dataset([{"image_id": 10, "category_id": 3, "bbox": [1, 2, 30, 40]}])
    metrics = evaluate_detections(dataset, [])
    assert metrics.AP == 0 and metrics.AR100 == 0
    assert metrics.APl == -1, "no large object, nothing to measure"
    assert metrics.per_class == {"ant": 0.0, "cat": None}
    assert evaluate_detections(dataset, [], [0.33]).at_iou == {"mAP@0.33": 0.0}
    assert evaluate_detections(small_dataset([]), [], [0.33]).at_iou == {"mAP@0.33": -1.0}


def test_results_are_not_changed_and_foreign_ones_refused():
    dataset = small_dataset([{"image_id": 10, "category_id": 3, "bbox": [1, 2, 30, 40]}])
    result = {"image_id": 10, "category_id": 3, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}
    evaluate_detections(dataset, [result])
    assert set(result) == {"image_id", "category_id", "bbox", "score"}
    with pytest.raises(ValueError, match=r"results\[1\]: image_id 99"):
        evaluate_detections(dataset, [result, {**result, "image_id": 99}])
    with pytest.raises(ValueError, match="category_id 4"):
        evaluate_detections(dataset, [{**result, "category_id": 4}])


def test_images_outside_a_cut_data_set_do_not_count():
    boxes = [{"image_id": 10 + i, "category_id": 3, "bbox": [1, 2, 30, 40]} for i in range(2)]
    dataset = small_dataset(boxes)
    found = [{**boxes[0], "score": 1.0}]
    assert pytest.approx(0.5) == evaluate_detections(dataset, found).AR100
    assert pytest.approx(1) == evaluate_detections(dataset.first(1), found).AR100


@pytest.mark.parametrize("convention, last_pixel", [("modern", 0.0), ("mmdet1", 1.0)])
def test_batch_to_results(convention, last_pixel):
    dataset = small_dataset([])
    batch = {
        "boxes": np.array(
            [[[10, 20, 50, 60], [0, 0, 8, 8]], [[1, 2, 3, 4], [0, 0, 0, 0]], [[0, 0, 9, 9]] * 2],
            np.float32,
        ),
        "scores": np.array([[0.9, 0.1], [0.8, 0], [1, 1]], np.float32),
        "classes": np.array([[1, 0], [0, -1], [1, 1]]),
        "image_ids": np.array([10, 11, -1]),
        "num_detections": np.array([2, 1, 2]),
    }
    # Label 0 is the lowest category id; the padding and the filled-up image are left out.
    expected = [
        (10, 7, [10.0, 20.0, 40.0, 40.0], 0.9),
        (10, 3, [0.0, 0.0, 8.0, 8.0], 0.1),
        (11, 3, [1.0, 2.0, 2.0, 2.0], 0.8),
    ]
    assert to_coco_results(batch, dataset, convention) == [
        {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x, y, width + last_pixel, height + last_pixel],
            "score": float(np.float32(score)),
        }
        for image_id, category_id, (x, y, width, height), score in expected
    ]


def test_tables_show_percent():
    from rich.console import Console

    dataset = small_dataset([{"image_id": 10, "category_id": 3, "bbox": [1, 2, 30, 40]}])
    metrics = evaluate_detections(dataset, truth_as_results(dataset))
    console = Console(width=120, file=io.StringIO())
    console.print(metrics.table())
    console.print(metrics.class_table())
    text = console.file.getvalue()
    assert "100.0" in text and "ant" in text and "-" in text


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    dataset = small_dataset([{"image_id": 10, "category_id": 3, "bbox": [1, 2, 30, 40]}])
    metrics = evaluate_detections(dataset, [])
    write_evaluation(tmp_path, metrics, [])
    with pytest.raises(TypeError):
        write_evaluation(tmp_path, metrics, [{"score": object()}])
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_annotations_may_be_numbered_from_zero():
    annotations = [
        {"id": i, "image_id": 10 + i, "category_id": 3, "bbox": [10, 10, 50, 40]} for i in range(2)
    ]
    dataset = small_dataset(annotations)
    assert pytest.approx(1) == evaluate_detections(dataset, truth_as_results(dataset)).AP


# Masks ------------------------------------------------------------------------------------------


def noisy_masks(dataset, results):
    """The true masks of `truth_as_results`, a random part of each shifted away."""
    rng = np.random.default_rng(1)
    truth = [a for a in dataset.coco.anns.values() if not a["iscrowd"]]
    for annotation, result in zip(truth, results):
        image = dataset.coco.imgs[annotation["image_id"]]
        mask = decode_mask(annotation["segmentation"], image["height"], image["width"])
        steps = np.rint(rng.normal(0, 0.08, 2) * np.sqrt(annotation["area"])).astype(int)
        result["segmentation"] = encode_mask(np.roll(mask, steps, axis=(0, 1)))
    return results


def test_boxes_and_masks_are_pycocotools_own_numbers(coco128, coco128_dir, tmp_path):
    results = noisy_masks(coco128, noisy_results(coco128))
    metrics = evaluate_detections(coco128, results, masks=True)
    assert 0.2 < metrics.segm.AP < 0.9 and metrics.segm.AP != metrics.AP
    write_evaluation(tmp_path, metrics, results)
    written = json.loads((tmp_path / "metrics.json").read_text())
    annotations = coco128_dir / "annotations" / "instances_train2017.json"
    found = str(tmp_path / "detections.json")  # loadRes reads the file itself
    for prefix, kind in (("", "bbox"), ("segm/", "segm")):
        numbers = pycocotools_metrics(annotations, found, kind)
        assert [written[prefix + name] for name in METRIC_NAMES] == list(numbers)
        measured = [v for v in written[f"{prefix}per_class"].values() if v is not None]
        assert np.mean(measured) == pytest.approx(written[f"{prefix}AP"])
    assert set(metrics.summary) == set(written) - {"per_class", "segm/per_class"}


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def masked_result(x, y, side, score=0.9, image=10):
    mask = np.zeros((100, 200), bool)
    mask[y : y + side, x : x + side] = True
    result = {"image_id": image, "category_id": 3, "bbox": [x, y, side, side], "score": score}
    return {**result, "segmentation": encode_mask(mask)}


@pytest.mark.parametrize("broken", [None, [], [[1, 2, 3, 4]], {"size": [200, 100], "counts": []}])
def test_objects_without_a_mask_are_neither_found_nor_missed(broken):
    of_image = {"image_id": 10, "category_id": 3}
    masked = {**of_image, "bbox": [10, 10, 40, 40], "segmentation": square(10, 10, 40)}
    without = {**of_image, "bbox": [100, 10, 40, 40], "segmentation": broken}
    right, on_the_other = masked_result(10, 10, 40, 0.5), masked_result(100, 10, 40)
    metrics = evaluate_detections(
        small_dataset([masked, without]), [right, on_the_other], masks=True
    )
    assert pytest.approx([1, 1]) == [metrics.AP, metrics.segm.AP]
    wrong = masked_result(60, 50, 40)
    metrics = evaluate_detections(small_dataset([masked, without]), [right, wrong], masks=True)
    assert pytest.approx(0.5) == metrics.segm.AP


def test_without_any_segmentation_there_is_a_note_and_no_number(caplog):
    dataset = small_dataset([{"image_id": 10, "category_id": 3, "bbox": [10, 10, 40, 40]}])
    metrics = evaluate_detections(dataset, [masked_result(10, 10, 40)], masks=True)
    assert pytest.approx(1) == metrics.AP and metrics.segm is None
    assert "small: its annotations have no segmentations" in caplog.text
    result = masked_result(10, 10, 40)
    del result["segmentation"]
    with pytest.raises(ValueError, match=r"results\[0\] has no segmentation"):
        evaluate_detections(dataset, [result], masks=True)


@pytest.mark.parametrize(("convention", "last_pixel"), [("modern", 0), ("mmdet1", 1)])
def test_masks_are_pasted_into_the_original_image(convention, last_pixel):
    dataset = small_dataset([])
    half = np.tile(np.float32([[1.0] * 14 + [0.0] * 14]), [28, 1])  # the left half of a box
    batch = {
        "boxes": np.float32([[[10, 20, 50 - last_pixel, 60 - last_pixel], [0, 0, 0, 0]]]),
        "scores": np.float32([[0.9, 0]]),
        "classes": np.array([[1, -1]]),
        "masks": np.stack([half, np.ones_like(half)])[None],
        "original_sizes": np.array([[100, 200]]),
        "image_ids": np.array([10]),
    }
    (result,) = to_coco_results(batch, dataset, convention)
    expected = np.zeros((100, 200), np.uint8)
    expected[20:60, 10:30] = 1
    assert result["bbox"] == [10, 20, 40, 40]
    np.testing.assert_array_equal(decode_mask(result["segmentation"], 100, 200), expected)


def test_tables_have_a_column_for_masks():
    from rich.console import Console

    annotation = {"image_id": 10, "category_id": 3, "bbox": [10, 10, 40, 40]}
    dataset = small_dataset([{**annotation, "segmentation": square(10, 10, 40)}])
    metrics = evaluate_detections(dataset, [masked_result(30, 10, 40)], [0.3], masks=True)
    console = Console(width=60, record=True)
    console.print(metrics.table(), metrics.class_table())
    text = console.export_text()
    rows = {
        line.split("│")[1].strip(): line.count("│") for line in text.splitlines() if "│" in line
    }
    assert {"AP", "mAP@0.3", "ant", "cat"} <= set(rows) and set(rows.values()) == {4}
