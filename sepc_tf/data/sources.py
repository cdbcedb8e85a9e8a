"""From the `data` section of a config to data sets and batches."""

from pathlib import Path

from sepc_tf.data.coco import CocoDataset
from sepc_tf.data.config import DataConfig, check_source
from sepc_tf.data.demo import make_demo_dataset
from sepc_tf.data.formats import load_dataset
from sepc_tf.data.pipeline import BatchPipeline
from sepc_tf.data.semantic_maps import SemanticMaps
from sepc_tf.errors import ConfigError, DatasetError
from sepc_tf.settings import check_exists

# What to do about data of a source in which there is no mask at all.
_WHERE_MASKS_ARE = {
    "yolo": "YOLO's labels have masks as polygons: a class, then x and y of at least 3 corners",
    "voc": "Of Pascal VOC only boxes are read, not its SegmentationObject: give COCO annotations",
    "demo": "This demo data was made by an earlier version: remove data.directory, and it is made "
    "again with masks",
    "tfds": "TensorFlow Datasets stores no masks of COCO: use data.source: coco, its own files",
}


def load_split(data: DataConfig, split: str) -> CocoDataset:
    """Loads one split of the configured data set.

    Args:
        data: a `sepc_tf.config.DataConfig`. The source "demo" is generated in `data.directory`
            when it is not there yet.
        split: "train" or "val".

    Returns:
        A `CocoDataset`.

    Raises:
        ConfigError: a path that the source needs is not set or leads nowhere, or a setting that it
            does not use is set.
        DatasetError: the data cannot be used.
    """
    settings = getattr(data, split)
    if data.source == "coco":
        for key in ("annotations", "images"):
            if getattr(settings, key) is None:
                raise ConfigError(
                    f"data.{split}.{key} is not set; data.source: coco needs an annotation file "
                    "(data.SPLIT.annotations) and an image folder (data.SPLIT.images)"
                )
            check_exists(f"data.{split}.{key}", getattr(settings, key))
        check_source(data)
        return CocoDataset.load(settings.annotations, settings.images)
    if data.directory is None:
        raise ConfigError(f"data.directory is not set; data.source: {data.source} needs it")
    check_source(data)
    if data.source == "demo":
        root = Path(data.directory)
        if not (root / "annotations" / f"instances_{split}.json").is_file():
            make_demo_dataset(root)
        return CocoDataset.load(root / "annotations" / f"instances_{split}.json", root / split)
    if data.source == "tfds":
        from sepc_tf.data.tfds_source import load_tfds

        default = {"train": "train", "val": "validation"}[split]
        return load_tfds(data.directory, settings.split or default)
    check_exists("data.directory", data.directory)
    return load_dataset(data.source, data.directory, settings.split or split, data.class_names)


def training_pipeline(dataset: CocoDataset, config, masks: bool = False) -> BatchPipeline:
    """Builds the shuffled, augmented `BatchPipeline` of a config.

    Args:
        dataset: a `CocoDataset`.
        config: a `sepc_tf.config.Config`.
        masks: whether the batches have masks, for a detector that `needs_masks`.

    Raises:
        DatasetError: there is no box to train on, or no mask or semantic map where they are needed.
        ConfigError: `data.semantic_maps` leads nowhere.
    """
    data = config.data
    dataset.check_trainable()
    if masks:
        try:
            dataset = dataset.with_usable_masks()
        except DatasetError as error:
            if data.source not in _WHERE_MASKS_ARE:
                raise
            raise DatasetError(f"{error}. {_WHERE_MASKS_ARE[data.source]}") from error
    if data.skip_empty_images:
        dataset = dataset.without_empty_images()
    semantic_maps = None
    if data.semantic_maps is not None:
        check_exists("data.semantic_maps", data.semantic_maps)
        semantic_maps = SemanticMaps(data.semantic_maps, config.detector.options.semantic.classes)
        semantic_maps.check(dataset)
    return BatchPipeline(
        dataset,
        batch_size=config.train.batch_size,
        training=True,
        short_side=data.short_side,
        scale_mode=data.short_side_mode,
        flip_probability=data.flip_probability,
        augmentation=data.augmentation,
        masks=masks,
        semantic_maps=semantic_maps,
        seed=config.train.seed,
        **_common_options(config),
    )


def evaluation_pipeline(
    dataset: CocoDataset, config, batch_size: int | None = None
) -> BatchPipeline:
    """Builds the `BatchPipeline` that shows every image once.

    Args:
        dataset: a `CocoDataset`.
        config: a `sepc_tf.config.Config`.
        batch_size: images at a time over all devices; `train.batch_size` by default, which suits
            the devices of the training.
    """
    return BatchPipeline(
        dataset,
        batch_size=batch_size or config.train.batch_size,
        training=False,
        short_side=config.data.test_short_side,
        **_common_options(config),
    )


def _common_options(config):
    data = config.data
    return {
        "long_side": data.long_side,
        "mean": data.mean,
        "std": data.std,
        "channel_order": data.channel_order,
        "size_divisor": data.size_divisor,
        "convention": config.detector.convention,
        "unreadable": data.corrupt_images,
    }
