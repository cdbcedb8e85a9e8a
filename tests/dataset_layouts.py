"""Writes COCO data sets as YOLO and Pascal VOC folders, from those formats' own descriptions."""

import json
import shutil


def _read(annotations_json):
    content = json.loads(annotations_json.read_text())
    objects = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    return content["images"], objects, categories


def write_yolo(root, splits):
    """Writes `data.yaml`, `images/SPLIT`, `labels/SPLIT`; splits: name -> (annotations, images)."""
    lines = []
    for split, (annotations_json, image_dir) in splits.items():
        images, objects, categories = _read(annotations_json)
        numbers = {category["id"]: number for number, category in enumerate(categories)}
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for image in images:
            shutil.copy(image_dir / image["file_name"], root / "images" / split)
            rows = []
            for annotation in objects[image["id"]]:
                x, y, w, h = annotation["bbox"]
                centre_x = (x + w / 2) / image["width"]
                centre_y = (y + h / 2) / image["height"]
                rows.append(
                    f"{numbers[annotation['category_id']]} {centre_x:.6f} {centre_y:.6f} "
                    f"{w / image['width']:.6f} {h / image['height']:.6f}\n"
                )
            if rows:  # nothing to say, no file
                name = image["file_name"].rsplit(".", 1)[0]
                (root / "labels" / split / f"{name}.txt").write_text("".join(rows))
        lines.append(f"{split}: images/{split}\n")
    names = [f"  {number}: {category['name']}\n" for number, category in enumerate(categories)]
    (root / "data.yaml").write_text("".join([*lines, "names:\n", *names]))
    return root / "data.yaml"


def write_voc(root, splits):
    """Writes `Annotations`, `JPEGImages`, `ImageSets/Main`; boxes must be whole pixels."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, (annotations_json, image_dir) in splits.items():
        images, objects, categories = _read(annotations_json)
        names = {category["id"]: category["name"] for category in categories}
        listed = []
        for image in images:
            name = f"{split}_{image['file_name'].rsplit('.', 1)[0]}"
            listed.append(f"{name}\n")
            shutil.copy(image_dir / image["file_name"], root / "JPEGImages" / f"{name}.jpg")
            text = "<annotation>\n<folder>VOC</folder>\n<size>"
            text += f"<width>{image['width']}</width><height>{image['height']}</height>"
            text += "<depth>3</depth></size>\n"
            for annotation in objects[image["id"]]:
                x, y, w, h = map(int, annotation["bbox"])
                # The columns x, ..., x + w - 1 of an image that begins at 0, counted from 1.
                first, last = x + 1, x + w
                text += (
                    f"<object><name>{names[annotation['category_id']]}</name><pose>Left</pose>"
                    f"<truncated>0</truncated><difficult>{annotation.get('iscrowd', 0)}"
                    f"</difficult><bndbox><xmax>{last}</xmax><xmin>{first}</xmin>"
                    f"<ymin>{y + 1}</ymin><ymax>{y + h}</ymax></bndbox></object>\n"
                )
            (root / "Annotations" / f"{name}.xml").write_text(text + "</annotation>\n")
        (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(listed))
    return root
