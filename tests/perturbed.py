"""A random data set in memory, and detections that err in every way: no images, no detector."""

import numpy as np

from sepc_tf.data.coco import CocoDataset

NAMES = {2: "ant", 5: "bee", 9: "cat", 11: "dog"}
SIDE = 300


def random_dataset(seed=0, images=20, most_objects=7):
    """Objects of 6 to 150 px, some of them crowds; the last image is empty."""
    rng = np.random.default_rng(seed)
    content = {
        "images": [
            {"id": 10 + i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE}
            for i in range(images)
        ],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in NAMES.items()],
    }
    for image in content["images"][:-1]:
        for _ in range(rng.integers(1, most_objects + 1)):
            width, height = np.exp(rng.uniform(np.log(6), np.log(150), 2))
            x, y = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(list(NAMES))),
                    "bbox": [float(v) for v in (x, y, width, height)],
                    "area": float(width * height),
                    "iscrowd": int(rng.random() < 0.08),
                }
            )
    return CocoDataset.from_content(content, _unreadable, "random")


def perturbed_results(dataset, seed=0):
    """The truth moved, renamed, doubled and left out at random, with boxes on nothing."""
    rng = np.random.default_rng(seed)
    results = []
    for annotation in dataset.coco.anns.values():
        box = np.array(annotation["bbox"])
        moved = box + rng.normal(0, 0.12, 4) * box[[2, 3, 2, 3]]
        result = {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": [float(v) for v in (*moved[:2], *np.maximum(moved[2:], 2))],
            "score": float(rng.beta(4, 2)),
        }
        if rng.random() < 0.15:
            result["category_id"] = int(rng.choice(dataset.category_ids))
        if rng.random() < 0.85:
            results.append(result)
        if rng.random() < 0.15:
            results.append({**result, "score": result["score"] * 0.7})
    for image in dataset.images:
        x, y, width, height = (float(v) for v in rng.uniform(5, 120, 4))
        results.append(
            {
                "image_id": image.image_id,
                "category_id": int(rng.choice(dataset.category_ids)),
                "bbox": [x, y, width, height],
                "score": float(rng.beta(2, 5)),
            }
        )
    return results


def _unreadable(name):
    def read():
        raise OSError(2, "No such file or directory", name)

    return read
