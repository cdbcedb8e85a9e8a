"""Measures the deformable convolution against the ordinary one, in time and in memory."""

import importlib.util
import itertools
import time

import numpy as np
import tensorflow as tf

from sepc_tf.benchmark.measure import (
    environment,
    environment_line,
    in_new_process,
    interleaved,
    status_kb,
)
from sepc_tf.ops import native
from sepc_tf.ops.deform_conv2d import deform_conv2d
from sepc_tf.progress import track

# name, height, width, stride: the maps of a 800 x 1333 image.
MAPS = (
    ("P4", 50, 84, 1),
    ("P5", 25, 42, 1),
    ("P6", 13, 21, 1),
    ("P7", 7, 11, 1),
    ("P3, stride 2", 100, 167, 2),
)
CHANNELS = 256
CONVOLUTIONS = ("conv2d", "conv2d, jit")


def deform_conv(batches=(1, 4), maps=MAPS, repeats=15, memory=True, neck=True):
    """Times every form of the deformable convolution at every size.

    The forms run in turn, `repeats` rounds, in this process, so that what else the machine does
    falls on all of them. A ratio is the median over rounds of the form's time divided by the time
    of `tf.nn.conv2d` of the same shape in the same round (graph or compiled, whichever has the
    smaller median).

    Args:
        batches: batch sizes.
        maps: (name, height, width, stride) of every input map.
        repeats: rounds.
        memory: whether peak memory growth is measured too, in processes of their own.
        neck: whether the first call of a whole SEPC neck is timed, in a process of its own.

    Returns:
        A dict that `json` can write: `environment`, `times` (a row per form, size and direction:
        `ms`, `ratio`, `ratio_of_best`), `memory` (MB), `neck` (seconds).
    """
    report = {"environment": environment(), "times": [], "memory": [], "neck": []}
    cases = list(itertools.product(batches, maps, (False, True)))
    for batch, (name, height, width, stride), backward in track(cases, description="timing"):
        times = interleaved(_forms(batch, height, width, stride, backward), repeats)
        case = {"map": name, "batch": batch, "backward": backward}
        report["times"] += [{**case, **row} for row in _rows(times)]
    if memory:
        fused = ["native"] if native.available() else []
        fused += ["native, jit"] if fused and native.callable_from_xla() else []
        for form in ("conv2d", *fused, "xla", "xla, jit", "gather_nd"):
            growth = in_new_process(__name__, "_memory_growth", form)
            report["memory"].append({"form": form, "batch": 4, "map": "P4", "mb": growth})
    if neck:
        for form in ("auto", "xla"):
            seconds = in_new_process(__name__, "_neck_first_call", form) or (None, None)
            report["neck"].append({"form": form, "first": seconds[0], "second": seconds[1]})
    return report


# ---- what is timed


def _forms(batch, height, width, stride, backward):
    """Name -> function without arguments that runs one form on its own random input."""
    x, offset, kernel, upstream = _inputs(batch, height, width, stride)

    def conv2d():
        return tf.nn.conv2d(x, kernel, stride, "SAME")

    def portable():
        return deform_conv2d(x, offset, kernel, strides=stride, implementation="xla")

    def fused():
        return deform_conv2d(x, offset, kernel, strides=stride, implementation="native")

    def gather_nd():
        return gather_nd_deform_conv2d(x, offset, kernel, stride)

    def resampler():
        return resampler_deform_conv2d(x, offset, kernel, stride)

    def build(function, jit=False):
        def run():
            if not backward:
                return function()
            sources = [x, kernel] if function is conv2d else [x, offset, kernel]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                y = function()
            return y, tape.gradient(y, sources, upstream)

        return tf.function(run, jit_compile=jit)

    forms = {"conv2d": build(conv2d), "conv2d, jit": build(conv2d, jit=True)}
    if native.available():
        forms["native"] = build(fused)
        if native.callable_from_xla():
            forms["native, jit"] = build(fused, jit=True)
    forms["xla"] = build(portable)
    forms["xla, jit"] = build(portable, jit=True)
    forms["gather_nd"] = build(gather_nd)
    if _is_installed("tensorflow_addons"):
        forms["tfa resampler"] = build(resampler)
    if _is_installed("torch"):
        forms["torch grid_sample"] = _torch_form(x, offset, kernel, stride, upstream, backward)
    return forms


def _inputs(batch, height, width, stride):
    rng = np.random.default_rng(0)
    out = (batch, -(-height // stride), -(-width // stride))
    shapes = [
        (batch, height, width, CHANNELS),
        (*out, 18),
        (3, 3, CHANNELS, CHANNELS),
        (*out, CHANNELS),
    ]
    values = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    values[2] /= np.sqrt(9 * CHANNELS)
    return [tf.constant(value) for value in values]


def gather_nd_deform_conv2d(x, offset, kernel, stride):
    """As third-party TensorFlow layers do it: all columns by `gather_nd`, gradients by TensorFlow.

    3x3, padding "same", no groups; a position outside the map is clipped to the border.
    """
    size = tf.constant([x.shape[1] - 1, x.shape[2] - 1], x.dtype)
    position = tf.clip_by_value(_grid(x, offset, stride), 0.0, size)
    low = tf.floor(position)
    fraction = position - low
    low = tf.cast(low, tf.int32)
    batch = tf.broadcast_to(tf.range(x.shape[0])[:, None, None, None, None], [*low.shape[:-1], 1])
    columns = 0.0
    for step_y in (0, 1):
        for step_x in (0, 1):
            corner = tf.minimum(low + tf.constant([step_y, step_x]), tf.cast(size, tf.int32))
            weight_y = fraction[..., :1] if step_y else 1.0 - fraction[..., :1]
            weight_x = fraction[..., 1:] if step_x else 1.0 - fraction[..., 1:]
            columns += tf.gather_nd(x, tf.concat([batch, corner], -1)) * weight_y * weight_x
    return tf.einsum("nhwkc,kcd->nhwd", columns, tf.reshape(kernel, [9, *kernel.shape[2:]]))


def resampler_deform_conv2d(x, offset, kernel, stride):
    """Columns by `tensorflow_addons.image.resampler`, one matrix product."""
    import tensorflow_addons as tfa

    position = _grid(x, offset, stride)
    batch, height, width = position.shape[:3]
    warp = tf.reshape(position[..., ::-1], [batch, -1, 2])
    columns = tf.reshape(tfa.image.resampler(x, warp), [batch * height * width, -1])
    y = tf.matmul(columns, tf.reshape(kernel, [-1, kernel.shape[-1]]))
    return tf.reshape(y, [batch, height, width, -1])


def _grid(x, offset, stride):
    """`[N, Ho, Wo, 9, 2]` sampling positions (y, x) of a 3x3 convolution padded as "same"."""
    out = offset.shape[1:3]
    starts = [
        np.arange(o) * stride - max(0, (o - 1) * stride + 3 - s) // 2
        for o, s in zip(out, x.shape[1:3])
    ]
    taps = np.stack(np.meshgrid(range(3), range(3), indexing="ij"), -1).reshape(9, 2)
    grid = np.stack(np.meshgrid(*starts, indexing="ij"), -1)[:, :, None] + taps
    return tf.reshape(offset, [*offset.shape[:3], 9, 2]) + tf.constant(grid, x.dtype)


def _torch_form(x, offset, kernel, stride, upstream, backward):
    """Columns by PyTorch's `grid_sample`, one matrix product, gradients by PyTorch; NCHW."""
    import torch

    batch, height, width, channels = x.shape
    out_h, out_w = offset.shape[1:3]
    position = torch.tensor(_grid(tf.zeros_like(x), tf.zeros_like(offset), stride).numpy())
    size = torch.tensor([height - 1.0, width - 1.0])
    x = torch.tensor(x.numpy().transpose(0, 3, 1, 2)).contiguous().requires_grad_(backward)
    offset = torch.tensor(offset.numpy()).requires_grad_(backward)
    kernel = torch.tensor(kernel.numpy().transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1))
    kernel.requires_grad_(backward)
    upstream = torch.tensor(upstream.numpy().transpose(0, 3, 1, 2)).flatten(2)

    def run():
        grid = 2.0 * (position + offset.view(position.shape)) / size - 1.0
        # [N, 9, Ho, Wo, (x, y)] -> one tall map, so that the columns come out tap by tap
        grid = grid.flip(-1).permute(0, 3, 1, 2, 4).reshape(batch, 9 * out_h, out_w, 2)
        columns = torch.nn.functional.grid_sample(
            x, grid, padding_mode="zeros", align_corners=True
        ).view(batch, channels * 9, out_h * out_w)
        y = kernel @ columns
        return torch.autograd.grad(y, [x, offset, kernel], upstream) if backward else y

    return run


def _is_installed(package):
    return importlib.util.find_spec(package) is not None


# ---- how it is measured


def _rows(times):
    conv2d = times[min(CONVOLUTIONS, key=lambda name: np.median(times[name]))]
    return [
        {
            "form": name,
            "ms": float(np.median(values) * 1e3),
            "ratio": float(np.median(values / conv2d)),
            "ratio_of_best": float(values.min() / conv2d.min()),
        }
        for name, values in times.items()
    ]


def _memory_growth(form):
    """MB by which the peak of a forward and backward pass exceeds the memory held before it.

    Batch 4 at P4. The outputs (the result and three gradients, 38 MB) are part of it.
    """
    run = _forms(4, 50, 84, 1, backward=True)[form]
    before = status_kb("VmRSS")
    for _ in range(3):
        run()
    return (status_kb("VmHWM") - before) / 1024


def _neck_first_call(form):
    """Seconds of the first and of the second forward and backward pass of a whole SEPC neck."""
    import contextlib

    from sepc_tf.necks.sepc import SEPC
    from sepc_tf.ops.deform_conv2d import portable_ops

    pyramid = [tf.random.normal([1, *s, CHANNELS]) for s in ((100, 168), (50, 84), (25, 42))]
    pyramid += [tf.random.normal([1, *s, CHANNELS]) for s in ((13, 21), (7, 11))]
    neck = SEPC.variant("sepc", filters=CHANNELS)
    neck.build([map_.shape for map_ in pyramid])
    weights = neck.trainable_variables

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            outputs = neck(pyramid, training=True)
            loss = tf.add_n([tf.reduce_sum(y) for y in tf.nest.flatten(outputs)])
        return tape.gradient(loss, weights)

    seconds = []
    with portable_ops() if form == "xla" else contextlib.nullcontext():
        for _ in range(2):
            started = time.perf_counter()
            tf.nest.map_structure(np.array, step())
            seconds.append(time.perf_counter() - started)
    return seconds


# ---- how it is shown


def markdown(report):
    """The report as the tables of `docs/results/deform_conv.md`."""
    lines = [environment_line(report["environment"]), ""]
    names = list(dict.fromkeys(row["form"] for row in report["times"]))
    lines += ["| map | batch | pass | conv2d ms | " + " | ".join(names) + " |"]
    lines += ["|" + " --- |" * (len(names) + 4)]
    cases = dict.fromkeys((r["map"], r["batch"], r["backward"]) for r in report["times"])
    for case in cases:
        rows = {
            r["form"]: r for r in report["times"] if (r["map"], r["batch"], r["backward"]) == case
        }
        best = min(rows[name]["ms"] for name in CONVOLUTIONS)
        cells = [f"{rows[n]['ratio']:.2f} ({rows[n]['ratio_of_best']:.2f})" for n in names]
        direction = "forward + backward" if case[2] else "forward"
        lines.append(f"| {case[0]} | {case[1]} | {direction} | {best:.2f} | {' | '.join(cells)} |")
    if report["memory"]:
        lines += ["", "| form | memory growth, P4, batch 4, forward + backward |", "| --- | --- |"]
        lines += [f"| {r['form']} | {_number(r['mb'], 'MB')} |" for r in report["memory"]]
    if report["neck"]:
        lines += [
            "",
            "| SEPC neck, forward + backward | first call | second |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {r['form']} | {_number(r['first'], 's')} | {_number(r['second'], 's')} |"
            for r in report["neck"]
        ]
    return "\n".join(lines)


def _number(value, unit):
    return "not measured" if value is None else f"{value:.1f} {unit}"
