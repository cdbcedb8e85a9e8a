"""Settings of the data: where it is, and how it becomes batches."""

import dataclasses

from sepc_tf.settings import setting


@dataclasses.dataclass
class SplitConfig:
    """Where one split of a data set lies."""

    annotations: str | None = None  # a COCO instances json
    images: str | None = None  # the folder its file names are relative to


@dataclasses.dataclass
class AugmentationConfig:
    """Random changes of training images, see `sepc_tf.data.augment`; all are off by default."""

    # factors drawn from 1 - value .. 1 + value
    brightness: float = setting(0.0, at_least=0, at_most=1)
    contrast: float = setting(0.0, at_least=0, at_most=1)
    saturation: float = setting(0.0, at_least=0, at_most=1)
    # drawn from -value .. value, in turns of the colour circle
    hue: float = setting(0.0, at_least=0, at_most=0.5)
    blur_probability: float = setting(0.0, at_least=0, at_most=1)
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

    source: str = setting("coco", choices=("coco", "demo", "tfds"))
    directory: str | None = None  # demo: where it is generated; tfds: its data_dir
    train: SplitConfig = setting(SplitConfig())
    val: SplitConfig = setting(SplitConfig())
    short_side: list[int] = setting([800], at_least=1)
    # value: one of the list; range: uniform between its two
    short_side_mode: str = setting("value", choices=("value", "range"))
    long_side: int = setting(1333, at_least=1)
    test_short_side: int = setting(800, at_least=1)
    flip_probability: float = setting(0.5, at_least=0, at_most=1)
    augmentation: AugmentationConfig = setting(AugmentationConfig())
    mean: list[float] = setting([123.675, 116.28, 103.53])
    std: list[float] = setting([58.395, 57.12, 57.375], above=0)
    size_divisor: int = setting(32, at_least=1)
    skip_empty_images: bool = False  # leave images without boxes out of training
    # skip (named and counted) | stop
    corrupt_images: str = setting("skip", choices=("skip", "stop"))
