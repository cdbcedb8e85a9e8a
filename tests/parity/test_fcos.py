import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import fcos


@pytest.mark.parametrize("name", cases_of(fcos))
def test_case(name):
    check(name)


def test_settings_of_a_head_of_mmdetection():
    loss = {"loss_weight": 2.0}
    head = {
        "type": "FCOSHead",
        "strides": [8, 16, 32],
        "loss_cls": {"alpha": 0.3, "gamma": 1.5, **loss},
        "loss_bbox": {"type": "GIoULoss", **loss},
        "loss_centerness": loss,
    }
    options = fcos.fcos_options(head)
    assert (options.focal_alpha, options.focal_gamma, options.box_loss) == (0.3, 1.5, "giou")
    assert options.max_distances is None and options.center_radius is None
    head |= {"center_sampling": True, "center_sample_radius": 2.0}
    options = fcos.fcos_options(head, [[-1, 50], [50, 100], [100, 1e8]])
    assert options.max_distances == [50, 100] and options.center_radius == 2.0
