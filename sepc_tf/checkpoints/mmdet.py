"""Weights under the names and layouts of mmdetection 1.x (and torchvision) state dicts.

Import and export are one correspondence between our variables and their keys, made from the
variables' paths: the segments of a path are translated one by one.
"""

import dataclasses
import fnmatch
import re

import numpy as np

from sepc_tf.checkpoints.variables import named_variables
from sepc_tf.errors import CheckpointError

# (our path segment, theirs). The first match wins; a match covers the whole segment. `{level}` is
# the number of the level that the match's first group names, counted from the neck's finest, and
# `{below}` the one below it.
_SEGMENTS = [
    # ResNet
    (r"(conv|bn)(\d)", r"\1\2"),
    (r"layer(\d)_(\d+)", r"layer\1.\2"),
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
    # necks: the outputs of P3, P4, ... are numbered from 0
    (r"lateral_c(\d)", "lateral_convs.{level}.conv"),
    (r"lateral_c(\d)_norm", "lateral_convs.{level}.gn"),
    (r"output_p(\d)", "fpn_convs.{level}.conv"),
    (r"output_p(\d)_norm", "fpn_convs.{level}.gn"),
    (r"down_p(\d)", "downsample_convs.{level}.conv"),
    (r"down_p(\d)_norm", "downsample_convs.{level}.gn"),
    (r"bottom_up_p(\d)", "pafpn_convs.{below}.conv"),
    (r"bottom_up_p(\d)_norm", "pafpn_convs.{below}.gn"),
    (r"lateral_(\d)", "lateral_convs.{level}"),
    (r"extra_6", "extra_downsamples.0.0"),
    (r"extra_7", "extra_downsamples.1.0"),
    (r"cell_(\d+)_(\w+)", r"fpn_stages.\1.\2.conv_out"),
    (r"conv", "conv"),
    (r"refine_(theta|phi|g)", r"refine.\1.conv"),
    (r"refine_out", "refine.conv_out.conv"),
    (r"reduction", "reduction_conv.conv"),
    (r"output_(\d+)", r"fpn_convs.\1.conv"),
    # SEPC
    (r"pconv_(\d+)", r"Pconvs.\1"),
    (r"coarser", "Pconv.0"),
    (r"same", "Pconv.1"),
    (r"finer", "Pconv.2"),
    (r"norm", "bn"),
    (r"cls_conv", "cconv"),
    (r"cls_norm", "cbn"),
    (r"box_conv", "lconv"),
    (r"box_norm", "lbn"),
    # the towers and final convolutions of dense heads
    (r"cls_conv_(\d+)", r"cls_convs.\1.conv"),
    (r"box_conv_(\d+)", r"reg_convs.\1.conv"),
    (r"cls_norm_(\d+)", r"cls_convs.\1.gn"),
    (r"box_norm_(\d+)", r"reg_convs.\1.gn"),
    (r"classification", "retina_cls"),
    (r"box", "retina_reg"),
    (r"class_logits", "fcos_cls"),
    (r"distances", "fcos_reg"),
    (r"centerness", "fcos_centerness"),
    (r"scale_(\d+)", r"scales.\1"),
    # RepPoints
    (r"class_out", "reppoints_cls_out"),
    (r"points_(init|refine)_(conv|out)", r"reppoints_pts_\1_\2"),
    # region proposal network
    (r"shared_conv", "rpn_conv"),
    (r"objectness", "rpn_cls"),
    (r"deltas", "rpn_reg"),
    # box head of a two-stage detector
    (r"fc_(\d+)", r"shared_fcs.\1"),
    (r"label_logits", "fc_cls"),
    (r"box_deltas", "fc_reg"),
    # mask heads and the semantic head
    (r"conv_(\d+)", r"convs.\1.conv"),
    (r"flow_conv", "conv_res.conv"),
    (r"upsample", "upsample"),
    (r"mask_logits|class_map", "conv_logits"),
    (r"fusion_(\d+)", r"lateral_convs.\1.conv"),
    (r"embedding", "conv_embedding.conv"),
    # deformable convolutions
    (r"offset", "conv_offset"),
]

# our variable -> (their name, layout)
_VARIABLES = {
    "kernel": ("weight", "hwio"),
    "bias": ("bias", "same"),
    "gamma": ("weight", "same"),
    "beta": ("bias", "same"),
    "moving_mean": ("running_mean", "same"),
    "moving_variance": ("running_var", "same"),
    "scale": ("scale", "same"),
    "class_conv_kernel": ("reppoints_cls_conv.weight", "hwio"),
    "refine_conv_kernel": ("reppoints_pts_refine_conv.weight", "hwio"),
    "moment_transfer": ("moment_transfer", "same"),
}

_TO_THEIRS = {"hwio": (3, 2, 0, 1), "io": (1, 0), "same": None}  # HWIO -> OIHW
_TO_OURS = {"hwio": (2, 3, 1, 0), "io": (1, 0), "same": None}


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What `import_state_dict` did.

    Attributes:
        assigned: (path of our variable, key of the checkpoint) pairs.
        ignored: keys of the checkpoint that were left out because `ignore` says so.
        kept: paths of our variables that kept their value because `ignore` covers their keys.
    """

    assigned: list[tuple[str, str]]
    ignored: list[str]
    kept: list[str]

    def __str__(self):
        lines = [f"{len(self.assigned)} variables assigned"]
        lines += [f"  {path} <- {key}" for path, key in self.assigned]
        if self.ignored:
            lines += [f"{len(self.ignored)} keys of the checkpoint ignored"]
            lines += [f"  {key}" for key in self.ignored]
        if self.kept:
            lines += [f"{len(self.kept)} variables kept their values"]
            lines += [f"  {path}" for path in self.kept]
        return "\n".join(lines)


def mmdet_names(model):
    """Where each variable of a model is found in a state dict of mmdetection 1.x.

    Args:
        model: a built detector (with `parts`), or one of its parts: `ResNet`, `FPN`, `SEPC`,
            `ConvTowers`, `PConv`, an integrated norm. The keys of a part are those of the authors'
            module alone, without a prefix. Or a layer whose `parts` are several necks, or towers
            and head.

    Returns:
        dict of path (as in `named_variables`) -> (key, layout); layout "hwio" means that our
        `[k, k, in, out]` is their `[out, in, k, k]`, "io" that our `[in, out]` is their
        `[out, in]`, "same" that the arrays are equal.

    Raises:
        CheckpointError: a variable has no counterpart in mmdetection.

    Example:
        >>> fpn = FPN(8, name="fpn")
        >>> fpn.build([(None, None, None, channels) for channels in (4, 8, 16)])
        >>> mmdet_names(fpn)["lateral_c3/kernel"]
        ('lateral_convs.0.conv.weight', 'hwio')
    """
    return {path: (key, layout) for path, (_, key, layout) in _correspondence(model).items()}


def import_state_dict(model, state_dict, *, ignore=()):
    """Assigns a state dict of mmdetection 1.x or torchvision to a model, all of it or nothing.

    `num_batches_tracked` of a norm that exists is accepted and not used.

    Args:
        model: as in `mmdet_names`.
        state_dict: dict of key -> numpy array in PyTorch's layout.
        ignore: patterns (as in `fnmatch`) of keys that are neither read nor required, e.g.
            `("bbox_head.retina_cls.*",)` to keep the new classifier of another set of classes.

    Returns:
        `ImportReport`.

    Raises:
        CheckpointError: lists every key that is unexpected, missing, wrongly shaped or holds NaN;
            nothing has been assigned then.

    Example:
        >>> state_dict = export_state_dict(detector)  # or read_state_dict("retinanet_sepc.pth")
        >>> report = import_state_dict(detector, state_dict)
        >>> len(report.assigned) == len(named_variables(detector))
        True
    """
    names = _correspondence(model)
    kept = [path for path, (_, key, _) in names.items() if _matches(key, ignore)]
    wanted = {path: entry for path, entry in names.items() if path not in set(kept)}
    keys = {key for _, key, _ in names.values()}
    counters = {_counter(key) for key in keys if key.endswith(".running_mean")}
    counters |= {"num_batches_tracked"} if "running_mean" in keys else set()
    ignored = [key for key in state_dict if _matches(key, ignore)]
    problems = [
        f"unexpected: {key} {np.shape(value)}"
        for key, value in state_dict.items()
        if key not in keys and key not in counters and not _matches(key, ignore)
    ]
    values = []
    for path, (variable, key, layout) in wanted.items():
        shape = tuple(_transposed(np.empty(variable.shape, bool), _TO_THEIRS[layout]).shape)
        if key not in state_dict:
            problems.append(f"missing: {key} {shape} (for {path})")
        elif np.shape(state_dict[key]) != shape:
            problems.append(
                f"wrong shape: {key}: expected {shape}, got {np.shape(state_dict[key])} "
                f"(for {path})"
            )
        elif not np.isfinite(state_dict[key]).all():
            problems.append(f"NaN or infinity: {key}")
        else:
            value = np.asarray(state_dict[key], np.float32)
            values.append((variable, _transposed(value, _TO_OURS[layout])))
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit {model.name!r} ({len(problems)} problems, nothing was "
            "assigned):\n  " + "\n  ".join(problems)
        )
    for variable, value in values:
        variable.assign(value)
    return ImportReport([(path, key) for path, (_, key, _) in wanted.items()], ignored, kept)


def export_state_dict(model):
    """The state dict of mmdetection 1.x that `import_state_dict` would read back.

    Args:
        model: as in `mmdet_names`.

    Returns:
        dict of key -> numpy array, float32 in PyTorch's layout; `num_batches_tracked` is an int64
        zero for each norm.

    Example:
        >>> np.savez("retinanet_sepc.npz", **export_state_dict(detector))
    """
    state_dict = {}
    for variable, key, layout in _correspondence(model).values():
        value = np.asarray(variable, np.float32)
        state_dict[key] = np.array(_transposed(value, _TO_THEIRS[layout]), order="C")
        if key.rpartition(".")[2] == "running_var":
            state_dict[_counter(key)] = np.zeros([], np.int64)
    return state_dict


def _correspondence(model):
    """path -> (variable, key, layout) of a detector or of one of its parts."""
    if not hasattr(model, "parts"):
        return _part_correspondence(model)
    names = {}
    for name, prefix in _prefixes(model.parts).items():
        for path, (variable, key, layout) in _part_correspondence(model.parts[name]).items():
            names[f"{name}/{path}"] = (variable, prefix + key, layout)
    return names


def _part_correspondence(part):
    finest = getattr(part, "min_level", 0)
    return {
        path: (variable, *_translate(path, finest, len(variable.shape)))
        for path, variable in named_variables(part).items()
    }


def _prefixes(parts):
    """Where each part of a detector, or each of several necks, is in the authors' model."""
    heads = {name: _HEADS.fullmatch(name) for name in parts}
    if any(heads.values()):
        rest = _prefixes({name: part for name, part in parts.items() if not heads[name]})
        return {name: rest[name] if name in rest else _head_prefix(heads[name]) for name in parts}
    if [*parts] == ["towers", "head"]:  # a bbox_head by itself
        return {"towers": "", "head": ""}
    if "backbone" not in parts:  # the list of necks by itself
        return {name: f"{index}." for index, name in enumerate(parts)}
    prefixes = {"backbone": "backbone.", "head": "bbox_head."}
    # With SEPC mmdetection's neck is the list [FPN, SEPC]; the plain towers belong to the head.
    if hasattr(parts["head"], "objectness"):
        prefixes |= {"towers": "rpn_head.", "head": "rpn_head."}
    elif not hasattr(parts["towers"], "pconvs"):
        prefixes["towers"] = "bbox_head."
    necks = [name for name in parts if name not in prefixes]
    for index, name in enumerate(necks):
        prefixes[name] = f"neck.{index}." if len(necks) > 1 else "neck."
    return {name: prefixes[name] for name in parts}


# The heads of a two-stage detector behind its proposals; of a cascade they are numbered.
_HEADS = re.compile(r"(box|mask|semantic)_head(?:_(\d+))?")


def _head_prefix(match):
    kind = "bbox" if match[1] == "box" else match[1]
    return f"{kind}_head." + (f"{match[2]}." if match[2] else "")


def _translate(path, finest_level, rank):
    *segments, name = path.split("/")
    if name not in _VARIABLES:
        raise CheckpointError(f"variable {path!r} has no counterpart in mmdetection")
    theirs, layout = _VARIABLES[name]
    if layout == "hwio" and rank == 2:  # of a dense layer
        layout = "io"
    keys = []
    for segment in segments:
        for pattern, replacement in _SEGMENTS:
            if match := re.fullmatch(pattern, segment):
                level = int(match[1]) - finest_level if "{" in replacement else 0
                keys.append(match.expand(replacement).format(level=level, below=level - 1))
                break
        else:
            raise CheckpointError(
                f"variable {path!r} has no counterpart in mmdetection (at {segment!r})"
            )
    return ".".join([*keys, theirs]), layout


def _counter(key):
    return ".".join([*key.split(".")[:-1], "num_batches_tracked"])


def _matches(key, patterns):
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _transposed(array, axes):
    return array if axes is None else np.transpose(array, axes)
