"""`coco/2017` of TensorFlow Datasets as a `CocoDataset`.

The images stay where they are, in the TFRecord files, and are read by position: shuffling and
continuing at any step work as with a folder of images, and nothing is stored twice.
"""

import struct

import tensorflow as tf

from sepc_tf.data.check import (
    annotation_problems,
    raise_on_errors,
    validate_annotations,
)
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.images import image_size
from sepc_tf.errors import DatasetError
from sepc_tf.optional import import_package
from sepc_tf.settings import looked_up_from

# TensorFlow Datasets numbers COCO's classes 0..79 and forgets their ids, which leave some out.
COCO_CATEGORY_IDS = tuple(sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))


def load_tfds(data_dir, split, name="coco/2017"):
    """A prepared TensorFlow Datasets version of COCO.

    It is not downloaded from here: `tfds build coco/2017` does that, or prepares it from the
    original zip files in its `manual_dir`. Reading the annotations goes once through all files.

    Two things differ from COCO's own files, because of what TensorFlow Datasets stores: areas are
    whole numbers, rounded down, and boxes are relative float32, here rounded to COCO's two
    decimals.

    Args:
        data_dir: TensorFlow Datasets' data directory; None takes its default.
        split: "train" or "validation".
        name: of the builder, with the features of `coco/2017`.

    Returns:
        A `CocoDataset`, images in the order of their ids, with COCO's own category ids.

    Raises:
        DatasetError: not prepared, no such split, or stored in another format than TFRecord.

    Example, with COCO prepared as said above:
        >>> dataset = load_tfds("~/tensorflow_datasets", "validation")  # doctest: +SKIP
        >>> len(dataset), dataset.class_names[0]  # doctest: +SKIP
        (5000, 'person')
    """
    tfds = import_package("tensorflow_datasets", "tensorflow-datasets", "data.source: tfds")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise DatasetError(f"tfds {name}: {error}") from error
    where = f"tfds {name} in {builder.data_path}"
    if not builder.is_prepared():
        command = f"tfds build {name}" + (f" --data_dir={data_dir}" if data_dir else "")
        key = f" (data.directory){looked_up_from(data_dir)}" if data_dir else ""
        raise DatasetError(f"{where}{key} is not prepared: run `{command}`")
    if split not in builder.info.splits:
        available = ", ".join(builder.info.splits)
        raise DatasetError(f"{where} has no split '{split}', it has: {available}")
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise DatasetError(
            f"{where} is stored as {builder.info.file_format.value}: prepare it with "
            "--file_format=tfrecord"
        )
    names = builder.info.features["objects"].feature["label"].names
    content, positions = _read_all(builder.info.splits[split].filepaths, names)
    where = f"{where}, {split}"
    raise_on_errors(annotation_problems(validate_annotations(content, where), None), where)

    def reader(file_name):
        return lambda: _image_bytes(_read_record(*positions[file_name]))

    return CocoDataset.from_content(content, reader, name=where)


def _read_all(paths, names):
    """The annotations of all records as a COCO dict, and where each image is: (path, offset)."""
    is_coco = len(names) == len(COCO_CATEGORY_IDS)
    category_ids = COCO_CATEGORY_IDS if is_coco else tuple(range(1, len(names) + 1))
    images, annotations, positions = [], [], {}
    for path in map(str, paths):
        for offset, record in _records(path):
            example = tf.train.Example.FromString(record).features.feature
            height, width = image_size(example["image"].bytes_list.value[0])
            file_name = example["image/filename"].bytes_list.value[0].decode()
            image_id = example["image/id"].int64_list.value[0]
            positions[file_name] = path, offset
            images.append(
                {"id": image_id, "file_name": file_name, "width": width, "height": height}
            )
            boxes = example["objects/bbox"].float_list.value
            for number, annotation_id in enumerate(example["objects/id"].int64_list.value):
                y1, x1, y2, x2 = boxes[4 * number : 4 * number + 4]
                box = (x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height)
                label = example["objects/label"].int64_list.value[number]
                annotations.append(
                    {
                        "id": annotation_id,
                        "image_id": image_id,
                        "category_id": category_ids[label],
                        "bbox": [round(value, 2) for value in box],
                        "area": example["objects/area"].int64_list.value[number],
                        "iscrowd": example["objects/is_crowd"].int64_list.value[number],
                    }
                )
    content = {
        "images": sorted(images, key=lambda image: image["id"]),
        "annotations": annotations,
        "categories": [{"id": number, "name": label} for number, label in zip(category_ids, names)],
    }
    return content, positions


def _records(path):
    """(offset, bytes) of the records of a TFRecord file."""
    with tf.io.gfile.GFile(path, "rb") as file:
        size, offset = file.size(), 0
        while offset < size:
            file.seek(offset)
            record = _next_record(file, path)
            yield offset, record
            offset += len(record) + 16


def _read_record(path, offset):
    with tf.io.gfile.GFile(path, "rb") as file:
        file.seek(offset)
        return _next_record(file, path)


def _next_record(file, path):
    # A record is its length (uint64), a checksum of that, the bytes, a checksum of those.
    header = file.read(12)
    length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else -1
    record = file.read(length) if length >= 0 else b""
    if len(record) != length:
        raise OSError(f"{path} ends in the middle of a record")
    return record


def _image_bytes(record):
    return tf.train.Example.FromString(record).features.feature["image"].bytes_list.value[0]
