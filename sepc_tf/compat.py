"""What differs between Keras 2 (TensorFlow 2.15) and Keras 3 (TensorFlow 2.21), and nothing else.

Every other module writes one form that runs on both: `import keras`, `add_weight` by keyword, raw
`tf.*` inside `Layer.call`. A difference that needs a branch gets a function here.
"""

import contextlib
import io
from types import ModuleType

import keras
import tensorflow as tf

KERAS_3 = int(keras.__version__.split(".")[0]) >= 3


def require_private(owner, name):
    """Returns a private attribute of Keras that this package relies on.

    Its loss in another version must be an error, and not a training that goes wrong unnoticed.

    Raises:
        ImportError: the installed Keras has none.
    """
    if not hasattr(owner, name):
        raise ImportError(
            f"Keras {keras.__version__} has no {owner.__name__}.{name}, which sepc_tf needs; "
            "install a version that it was tested with (constraints/default.txt)"
        )
    return getattr(owner, name)


# `Detector` overrides these two of Keras 3.
if KERAS_3:
    require_private(keras.Model, "_maybe_symbolic_build")
    require_private(keras.Model, "_default_save_signature")


def import_keras_cv() -> ModuleType:
    """KerasCV; it takes seconds to import, and on Keras 2 prints a line that is left out here."""
    with contextlib.nullcontext() if KERAS_3 else contextlib.redirect_stdout(io.StringIO()):
        import keras_cv
    return keras_cv


def float32_weight_options():
    """Keywords for `Layer.add_weight` that keep a weight float32 under mixed precision.

    Example:
        >>> layer = keras.layers.Layer(dtype="mixed_bfloat16")
        >>> gamma = layer.add_weight(
        ...     name="gamma", shape=(8,), dtype="float32", **float32_weight_options())
        >>> gamma.dtype == "float32"
        True
    """
    return {"autocast": False} if KERAS_3 else {"experimental_autocast": False}


def optimizer_variables(optimizer):
    """Returns the list of an optimizer's variables; a method on legacy (and tfa) optimizers."""
    variables = optimizer.variables
    variables = list(variables() if callable(variables) else variables)
    # Keras 2's LossScaleOptimizer leaves out its own.
    scale = None if KERAS_3 else getattr(optimizer, "_loss_scale", None)
    return variables + list(getattr(scale, "_weights", {}).values())


def prepare_optimizer(optimizer, variables):
    """Creates an optimizer's variables, and leaves the summing over replicas to the caller.

    Keras 3's optimizers sum the gradients of all replicas themselves, after clipping, and have no
    argument against it; here that step is taken out of this one object. See `apply_gradients`.
    There is no way around it by public names: outside a replica, where they do not sum, they cannot
    be called, and dividing by the number of replicas first would be as wrong, and as silent, the
    day Keras stops summing.
    """
    if isinstance(optimizer, _legacy_optimizers()):
        optimizer.iterations  # noqa: B018 - a property that creates the variable
        optimizer._create_all_weights(variables)
        return
    optimizer.build(variables)
    if KERAS_3:
        innermost = getattr(optimizer, "inner_optimizer", optimizer)
        require_private(type(innermost), "_all_reduce_sum_gradients")
        innermost._all_reduce_sum_gradients = list


def several_workers_function(model):
    """`model.fit`'s function of an iterator where several workers train, or None for Keras' own.

    Keras 3 averages what `train_step` returns over an axis that scalars do not have. What a
    `Detector` returns is equal on all replicas: any one's will do.
    """
    strategy = model.distribute_strategy
    if not (KERAS_3 and isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)):
        return None

    def step(iterator):
        outputs = strategy.run(model.train_step, args=(next(iterator),))
        return {name: strategy.experimental_local_results(v)[0] for name, v in outputs.items()}

    return tf.function(step, autograph=False, jit_compile=model.jit_compile, reduce_retracing=True)


def loss_scale(optimizer):
    """Returns the factor that the loss must carry for this optimizer: 1.0, or the loss scale."""
    if KERAS_3:
        return keras.ops.convert_to_tensor(optimizer.scale_loss(1.0), dtype="float32")
    return getattr(optimizer, "loss_scale", 1.0)


def scales_loss(optimizer):
    """Whether the optimizer adapts a loss scale, which it does from non-finite gradients."""
    return isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)


def apply_gradients(optimizer, gradients, variables):
    """Applies gradients that are already summed over the replicas and free of the loss scale.

    Args:
        optimizer: one that went through `prepare_optimizer`.
        gradients: tensors, equal on all replicas.
        variables: trainable variables in the same order.
    """
    if KERAS_3:
        scale = loss_scale(optimizer)  # which Keras 3 divides out again
        optimizer.apply_gradients(list(zip([g * scale for g in gradients], variables)))
    elif isinstance(optimizer, _legacy_optimizers()):
        pairs = list(zip(gradients, variables))
        optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)
    else:
        optimizer.apply_gradients(list(zip(gradients, variables)), skip_gradients_aggregation=True)


def _legacy_optimizers():
    """The base class of Keras 1-style optimizers (tensorflow-addons has only such)."""
    return () if KERAS_3 else (keras.optimizers.legacy.Optimizer,)


def variable_value(variable):
    """The `tf.Variable` behind a Keras variable."""
    return variable.value if KERAS_3 else variable
