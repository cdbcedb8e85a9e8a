"""Detections made by hand, one of each kind of error."""

from sepc_tf.data.coco import CocoDataset


def boxed(number, image_id, category_id, bbox, iscrowd=0):
    _, _, width, height = bbox
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": width * height,
        "iscrowd": iscrowd,
    }


OBJECTS = [
    boxed(1, 1, 3, [0, 0, 50, 50]),
    boxed(2, 1, 7, [100, 0, 50, 50]),
    boxed(3, 1, 3, [200, 0, 50, 50]),
    boxed(4, 1, 7, [300, 0, 50, 50]),
    boxed(5, 1, 3, [0, 200, 50, 50]),
    boxed(6, 2, 3, [0, 0, 100, 100], iscrowd=1),
    boxed(7, 2, 7, [200, 200, 60, 60]),
]
DETECTIONS = {
    "right": (1, 3, [0, 0, 50, 50], 0.60),
    "Dupe": (1, 3, [0, 1, 50, 50], 0.85),
    "Cls": (1, 3, [100, 0, 50, 50], 0.70),
    "Loc": (1, 3, [200, 0, 50, 20], 0.65),  # IoU 0.4
    "Both": (1, 3, [300, 0, 50, 20], 0.90),
    "Bkg": (1, 7, [100, 300, 50, 50], 0.95),
    "on a crowd": (2, 3, [10, 10, 20, 20], 0.99),
    "right too": (2, 7, [200, 200, 60, 60], 0.50),
}


def dataset_of(objects):
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 400, "height": 400} for n in (1, 2)],
        "annotations": [dict(item) for item in objects],
        "categories": [{"id": 3, "name": "ant"}, {"id": 7, "name": "cat"}],
    }
    return CocoDataset.from_content(content, lambda name: None, "by hand")


def results_of(detections):
    names = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(names, values)) for values in detections.values()]
