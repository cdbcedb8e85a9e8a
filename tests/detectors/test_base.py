"""What every detector must do: train alike on two replicas, refuse bad steps, round-trip."""

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf
from tiny_detector import random_batch, tiny_detector

from sepc_tf import compat
from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.detectors import FCOS, FSAF, FreeAnchor, RetinaNet
from sepc_tf.necks import FPN, ConvTowers

DETECTORS = [RetinaNet, FreeAnchor, FSAF]


def values(detector):
    return {name: np.array(v) for name, v in named_variables(detector).items()}


def sgd(learning_rate=0.05):
    return keras.optimizers.SGD(learning_rate, momentum=0.9)


def assign(detector, arrays):
    for name, variable in named_variables(detector).items():
        variable.assign(arrays[name])


def dataset(*batches):
    return tf.data.Dataset.from_tensor_slices(
        {key: np.stack([b[key] for b in batches]) for key in batches[0]}
    )


@pytest.mark.parametrize(
    ("cls", "clip_norm", "variant"),
    [
        (RetinaNet, None, None),
        (RetinaNet, 0.05, "sepc_lite"),
    ],
)
def test_two_replicas_equal_one_device(two_replicas, cls, clip_norm, variant):
    options = {"clip_norm": clip_norm, "weight_decay": 1e-2}
    batches = [random_batch(seed) for seed in range(3)]  # replicas with unequal object counts
    single = tiny_detector(cls, variant=variant)
    start = values(single)
    single.compile(sgd(), **options)
    history = single.fit(dataset(*batches), verbose=0).history
    with two_replicas.scope():
        double = tiny_detector(cls, variant=variant)
        assign(double, start)
        double.compile(sgd(), **options)
    double_history = double.fit(dataset(*batches), verbose=0).history

    assert clip_norm is None or history["grad_norm"][0] > 2 * clip_norm
    for name, value in history.items():
        np.testing.assert_allclose(double_history[name], value, rtol=1e-5, err_msg=name)
    end, double_end = values(single), values(double)
    for name in start:
        moved = np.abs(end[name] - start[name]).max()
        assert moved > 0, name
        # The floor: a bias before a batch norm has no gradient but rounding noise.
        tolerance = 1e-5 * max(moved, np.abs(end[name]).max()) + 1e-8
        np.testing.assert_allclose(double_end[name], end[name], rtol=0, atol=tolerance)
    losses = single.evaluate(dataset(*batches), verbose=0, return_dict=True)
    double_losses = double.evaluate(dataset(*batches), verbose=0, return_dict=True)
    for name in ("loss", *cls.loss_names):
        np.testing.assert_allclose(double_losses[name], losses[name], rtol=1e-5)


@pytest.mark.parametrize("cls", DETECTORS)
def test_step_is_clipped_then_decayed_as_in_pytorch(cls):
    detector = tiny_detector(cls)
    batch = random_batch()
    with tf.GradientTape() as tape:
        parts = detector.compute_losses(detector(batch["images"], training=True), batch)
        loss = tf.add_n(list(parts.values()))
    gradients = [g.numpy() for g in tape.gradient(loss, list(detector.trainable_variables))]
    before = [np.array(v) for v in detector.trainable_variables]
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
    clip_norm = norm / 3
    detector.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), clip_norm=clip_norm, weight_decay=0.01
    )
    logs = detector.fit(dataset(batch), verbose=0).history
    np.testing.assert_allclose(logs["grad_norm"][0], norm, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"][0], loss, rtol=1e-5)
    for variable, w, g in zip(detector.trainable_variables, before, gradients):
        want = w - 0.1 * (g * clip_norm / norm + 0.01 * w)
        np.testing.assert_allclose(np.array(variable), want, rtol=0, atol=1e-6)


def test_biases_have_a_rate_and_a_decay_of_their_own():
    """Two steps against SGD with momentum in NumPy, two groups of weights as PyTorch has them."""
    detector = tiny_detector(FCOS, batch_norm=True)
    batch = random_batch()
    variables = list(detector.trainable_variables)
    names = {id(v): name for name, v in named_variables(detector).items()}
    are_biases = [names[id(v)].endswith("bias") for v in variables]
    assert 5 < sum(are_biases) < len(variables) and "backbone/norm/beta" in names.values()
    detector.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        weight_decay=0.01,
        bias_lr_mult=2.0,
        bias_decay_mult=0.25,
    )
    weights = [np.float64(v) for v in variables]
    momenta = [np.zeros_like(w) for w in weights]
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.add_n([*detector.batch_losses(batch, training=True).values()])
        gradients = tape.gradient(loss, variables)
        for i, (gradient, is_bias) in enumerate(zip(gradients, are_biases)):
            rate, decay = (0.2, 0.0025) if is_bias else (0.1, 0.01)
            momenta[i] = 0.9 * momenta[i] + np.float64(gradient) + decay * weights[i]
            weights[i] -= rate * momenta[i]
        detector.train_step(batch)
        for variable, want in zip(variables, weights):
            np.testing.assert_allclose(np.array(variable), want, rtol=1e-5, atol=1e-6)
    assert detector.get_compile_config()["bias_lr_mult"] == 2.0


def spoil(batch):
    """The batch with NaN boxes: the loss becomes NaN, as do the gradients."""
    boxes = np.where(batch["boxes"] >= 0, np.nan, batch["boxes"]).astype(np.float32)
    return {**batch, "boxes": boxes, "images": batch["images"] * np.float32(np.nan)}


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_step_that_is_not_finite_leaves_no_trace(two_replicas, replicas):
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        detector = tiny_detector(RetinaNet, batch_norm=True)
        detector.compile(sgd(), clip_norm=35.0, weight_decay=0.01)
    good = random_batch(0)
    assert detector.fit(dataset(good), verbose=0).history["non_finite"] == [0.0]
    weights = values(detector)
    slots = [np.array(v) for v in compat.optimizer_variables(detector.optimizer)]
    logs = detector.fit(dataset(spoil(good)), verbose=0).history
    assert logs["non_finite"] == [1.0]
    for name, value in values(detector).items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    for variable, value in zip(compat.optimizer_variables(detector.optimizer), slots):
        np.testing.assert_array_equal(np.array(variable), value)
    assert detector.fit(dataset(good), verbose=0).history["non_finite"] == [0.0]
    assert any((values(detector)[name] != weights[name]).any() for name in weights)


@pytest.mark.parametrize("cls", DETECTORS)
def test_saved_detector_loads_with_same_outputs_and_detections(cls, tmp_path):
    detector = tiny_detector(cls, score_threshold=0.005, nms_iou=0.4, nms_pre=50, max_detections=20)
    detector.compile(sgd(0.001), clip_norm=10.0, weight_decay=1e-4)
    batch = random_batch()
    detector.fit(dataset(batch), verbose=0)
    detector.save(tmp_path / "detector.keras")
    loaded = keras.models.load_model(tmp_path / "detector.keras")
    assert type(loaded) is cls
    for name, value in detector.get_config().items():
        if not isinstance(value, dict | list):  # parts: compared by what they compute
            assert loaded.get_config()[name] == value, name
    assert (loaded.anchor_generator, loaded.coder) == (detector.anchor_generator, detector.coder)
    raw, loaded_raw = (d(batch["images"], training=False) for d in (detector, loaded))
    for name in raw:
        for got, want in zip(loaded_raw[name], raw[name]):
            np.testing.assert_array_equal(got, want)
    detections = detector.detect(batch["images"], batch["image_sizes"])
    assert detections["num_detections"].numpy().min() > 0
    for name, got in loaded.detect(batch["images"], batch["image_sizes"]).items():
        np.testing.assert_array_equal(got, detections[name])
    # It also goes on training where it stood.
    assert (loaded.clip_norm, loaded.weight_decay) == (10.0, 1e-4)
    for d in (detector, loaded):
        d.fit(dataset(batch), verbose=0)
    for name, value in values(loaded).items():
        np.testing.assert_allclose(value, values(detector)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", DETECTORS)
def test_learns_one_batch(cls):
    detector = tiny_detector(cls)
    detector.compile(keras.optimizers.Adam(3e-3), clip_norm=35.0)
    batch = dataset(random_batch()).repeat(60)
    losses = [detector.fit(batch, verbose=0).history["loss"][0] for _ in range(2)]
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("cls", DETECTORS)
def test_images_without_objects(cls):
    detector = tiny_detector(cls)
    detector.compile(sgd())
    batch = random_batch()
    empty = {**batch, "boxes": -np.ones_like(batch["boxes"]), "labels": 0 * batch["labels"] - 1}
    logs = detector.fit(dataset(empty), verbose=0).history
    assert logs["non_finite"] == [0.0]
    assert np.isfinite(logs["loss"][0])
    # Only real objects count: the padding's values and length are of no consequence.
    padded = {
        **batch,
        "boxes": np.pad(batch["boxes"], ((0, 0), (0, 3), (0, 0)), constant_values=-1),
        "labels": np.pad(batch["labels"], ((0, 0), (0, 3)), constant_values=-1),
    }
    outputs = detector(batch["images"])
    short, long = (detector.compute_losses(outputs, b) for b in (batch, padded))
    for name in detector.loss_names:
        np.testing.assert_allclose(long[name], short[name], rtol=1e-6)


@pytest.mark.parametrize("cls", DETECTORS)
def test_xla_train_step_equals_graph(cls):
    batch = random_batch()
    ends, start = [], None
    for jit_compile in (False, True):
        detector = tiny_detector(cls)
        if start is None:
            start = values(detector)
        assign(detector, start)
        detector.compile(sgd(), clip_norm=1.0, weight_decay=0.01, jit_compile=jit_compile)
        detector.fit(dataset(batch), verbose=0)
        ends.append(values(detector))
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", DETECTORS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(cls, policy):
    keras.utils.set_random_seed(1)
    keras.mixed_precision.set_global_policy(policy)
    try:
        detector = tiny_detector(cls)
        detector.compile(sgd(1e-3), clip_norm=35.0, weight_decay=1e-4)
        assert compat.scales_loss(detector.optimizer) == (policy == "mixed_float16")
        start = values(detector)
        assert {v.dtype for v in start.values()} == {np.dtype(np.float32)}
        logs = detector.fit(dataset(random_batch()), verbose=0).history
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert logs["non_finite"] == [0.0]
    exact = tiny_detector(cls)
    assign(exact, start)
    exact.compile(sgd(1e-3), clip_norm=35.0, weight_decay=1e-4)
    exact_logs = exact.fit(dataset(random_batch()), verbose=0).history
    np.testing.assert_allclose(logs["loss"], exact_logs["loss"], rtol=0.02)
    np.testing.assert_allclose(logs["grad_norm"], exact_logs["grad_norm"], rtol=0.05)
    end, exact_end = values(detector), values(exact)
    # bfloat16 keeps 8 bits, so single small gradients may be off by a fifth; the whole update, as
    # one vector, must be that of float32.
    step, exact_step = (
        np.concatenate([(values[name] - start[name]).ravel() for name in start])
        for values in (end, exact_end)
    )
    assert np.linalg.norm(step - exact_step) < 0.02 * np.linalg.norm(exact_step)


@pytest.mark.parametrize("replicas", [1, 2])
def test_float16_overflow_lowers_the_scale_and_is_no_fault(two_replicas, replicas):
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        with strategy.scope():
            detector = tiny_detector(RetinaNet, batch_norm=True)
            scaled = keras.mixed_precision.LossScaleOptimizer(sgd(1e-3), initial_scale=2.0**40)
            detector.compile(scaled, clip_norm=35.0)
        weights = values(detector)
        logs = detector.fit(dataset(random_batch()), verbose=0).history
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert logs["non_finite"] == [0.0]
    assert float(compat.loss_scale(detector.optimizer)) == 2.0**39
    # A checkpoint of the optimizer's variables has the scale.
    assert any(np.all(np.array(v) == 2.0**39) for v in compat.optimizer_variables(scaled))
    for name, value in values(detector).items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)


def test_kerascv_backbone_trains_and_round_trips(tmp_path):
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 8, 8, 8],
        stackwise_blocks=[1, 1, 1, 1],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=False,
        input_shape=(None, None, 3),
    )
    detector = RetinaNet.from_parts(
        backbone, FPN(8, name="fpn"), ConvTowers(8, 1, name="towers"), num_classes=3
    )
    assert not isinstance(detector, keras_cv.models.RetinaNet)
    batch = random_batch()
    detector.compile(sgd(1e-3))
    before = values(detector)
    assert detector.fit(dataset(batch), verbose=0).history["non_finite"] == [0.0]
    assert any((values(detector)[n] != before[n]).any() for n in before if n.startswith("backbone"))
    detector.save(tmp_path / "detector.keras")
    loaded = keras.models.load_model(tmp_path / "detector.keras")
    for got, want in zip(loaded(batch["images"])["box"], detector(batch["images"])["box"]):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("cls", DETECTORS)
def test_detection_is_dynamic_inside_a_saved_model(cls, tmp_path):
    detector = tiny_detector(cls, score_threshold=0.001)

    class Server(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, None, 3], tf.float32),
                tf.TensorSpec([None, 2], tf.int32),
            ]
        )
        def serve(self, images, image_sizes):
            return detector.detect(images, image_sizes)

    server = Server()
    server.detector = detector
    tf.saved_model.save(server, str(tmp_path), signatures=server.serve)
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    for count, size in ((1, (64, 96)), (2, (96, 32))):
        batch = random_batch(batch=count, size=size)
        images, image_sizes = (tf.constant(batch[key]) for key in ("images", "image_sizes"))
        want = detector.detect(images, image_sizes)
        got = serve(images=images, image_sizes=image_sizes)
        assert want["boxes"].shape == (count, 100, 4)
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-4)
        limits = batch["image_sizes"][:, None, [1, 0, 1, 0]]
        assert (want["boxes"] >= 0).numpy().all() and (want["boxes"] <= limits).numpy().all()


def test_predict_gives_detections_of_every_image():
    detector = tiny_detector(RetinaNet)
    batches = dataset(random_batch(0), random_batch(1))
    predictions = detector.predict(batches, verbose=0)
    assert {key: value.shape for key, value in predictions.items()} == {
        "boxes": (8, 100, 4),
        "scores": (8, 100),
        "classes": (8, 100),
        "num_detections": (8,),
    }


def test_tensorflow_addons_optimizer():
    tfa = pytest.importorskip("tensorflow_addons")
    detector = tiny_detector(RetinaNet)
    optimizer = tfa.optimizers.Lookahead(
        tfa.optimizers.SGDW(weight_decay=1e-4, learning_rate=1e-2, momentum=0.9)
    )
    detector.compile(optimizer, clip_norm=35.0)
    before = values(detector)
    assert detector.fit(dataset(random_batch()), verbose=0).history["non_finite"] == [0.0]
    assert all((values(detector)[name] != before[name]).any() for name in before)


def test_bad_arguments_are_named():
    with pytest.raises(
        ValueError, match=r"coder and matcher must share one.*'mmdet1' and 'modern'"
    ):
        parts = tiny_detector(RetinaNet)
        RetinaNet(
            parts.backbone,
            parts.necks,
            parts.towers,
            parts.head,
            anchor_generator=parts.anchor_generator,
            coder=type(parts.coder)(convention="mmdet1"),
            matcher=parts.matcher,
        )
    with pytest.raises(ValueError, match="clip_norm"):
        tiny_detector(RetinaNet).compile(keras.optimizers.SGD(0.1, global_clipnorm=1.0))
    with pytest.raises(ValueError, match=r"box_loss"):
        tiny_detector(RetinaNet).compile("sgd", box_loss="smoothl1")
    with pytest.raises(ValueError, match=r"convention must be one of.*'mmdet'"):
        tiny_detector(RetinaNet, convention="mmdet")
