import pytest
from golden_cases import cases_of, check

from sepc_tf.parity import networks


@pytest.mark.parametrize("name", cases_of(networks))
def test_case(name):
    check(name)


@pytest.mark.parametrize(
    ("head", "ours"),
    [
        ({"type": "SepcFreeAnchorRetinaHead"}, "free_anchor"),
        ({"type": "FSAFHead"}, "fsaf"),
        ({"type": "SepcRetinaHead"}, "retinanet"),
        ({"type": "FCOSHead"}, None),
        (None, None),
    ],
)
def test_heads_of_other_detectors_are_none_of_ours(head, ours):
    assert networks.detector_type(head) == ours
