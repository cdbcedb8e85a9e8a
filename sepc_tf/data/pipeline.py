"""Batches for training and evaluation, as a function of (seed, epoch, batch number) alone.

Which image is at which place of which batch, at which scale and whether mirrored is computed for a
whole epoch ahead, in numpy, from the seed and the number of the epoch (`BatchPipeline.plan`). The
tf.data pipeline only carries the plan out. Hence a run that was killed continues at any step with
the batches it would have seen, and nothing is decoded to get there.
"""

import collections
import logging
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import tensorflow as tf

from sepc_tf.data.augment import augment, check_augmentation
from sepc_tf.data.config import AugmentationConfig
from sepc_tf.data.preprocess import (
    frame_sizes,
    in_channel_order,
    pad_to_multiple,
    preprocess_image,
    resized_size,
    training_image,
)
from sepc_tf.data.segmentations import training_mask
from sepc_tf.data.semantic_maps import padding_label, training_map
from sepc_tf.errors import ConfigError, UnreadableImageError
from sepc_tf.ops.bitmaps import NO_MASK, pack_masks
from sepc_tf.ops.boxes import LAST_PIXEL, clip_boxes
from sepc_tf.ops.pixels import IMAGENET_MEAN, IMAGENET_STD

logger = logging.getLogger(__name__)

# Batches whose images are sorted by aspect ratio together: enough to find similar ones, few enough
# to leave the order random.
SORTED_BATCHES = 16


@dataclass(frozen=True)
class EpochPlan:
    """What each place of each batch of an epoch holds; every array is `[steps, batch_size]`.

    Attributes:
        indices: int64, positions in `dataset.images`.
        short_sides: int32, the scale the image is resized to.
        flips: bool, whether it is mirrored.
        seeds: int64, of everything else that is random about it, see `sepc_tf.data.augment`.
        counted: bool; False marks the repeated images that fill up a last batch in evaluation.
    """

    indices: np.ndarray
    short_sides: np.ndarray
    flips: np.ndarray
    seeds: np.ndarray
    counted: np.ndarray


class BatchPipeline:
    """Batches of a data set.

    Landscape and portrait images never share a batch, and those that do are close in aspect ratio,
    so little of it is padding: 4% of the pixels with the image sizes of coco128, 16 images a batch,
    where the orientation alone leaves 16%. Every batch is full: in training the last one of each
    kind is filled up from the start of the epoch's order, in evaluation with repeated images whose
    `image_ids` are -1. A batch is a dict:

    - `images` `[B, H, W, 3]`, channels in `channel_order`, zero-padded at the bottom and the right
      to the largest image of the batch and a multiple of `size_divisor`: in evaluation float32,
      normalised; in training uint8, which `Detector` normalises itself
      (`sepc_tf.ops.pixels.normalized_batch`);
    - `pixel_mean`, `pixel_std` float32 `[B, 3]`, in training: what to normalise with;
    - `image_sizes` int32 `[B, 2]`, height and width without the padding;
    - `original_sizes` int32 `[B, 2]`, height and width before resizing: of the file's image, or of
      what cropping and expanding made of it;
    - `boxes` float32 `[B, M, 4]`, xyxy in pixels of `images`, padded with -1; M is a power of two;
    - `labels` int32 `[B, M]`, 0-based, padded with -1;
    - `image_ids` int64 `[B]`;
    - with `masks` also `bitmaps` uint8 `[B, L]`, `frames` int32 `[B, M, 4]` and `offsets` int32
      `[B, M]`, the masks of the objects in pixels of `images` as `sepc_tf.ops.bitmaps` has them,
      padded with 0, 0 and -1; L is a power of two;
    - with `semantic_maps` also `semantic` uint8 `[B, H, W]`, the labels of the pixels of `images`,
      see `sepc_tf.data.semantic_maps.training_map`.

    Boxes are those of the convention. "modern": scaled as the image is, x clipped to [0, width]. As
    mmdetection 1.x in "mmdet1": x2 = x1 + w - 1, both axes scaled by one factor, x clipped to
    [0, width - 1], mirrored to width - 1 - x. A box of which float32 leaves no width or height is
    no object. How masks follow their image says `sepc_tf.data.segmentations.training_mask`; an
    object that keeps its box and has no segmentation has the offset -1.

    An image that cannot be read, or has another size than its annotation says, or whose semantic
    map cannot be used, is named in the log and counted in `unreadable`. In training the next usable
    image of the data set takes its place, one of its orientation if there is one; in evaluation it
    has no detections.

    Args:
        dataset: a `CocoDataset`.
        batch_size: global batch size, images.
        training: whether the order is shuffled per epoch and augmentation is applied.
        short_side: pixels the short side is resized to; in training also a pair (low, high) or a
            list of several, of which one value is drawn per image.
        long_side: pixels the long side may have at most.
        scale_mode: "range" draws a whole number from low..high inclusive, "value" one of the list.
        flip_probability: of mirroring an image left to right in training.
        augmentation: `AugmentationConfig` of what else happens to images in training.
        mean, std: three numbers each, in grey levels, in the order of `channel_order`.
        channel_order: "rgb" or "bgr", in which the network sees the channels.
        size_divisor: what padded heights and widths are multiples of.
        convention: "modern" or "mmdet1"; the detector's.
        masks: whether batches have the masks of the objects; the data set must hold no broken
            segmentation, see `CocoDataset.with_usable_masks`.
        semantic_maps: `sepc_tf.data.semantic_maps.SemanticMaps` of the images, in training.
        seed: of everything random.
        unreadable: "skip" as described above, or "stop" with an error.
        num_parallel: images prepared at the same time; all cores by default.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> pipeline = BatchPipeline(
        ...     dataset, batch_size=2, training=True, short_side=(64, 96), flip_probability=0.5
        ... )
        >>> batch = next(iter(pipeline.training_batches()))  # detector.fit takes such batches
        >>> batch["boxes"].shape[-1], pipeline.steps_per_epoch
        (4, 2)
    """

    def __init__(
        self,
        dataset,
        *,
        batch_size,
        training,
        short_side=800,
        long_side=1333,
        scale_mode="range",
        flip_probability=0.0,
        augmentation=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        channel_order="rgb",
        size_divisor=32,
        convention="modern",
        masks=False,
        semantic_maps=None,
        seed=0,
        unreadable="skip",
        num_parallel=tf.data.AUTOTUNE,
    ):
        short_sides = (short_side,) if np.ndim(short_side) == 0 else tuple(short_side)
        _check(batch_size >= 1, "batch_size", ">= 1", batch_size)
        _check(len(dataset) >= 1, "dataset", "at least one image", len(dataset))
        _check(
            len(short_sides) >= 1 and all(value >= 1 for value in short_sides),
            "short_side",
            "positive pixels",
            short_side,
        )
        _check(long_side >= max(short_sides), "long_side", f">= {max(short_sides)}", long_side)
        _check(scale_mode in ("range", "value"), "scale_mode", "'range' or 'value'", scale_mode)
        _check(
            training or len(short_sides) == 1, "short_side", "one value in evaluation", short_side
        )
        if scale_mode == "range":
            _check(
                len(short_sides) <= 2 and short_sides[0] <= short_sides[-1],
                "short_side",
                "low, high with scale_mode 'range'",
                short_side,
            )
        _check(0 <= flip_probability <= 1, "flip_probability", "within 0..1", flip_probability)
        _check(len(mean) == 3, "mean", "three numbers", mean)
        _check(len(std) == 3 and min(std) > 0, "std", "three positive numbers", std)
        _check(channel_order in ("rgb", "bgr"), "channel_order", "'rgb' or 'bgr'", channel_order)
        _check(size_divisor >= 1, "size_divisor", ">= 1", size_divisor)
        _check(convention in LAST_PIXEL, "convention", f"one of {sorted(LAST_PIXEL)}", convention)
        _check(unreadable in ("skip", "stop"), "unreadable", "'skip' or 'stop'", unreadable)
        _check(training or not semantic_maps, "semantic_maps", "None in evaluation", semantic_maps)

        self.dataset = dataset
        self.batch_size = batch_size
        self.training = training
        self.short_sides = short_sides
        self.long_side = long_side
        self.scale_mode = scale_mode
        self.flip_probability = flip_probability if training else 0.0
        self.augmentation = augmentation or AugmentationConfig()
        check_augmentation(self.augmentation)
        self.mean, self.std = tuple(mean), tuple(std)
        self.channel_order = channel_order
        self.size_divisor = size_divisor
        self.convention = convention
        self.masks = masks
        self.semantic_maps = semantic_maps
        self.seed = seed
        self.stop_at_unreadable = unreadable == "stop"
        self.num_parallel = num_parallel
        self.unreadable = collections.Counter()  # file name -> how often it was skipped
        self._lock = threading.Lock()
        # One image per thread; threads of OpenCV's own would only get in each other's way.
        cv2.setNumThreads(0)
        # mmdetection's groups: landscape, and portrait with the square ones.
        self._aspects = np.array([image.width / image.height for image in dataset.images])
        landscape = self._aspects > 1
        self._groups = [
            g for g in (np.flatnonzero(landscape), np.flatnonzero(~landscape)) if len(g)
        ]
        self._is_landscape = landscape

    @property
    def steps_per_epoch(self):
        """Batches in an epoch, the same for every epoch."""
        return sum(-(-len(group) // self.batch_size) for group in self._groups)

    def plan(self, epoch):
        """The `EpochPlan` of an epoch (0-based): a pure function of the seed and its number."""
        rng = np.random.default_rng([self.seed, epoch])
        batches, counted = [], []
        for group in self._groups:
            steps = -(-len(group) // self.batch_size)
            order = rng.permutation(group) if self.training else group
            filled = np.resize(order, steps * self.batch_size)  # repeats from the start
            window = SORTED_BATCHES * self.batch_size
            for start in range(0, len(filled), window):
                part = filled[start : start + window]
                part[:] = part[np.argsort(self._aspects[part], kind="stable")]
            batches.append(filled.reshape(steps, self.batch_size))
            is_first = np.zeros(filled.size, bool)
            is_first[np.unique(filled, return_index=True)[1]] = True
            counted.append(is_first.reshape(steps, self.batch_size))
        indices, counted = np.concatenate(batches), np.concatenate(counted)
        if self.training:
            indices = indices[rng.permutation(len(indices))]
            counted = np.ones_like(counted)
        if len(self.short_sides) == 1:
            short_sides = np.full(indices.shape, self.short_sides[0])
        elif self.scale_mode == "range":
            short_sides = rng.integers(*self.short_sides, size=indices.shape, endpoint=True)
        else:
            short_sides = rng.choice(self.short_sides, size=indices.shape)
        return EpochPlan(
            indices=indices.astype(np.int64),
            short_sides=short_sides.astype(np.int32),
            flips=rng.random(indices.shape) < self.flip_probability,
            seeds=np.random.default_rng([self.seed, epoch, 1]).integers(2**63, size=indices.shape),
            counted=counted,
        )

    def for_epoch(self, epoch=0, start_batch=0):
        """One pass over the data set.

        Args:
            epoch: 0-based; evaluation batches are the same in every epoch.
            start_batch: number of batches to leave out at the start; they are not decoded.

        Returns:
            A `tf.data.Dataset` of `steps_per_epoch - start_batch` batches.

        Example:
            >>> for batch in pipeline.for_epoch(3):
            ...     outputs = detector(batch["images"])
        """
        _check(
            0 <= start_batch <= self.steps_per_epoch,
            "start_batch",
            f"within 0..{self.steps_per_epoch}",
            start_batch,
        )
        skipped = start_batch * self.batch_size
        entries = tuple(entry[skipped:] for entry in self._entries(epoch))
        return self._batches(
            tf.data.Dataset.from_tensor_slices(entries), self.steps_per_epoch - start_batch
        )

    def training_batches(self, start_step=0):
        """The endless sequence of batches of epochs 0, 1, 2 ..., from the given step on.

        Args:
            start_step: number of batches to leave out at the start; they are not decoded.

        Returns:
            An infinite `tf.data.Dataset`; its batch `i` is batch `start_step + i` of a run.

        Example:
            >>> batches = pipeline.training_batches(start_step=250)
        """
        _check(start_step >= 0, "start_step", ">= 0", start_step)
        first_epoch, start_batch = divmod(start_step, self.steps_per_epoch)

        def entries_of(epoch):
            entries = tf.numpy_function(
                self._entries,
                [epoch],
                [tf.int64, tf.int32, tf.bool, tf.int64, tf.bool],
                stateful=False,
            )
            for entry in entries:
                entry.set_shape([self.steps_per_epoch * self.batch_size])
            return tf.data.Dataset.from_tensor_slices(tuple(entries))

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        entries = epochs.flat_map(entries_of).skip(start_batch * self.batch_size)
        return self._batches(entries, tf.data.INFINITE_CARDINALITY)

    def files_of_step(self, step):
        """File names of the images planned for a training step (0-based), for messages."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return [self.dataset.images[i].file_name for i in self.plan(epoch).indices[batch]]

    def frame_sizes(self, batch):
        """What `Detector.detect` takes as original sizes for a batch of evaluation.

        Args:
            batch: dict with `image_sizes` and `original_sizes`.

        Returns:
            `[B, 2]` float64, see `sepc_tf.data.preprocess.frame_sizes`.
        """
        return frame_sizes(
            batch["image_sizes"],
            batch["original_sizes"],
            self.short_sides[0],
            self.long_side,
            self.convention,
        )

    # Carrying out the plan ----------------------------------------------------------------------

    def _entries(self, epoch):
        plan = self.plan(int(epoch))
        arrays = (plan.indices, plan.short_sides, plan.flips, plan.seeds, plan.counted)
        return tuple(array.ravel() for array in arrays)

    def _batches(self, entries, cardinality):
        samples = entries.map(self._sample, num_parallel_calls=self.num_parallel)
        batches = samples.padded_batch(
            self.batch_size,
            padding_values={
                **(
                    {"images": np.uint8(0), "pixel_mean": 0.0, "pixel_std": 0.0}
                    if self.training
                    else {"images": 0.0}
                ),
                "image_sizes": 0,
                "original_sizes": 0,
                "boxes": -1.0,
                "labels": -1,
                "image_ids": np.int64(-1),
                **({"bitmaps": np.uint8(0), "frames": 0, "offsets": NO_MASK} if self.masks else {}),
                **(
                    {"semantic": np.uint8(padding_label(self.convention))}
                    if self.semantic_maps
                    else {}
                ),
            },
            drop_remainder=True,  # all are full: this makes the batch size static
        )
        if cardinality != tf.data.INFINITE_CARDINALITY:
            batches = batches.apply(tf.data.experimental.assert_cardinality(cardinality))
        options = tf.data.Options()
        options.deterministic = True
        # Several workers each take their part of every global batch.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return batches.prefetch(2).with_options(options)

    def _sample(self, index, short_side, flip, seed, counted):
        # Declared stateless, its only state being a counter: with op determinism on, tf.data runs
        # stateful functions one after the other.
        pixels, boxes, labels, image_id, semantic, *origin = tf.numpy_function(
            self._read,
            [index, seed, counted],
            [tf.uint8, tf.float32, tf.int32, tf.int64, tf.uint8, *[tf.int64] * 4],
            stateful=False,
        )
        pixels.set_shape([None, None, 3])
        boxes.set_shape([None, 4])
        labels.set_shape([None])
        image_id.set_shape([])
        original_size = tf.shape(pixels)[:2]
        image_size = resized_size(*tf.unstack(original_size), short_side, self.long_side)
        if self.training:
            image = tf.numpy_function(
                training_image,
                [pixels, image_size, flip, self.size_divisor],
                tf.uint8,
                stateful=False,
            )
            image.set_shape([None, None, 3])
            images = {
                "images": in_channel_order(image, self.channel_order),
                "pixel_mean": tf.constant(self.mean, tf.float32),
                "pixel_std": tf.constant(self.std, tf.float32),
            }
        else:
            image = preprocess_image(
                pixels, short_side, self.long_side, self.mean, self.std, self.channel_order
            )
            images = {"images": pad_to_multiple(image, self.size_divisor)}

        last = LAST_PIXEL[self.convention]
        frame = frame_sizes(image_size, original_size, short_side, self.long_side, self.convention)
        scale = tf.cast(tf.cast(image_size, tf.float64) / frame, tf.float32)
        boxes = (boxes - [0.0, 0.0, last, last]) * tf.gather(scale, [1, 0, 1, 0])
        boxes = clip_boxes(boxes[None], image_size[None], self.convention)[0]
        if self.flip_probability > 0:
            x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
            right = tf.cast(image_size[1], tf.float32) - last
            boxes = tf.where(flip, tf.stack([right - x2, y1, right - x1, y2], axis=-1), boxes)
        kept = (labels >= 0) & tf.reduce_all(boxes[:, 2:] + last > boxes[:, :2], axis=1)
        order = tf.argsort(tf.where(kept, 0, 1), stable=True)  # padding stays at the end
        boxes, labels, kept = (tf.gather(x, order) for x in (boxes, labels, kept))
        masks = {}
        if self.masks:
            bitmaps, frames, offsets = tf.numpy_function(
                self._read_masks,
                [*origin, original_size, image_size, flip],
                [tf.uint8, tf.int32, tf.int32],
                stateful=False,
            )
            bitmaps.set_shape([None])
            frames, offsets = tf.ensure_shape(frames, [None, 4]), tf.ensure_shape(offsets, [None])
            masks = {
                "bitmaps": bitmaps,
                "frames": tf.where(kept[:, None], tf.gather(frames, order), 0),
                "offsets": tf.where(kept, tf.gather(offsets, order), NO_MASK),
            }
        if self.semantic_maps:
            geometry = [*origin[2:], original_size, image_size, tf.shape(image)[:2], flip]
            semantic = tf.numpy_function(
                self._moved_map, [semantic, *geometry], tf.uint8, stateful=False
            )
            masks["semantic"] = tf.ensure_shape(semantic, [None, None])
        return {
            **images,
            **masks,
            "image_sizes": image_size,
            "original_sizes": original_size,
            "boxes": tf.where(kept[:, None], boxes, -1.0),
            "labels": tf.where(kept, labels, -1),
            "image_ids": image_id,
        }

    def _read(self, index, seed, counted):
        """Pixels, boxes, labels and id of an image, or of the one that stands in for it.

        Then its semantic map, empty where there are none, and what masks need: which image of the
        data set was read, which of its objects the boxes are of (padded with -1), the window of it
        that is left, and the place of its corner.
        """
        index = int(index)
        reason, semantic = None, np.zeros([0, 0], np.uint8)
        for candidate in self._candidates(index):
            record = self.dataset.images[candidate]
            try:
                pixels = record.read()
                if self.semantic_maps:
                    semantic = self.semantic_maps.read(record)
            except UnreadableImageError as error:
                if self.stop_at_unreadable:
                    raise
                self._count(record, error)
                reason = reason or error
                continue
            boxes, objects = record.boxes, np.arange(len(record.boxes))
            window, place = np.array([0, 0, record.width, record.height]), np.zeros(2, int)
            if self.training:
                grey = in_channel_order(np.rint(self.mean), self.channel_order)  # as RGB
                pixels, boxes, objects, window, place = augment(
                    pixels, boxes, self.augmentation, seed, grey
                )
            stands_in = candidate != index and not self.training
            image_id = record.image_id if counted and not stands_in else -1
            count = len(boxes)
            # Powers of two: a step compiled by XLA then meets few shapes, and never zero boxes.
            rows = 1 << max(count - 1, 0).bit_length()
            padding = ((0, rows - count), (0, 0))
            boxes = np.pad(boxes, padding, constant_values=-1)
            labels, objects = (
                np.pad(values, padding[0], constant_values=-1)
                for values in (record.labels[objects], objects)
            )
            origin = np.int64(candidate), objects, window, place
            return pixels, boxes, labels, np.int64(image_id), semantic, *origin
        raise UnreadableImageError(
            f"{self.dataset.name}: none of its images can be used ({len(self.dataset)} tried); "
            f"the first was {reason}"
        )

    def _read_masks(self, index, objects, window, place, canvas_size, image_size, flip):
        """The masks of an image as `pack_masks` has them, the bitmaps padded to a power of two."""
        record = self.dataset.images[int(index)]
        segmentations = [None if i < 0 else record.segmentations[i] for i in objects]
        original_size = (record.height, record.width)
        places = (values.tolist() for values in (window, place, canvas_size, image_size))
        geometry = original_size, *places, flip, self.convention
        bitmaps, frames, offsets = pack_masks(
            [
                None if segmentation is None else training_mask(segmentation, *geometry)
                for segmentation in segmentations
            ]
        )
        length = 1 << max(len(bitmaps) - 1, 0).bit_length()
        return np.pad(bitmaps, (0, length - len(bitmaps))), frames, offsets

    def _moved_map(self, labels, window, place, canvas_size, size, padded_size, flip):
        geometry = (x.tolist() for x in (window, place, canvas_size, size, padded_size))
        return training_map(labels, *geometry, flip, self.convention)

    def _candidates(self, index):
        """`index`, the images after it of its orientation, then those of the other one."""
        yield index
        following = (index + np.arange(1, len(self.dataset))) % len(self.dataset)
        same = self._is_landscape[following] == self._is_landscape[index]
        yield from following[same]
        yield from following[~same]

    def _count(self, record, error):
        with self._lock:
            self.unreadable[record.file_name] += 1
            if self.unreadable[record.file_name] == 1:
                logger.warning("skipped image %s (%d so far)", error, len(self.unreadable))


def _check(condition, name, expected, got):
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, got {got!r}")
