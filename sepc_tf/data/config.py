"""Settings of the data: where it is, and how it becomes batches."""

import dataclasses

from sepc_tf.settings import check_unused, setting


@dataclasses.dataclass
class SplitConfig:
    """Where one split of a data set lies."""

    annotations: str | None = None  # a COCO instances json
    images: str | None = None  # the folder its file names are relative to
    # yolo, voc, tfds: the name of the split there; by default train and val (tfds: validation)
    split: str | None = None


@dataclasses.dataclass
class AugmentationConfig:
    """Random changes of training images, see `sepc_tf.data.augment`; all are off by default."""

    # factors drawn from 1 - value .. 1 + value
    brightness: float = setting(0.0, at_least=0, at_most=1)
    contrast: float = setting(0.0, at_least=0, at_most=1)  # as brightness
    saturation: float = setting(0.0, at_least=0, at_most=1)  # as brightness
    # drawn from -value .. value, in turns of the colour circle
    hue: float = setting(0.0, at_least=0, at_most=0.5)
    blur_probability: float = setting(0.0, at_least=0, at_most=1)  # of a Gaussian blur
    # standard deviation in pixels of the file's image
    blur_sigma: list[float] = setting([0.1, 2.0], above=0)
    noise_std: float = setting(0.0, at_least=0)  # grey levels, drawn from 0 .. value
    crop_probability: float = setting(0.0, at_least=0, at_most=1)  # zoom in
    # sides of the window / sides of the image
    crop_scale: list[float] = setting([0.5, 1.0], above=0, at_most=1)
    expand_probability: float = setting(0.0, at_least=0, at_most=1)  # zoom out
    # sides of the canvas / sides of the image
    expand_ratio: list[float] = setting([1.0, 2.0], at_least=1)
    # share of its area with which a cropped object stays
    min_visible: float = setting(0.3, at_least=0, at_most=1)


@dataclasses.dataclass
class DataConfig:
    """A data set and its preparation."""

    # coco: a json and a folder for each split | yolo, voc: folders as they are | demo: generated |
    # tfds: COCO 2017 of tensorflow-datasets
    source: str = setting("coco", choices=("coco", "yolo", "voc", "demo", "tfds"))
    # yolo: the data.yaml or its folder; voc: a folder as VOCdevkit/VOC2007; demo: where it is
    # generated; tfds: its data_dir
    directory: str | None = None
    # voc: the classes in the order of the labels; by default those found
    class_names: list[str] | None = None
    train: SplitConfig = setting(SplitConfig())
    val: SplitConfig = setting(SplitConfig())
    # htc: a folder of PNGs, named as the training images, whose values are labels (COCO-stuff)
    semantic_maps: str | None = None
    # pixels to which the shorter side of a training image is resized
    short_side: list[int] = setting([800], at_least=1)
    # value: one of the list; range: uniform between its two
    short_side_mode: str = setting("value", choices=("value", "range"))
    # unless the longer side would pass this one
    long_side: int = setting(1333, at_least=1)
    test_short_side: int = setting(800, at_least=1)  # outside of training
    flip_probability: float = setting(0.5, at_least=0, at_most=1)  # left to right, in training
    augmentation: AugmentationConfig = setting(AugmentationConfig())
    # what the network sees; networks from Caffe were trained with bgr
    channel_order: str = setting("rgb", choices=("rgb", "bgr"))
    # grey levels, in the order of channel_order
    mean: list[float] = setting([123.675, 116.28, 103.53])  # taken off
    std: list[float] = setting([58.395, 57.12, 57.375], above=0)  # divided by
    size_divisor: int = setting(32, at_least=1)  # batches are padded to multiples of it
    skip_empty_images: bool = False  # leave images without boxes out of training
    # skip (named and counted) | stop
    corrupt_images: str = setting("skip", choices=("skip", "stop"))


# Of each source, the settings of a split and of the data that it does not use.
_UNUSED = {
    "coco": (("split",), ("directory", "class_names")),
    "yolo": (("annotations", "images"), ("class_names",)),
    "voc": (("annotations", "images"), ()),
    "demo": (("annotations", "images", "split"), ("class_names",)),
    "tfds": (("annotations", "images"), ("class_names",)),
}


# Where the data is: what a config for another source does not inherit.
OF_A_SOURCE = ("directory", "train", "val", "class_names", "semantic_maps")


def check_source(data: DataConfig) -> None:
    """Refuses settings that `data.source` does not use.

    Raises:
        ConfigError: naming the setting.
    """
    of_split, of_data = _UNUSED[data.source]
    reason = f"data.source: {data.source}"
    for split in ("train", "val"):
        check_unused(getattr(data, split), of_split, f"data.{split}.", reason)
    check_unused(data, of_data, "data.", reason)
