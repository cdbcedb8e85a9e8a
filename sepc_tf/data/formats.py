"""Data sets in other formats than COCO's: one table, and what is done with each of them."""

from __future__ import annotations

from pathlib import Path

from sepc_tf.data.check import DatasetReport, check_content, unusable_report
from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.voc import read_voc
from sepc_tf.data.yolo import read_yolo
from sepc_tf.errors import ConfigError, DatasetError

FORMATS = ("yolo", "voc")


def read_annotations_of(
    source_format: str, path: str | Path, split: str, class_names: list[str] | None = None
) -> tuple[dict, Path, str]:
    """Reads one split of a data set as COCO annotations.

    Args:
        source_format: one of `FORMATS`.
        path: the `data.yaml` or its folder for "yolo", the folder for "voc".
        split: see `read_yolo` and `read_voc`.
        class_names: for "voc", see `read_voc`.

    Returns:
        (content, image folder, name), see `read_yolo`.

    Raises:
        DatasetError: the data cannot be read.
        ConfigError: an unknown format, or `class_names` for a format that names them itself.

    Example:
        >>> content, image_dir, name = read_annotations_of("voc", "voc_data", "val")
        >>> len(content["images"])
        4
    """
    if source_format == "voc":
        return read_voc(path, split, class_names)
    if source_format != "yolo":
        raise ConfigError(f"format {source_format!r} is none of: {', '.join(FORMATS)}")
    if class_names is not None:
        raise ConfigError("class names can be given for voc only; a YOLO data.yaml has them")
    return read_yolo(path, split)


def load_dataset(
    source_format: str, path: str | Path, split: str, class_names: list[str] | None = None
) -> CocoDataset:
    """Reads one split of a data set and makes sure that it can be used.

    Args:
        source_format, path, split, class_names: see `read_annotations_of`.

    Returns:
        A `CocoDataset`.

    Raises:
        DatasetError: naming the file and what is wrong in it.

    Example:
        >>> len(load_dataset("yolo", "yolo_data/data.yaml", "val"))
        4
    """
    return CocoDataset.from_folder(*read_annotations_of(source_format, path, split, class_names))


def check_dataset_of(
    source_format: str,
    path: str | Path,
    split: str,
    class_names: list[str] | None = None,
    decode: bool = True,
) -> DatasetReport:
    """Checks one split of a data set as `sepc_tf.data.check.check_dataset` checks COCO's.

    Args:
        source_format, path, split, class_names: see `read_annotations_of`.
        decode: also decode every image, to find corrupt ones and wrong sizes.

    Returns:
        A `DatasetReport`. A data set that cannot be read at all is one error in it.

    Example:
        >>> bool(check_dataset_of("yolo", "yolo_data/data.yaml", "val").errors)
        False
    """
    try:
        content, image_dir, name = read_annotations_of(source_format, path, split, class_names)
    except DatasetError as error:
        return unusable_report(f"{path} ({split})", error, decode)
    return check_content(content, image_dir, name, decode)
