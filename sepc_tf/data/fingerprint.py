"""Whether two data sets hold the same, wherever they lie."""

from __future__ import annotations

import hashlib
from pathlib import PurePath

from sepc_tf.data.coco import CocoDataset


def fingerprint(dataset: CocoDataset) -> dict:
    """A short description of what is learnt from a data set.

    Two data sets with the same categories and the same images in the same order, each with the same
    id, file name (without its folder), size, boxes and labels, have the same fingerprint. The
    pixels of the images take no part.

    Returns:
        dict of `images` and `boxes`, their numbers, and `sha256`, a hexadecimal string.

    Example:
        >>> folder = Path("demo_data").rename("moved")
        >>> moved = CocoDataset.load(folder / "annotations/instances_val.json", folder / "val")
        >>> fingerprint(dataset) == fingerprint(moved)
        True
    """
    digest = hashlib.sha256(repr((dataset.category_ids, dataset.class_names)).encode())
    boxes = 0
    for record in dataset.images:
        name = PurePath(record.file_name).name
        head = (record.image_id, name, record.width, record.height, len(record.boxes))
        digest.update(repr(head).encode())
        digest.update(record.boxes.astype("<f4").tobytes())
        digest.update(record.labels.astype("<i4").tobytes())
        boxes += len(record.boxes)
    return {"images": len(dataset), "boxes": boxes, "sha256": digest.hexdigest()}
