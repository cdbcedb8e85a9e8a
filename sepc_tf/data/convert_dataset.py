"""From data sets in other formats to COCO annotation files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sepc_tf.data.check import annotation_problems, raise_on_errors
from sepc_tf.data.formats import read_annotations_of
from sepc_tf.errors import OutputError
from sepc_tf.files import write_json


@dataclass(frozen=True)
class ConvertedDataset:
    """What `convert_dataset` wrote.

    Attributes:
        annotations_json: the file.
        image_dir: the folder that the file names in it are relative to.
        num_images, num_annotations, num_categories: its counts.
    """

    annotations_json: Path
    image_dir: Path
    num_images: int
    num_annotations: int
    num_categories: int

    def __str__(self):
        return (
            f"{self.annotations_json}: {self.num_images} images, {self.num_annotations} "
            f"annotations, {self.num_categories} categories; the images are in {self.image_dir}"
        )


def convert_dataset(
    source_format: str,
    path: str | Path,
    out_json: str | Path,
    split: str = "train",
    class_names: list[str] | None = None,
) -> ConvertedDataset:
    """Writes one split of a YOLO or Pascal VOC data set as a COCO annotation file.

    The images stay where they are.

    Args:
        source_format, path, split, class_names: see `sepc_tf.data.formats.read_annotations_of`.
        out_json: the file to write; it must not exist.

    Returns:
        `ConvertedDataset`.

    Raises:
        DatasetError: the data set cannot be used; nothing is written.
        OutputError: `out_json` exists or cannot be written.

    Example:
        >>> converted = convert_dataset("voc", "voc_data", "voc_val.json", split="val")
        >>> len(CocoDataset.load(converted.annotations_json, converted.image_dir))
        4
    """
    out_json = Path(out_json)
    if out_json.exists():
        raise OutputError(f"{out_json} exists already; give another file")
    content, image_dir, name = read_annotations_of(source_format, path, split, class_names)
    raise_on_errors(annotation_problems(content, image_dir), name)
    try:
        out_json.parent.mkdir(parents=True, exist_ok=True)
        write_json(out_json, content, indent=None)
    except OSError as error:
        raise OutputError(f"{out_json} cannot be written: {error.strerror}") from error
    return ConvertedDataset(
        annotations_json=out_json,
        image_dir=image_dir,
        num_images=len(content["images"]),
        num_annotations=len(content["annotations"]),
        num_categories=len(content["categories"]),
    )
