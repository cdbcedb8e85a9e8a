"""The evaluation by hotcoco, which tells apart kinds of errors.

hotcoco is a port of pycocotools with the same matching; its error types follow TIDE. It is the
optional package of `sepc-tf analyze`, and this is the only module that imports it. The tests
compare it with pycocotools and with cases made by hand.
"""

from __future__ import annotations

from types import ModuleType

from sepc_tf.data.coco import CocoDataset
from sepc_tf.optional import import_package

OF_AN_ANNOTATION = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
OF_A_RESULT = ("image_id", "category_id", "bbox", "score")


def hotcoco() -> ModuleType:
    """The package.

    Raises:
        MissingPackageError: it is not installed.
    """
    return import_package("hotcoco", "hotcoco", "the analysis of errors")


def hotcoco_evaluation(dataset: CocoDataset, results: list[dict]):
    """A `hotcoco.COCOeval` after `evaluate` and `accumulate`.

    Args:
        dataset: a `CocoDataset`; all its images count.
        results: list in COCO's result format; may be empty. hotcoco gives `results[i]` the id
            `i + 1`.

    Raises:
        MissingPackageError: hotcoco is not installed.

    Example:
        >>> hotcoco_evaluation(dataset, []).tide_errors()["counts"]["Bkg"]
        0
    """
    package = hotcoco()
    content = {
        "images": [dataset.coco.imgs[image.image_id] for image in dataset.images],
        "categories": dataset.coco.dataset["categories"],
        "annotations": [
            {name: annotation[name] for name in OF_AN_ANNOTATION}
            for image in dataset.images
            for annotation in dataset.coco.imgToAnns[image.image_id]
        ],
    }
    truth = package.COCO(content)
    found = truth.load_res([{name: item[name] for name in OF_A_RESULT} for item in results])
    evaluation = package.COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation
