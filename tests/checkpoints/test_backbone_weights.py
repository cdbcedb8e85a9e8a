import keras
import numpy as np
import pytest

from sepc_tf.backbones import ResNet
from sepc_tf.checkpoints import (
    CheckpointError,
    export_state_dict,
    load_backbone_weights,
    named_variables,
)
from sepc_tf.checkpoints.variables import read_variables
from sepc_tf.detectors import RetinaNet
from sepc_tf.necks import FPN, ConvTowers
from sepc_tf.training.checkpoints import write_checkpoint


def backbone(seed=None, **options):
    layer = ResNet(**{"depth": 18, "width": 8, **options})
    layer.build((None, None, None, 3))
    if seed is not None:
        rng = np.random.default_rng(seed)
        for variable in named_variables(layer).values():
            variable.assign(rng.standard_normal(variable.shape).astype(np.float32))
    return layer


def assert_equal(a, b):
    expected = named_variables(a)
    for path, variable in named_variables(b).items():
        np.testing.assert_array_equal(variable, expected[path])


def test_torchvision_classifier_is_left_out_and_reported(tmp_path):
    source, target = backbone(seed=0), backbone()
    classifier = {"fc.weight": np.zeros([1000, 64]), "fc.bias": np.zeros(1000)}
    np.savez(tmp_path / "resnet.npz", **export_state_dict(source), **classifier)
    report = load_backbone_weights(target, tmp_path / "resnet.npz")
    assert report.ignored == ["fc.weight", "fc.bias"]
    assert_equal(source, target)


def test_backbone_of_a_whole_detector(tmp_path):
    source, target = backbone(seed=0), backbone()
    state_dict = {f"backbone.{key}": v for key, v in export_state_dict(source).items()}
    np.savez(tmp_path / "detector.npz", **state_dict, **{"bbox_head.retina_cls.bias": np.zeros(9)})
    load_backbone_weights(target, tmp_path / "detector.npz")
    assert_equal(source, target)


def test_plain_weights_fit_deformable_stages(tmp_path):
    source, target = backbone(seed=0), backbone(deformable_stages=(5,))
    np.savez(tmp_path / "resnet.npz", **export_state_dict(source))
    report = load_backbone_weights(target, tmp_path / "resnet.npz")
    assert {path.split("/")[2] for path in report.kept} == {"offset"}
    assert all(np.all(named_variables(target)[path].numpy() == 0) for path in report.kept)
    values = named_variables(target)
    for path, variable in named_variables(source).items():
        np.testing.assert_array_equal(variable, values[path])


def test_keras_weights_file(tmp_path):
    source, target = backbone(seed=0), backbone()
    images = keras.Input((None, None, 3))
    keras.Model(images, source(images)).save_weights(tmp_path / "resnet.weights.h5")
    load_backbone_weights(target, str(tmp_path / "resnet.weights.h5"))
    assert_equal(source, target)


@pytest.mark.parametrize("whole", [True, False])
def test_keras_file_of_a_detector_or_of_a_backbone(tmp_path, whole):
    source, target = backbone(seed=0), backbone(deformable_stages=(5,))
    if whole:
        model = RetinaNet.from_parts(source, FPN(8, name="fpn"), ConvTowers(8, num_convs=1,
                                     name="towers"), num_classes=3)  # fmt: skip
    else:
        images = keras.Input((None, None, 3))
        model = keras.Model(images, source(images))
    model.save(tmp_path / "model.keras")
    assert load_backbone_weights(target, tmp_path / "model.keras") is None
    values = named_variables(target)
    for path, variable in named_variables(source).items():
        np.testing.assert_array_equal(variable, values[path])
    with pytest.raises(CheckpointError, match=r"model\.keras does not fit"):
        load_backbone_weights(backbone(depth=34), tmp_path / "model.keras")
    (tmp_path / "broken.keras").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"broken\.keras: Keras cannot load it"):
        load_backbone_weights(target, tmp_path / "broken.keras")


@pytest.mark.parametrize("averaged", [True, False])
def test_checkpoint_of_a_run(tmp_path, averaged):
    source, average, target = backbone(seed=0), backbone(seed=1), backbone()
    arrays = {f"model/backbone/{k}": v for k, v in read_variables(named_variables(source)).items()}
    if averaged:
        arrays |= {
            f"ema/backbone/{k}": v for k, v in read_variables(named_variables(average)).items()
        }
    write_checkpoint(tmp_path / "best.npz", {**arrays, "model/head/bias": np.zeros(3)}, {"step": 5})
    load_backbone_weights(target, tmp_path / "best.npz")
    assert_equal(average if averaged else source, target)


def test_wrong_depth_and_width_name_the_keys(tmp_path):
    np.savez(tmp_path / "resnet.npz", **export_state_dict(backbone(depth=34)))
    target = backbone(seed=1)
    before = [variable.numpy() for variable in named_variables(target).values()]
    with pytest.raises(CheckpointError, match=r"unexpected: layer1\.2\.conv1\.weight"):
        load_backbone_weights(target, tmp_path / "resnet.npz")
    with pytest.raises(CheckpointError, match=r"conv1\.weight: expected \(16, 3, 7, 7\)"):
        load_backbone_weights(backbone(depth=34, width=16), tmp_path / "resnet.npz")
    for variable, value in zip(named_variables(target).values(), before):
        np.testing.assert_array_equal(variable, value)


def test_missing_keras_weights_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_backbone_weights(backbone(), tmp_path / "absent.weights.h5")
