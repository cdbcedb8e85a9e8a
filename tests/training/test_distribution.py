"""Which process writes, for the clusters that TF_CONFIG can describe."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from sepc_tf.errors import ConfigError
from sepc_tf.training.distribution import is_chief, make_strategy


def strategy(cluster, task_type, task_id):
    resolver = SimpleNamespace(
        cluster_spec=lambda: tf.train.ClusterSpec(cluster), task_type=task_type, task_id=task_id
    )
    return SimpleNamespace(cluster_resolver=resolver)


@pytest.mark.parametrize(
    ("cluster", "writer"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 0)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("chief", 0)),
    ],
)
def test_exactly_one_process_of_a_cluster_writes(cluster, writer):
    tasks = [(kind, index) for kind, hosts in cluster.items() for index in range(len(hosts))]
    assert [task for task in tasks if is_chief(strategy(cluster, *task))] == [writer]


def test_a_process_alone_writes():
    assert is_chief(tf.distribute.get_strategy())


@pytest.mark.parametrize("name", ["one", "multi_worker"])
def test_replicas_of_mirrored_are_refused_elsewhere(name):
    with pytest.raises(
        ConfigError, match=f"cpu_replicas: 2 has no effect on train.strategy: {name}"
    ):
        make_strategy(name, cpu_replicas=2)
