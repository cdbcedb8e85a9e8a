"""From the configured strategy name to a `tf.distribute.Strategy`."""

from __future__ import annotations

import json
import os

import tensorflow as tf

from sepc_tf.errors import ConfigError


def make_strategy(name: str, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Builds the distribution strategy of a training run.

    Must run before TensorFlow has touched its devices when `cpu_replicas` is above 1.

    Args:
        name: "mirrored" (all visible GPUs; without a GPU, `cpu_replicas` logical CPU devices),
            "multi_worker" (as the environment variable TF_CONFIG says), or "one".
        cpu_replicas: replicas of "mirrored" on a machine without a GPU.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ConfigError: TF_CONFIG is missing or unusable, `cpu_replicas` is given for another strategy
            than "mirrored", or TensorFlow's devices were already initialised with another number
            of CPU devices.

    Example:
        >>> with make_strategy("mirrored", cpu_replicas=2).scope():
        ...     detector = build_detector(config.detector, num_classes=10)
    """
    if name != "mirrored" and cpu_replicas != 1:
        raise ConfigError(
            f"train.cpu_replicas: {cpu_replicas} has no effect on train.strategy: {name}; leave it "
            "out (or at its default, 1)"
        )
    if name == "one":
        return tf.distribute.get_strategy()
    if name == "multi_worker":
        _check_tf_config()
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        return tf.distribute.MirroredStrategy([device.name for device in gpus])
    if cpu_replicas > 1:
        _split_cpu(cpu_replicas)
    return tf.distribute.MirroredStrategy([f"cpu:{i}" for i in range(cpu_replicas)])


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files: the only one, the chief, or worker 0."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec():
        return True
    chief = "chief" if "chief" in resolver.cluster_spec().as_dict() else "worker"
    return resolver.task_type == chief and resolver.task_id == 0


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:
        available = len(tf.config.list_logical_devices("CPU"))
        if available < count:
            raise ConfigError(
                f"train.cpu_replicas: {count} CPU replicas were asked for, but TensorFlow already "
                f"runs with {available}; call make_strategy before any other TensorFlow operation"
            ) from error


def _check_tf_config():
    text = os.environ.get("TF_CONFIG")
    expected = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
    if not text:
        raise ConfigError(
            f"train.strategy: multi_worker needs TF_CONFIG in the environment: {expected}"
        )
    try:
        value = json.loads(text)
        value["cluster"][value["task"]["type"]][value["task"]["index"]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"TF_CONFIG={text!r} is not usable; expected {expected}") from error
