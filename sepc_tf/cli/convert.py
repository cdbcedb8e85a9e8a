"""Makes a run directory of a checkpoint of mmdetection 1.x, or writes a run's weights back.

  sepc-tf convert --config retinanet_r50_sepc_1x --checkpoint retinanet_sepc.pth \\
      --out runs/retinanet_sepc detector.convention=mmdet1
  sepc-tf convert --to mmdet1 --run-dir runs/retinanet_sepc --out sepc.npz
"""

from pathlib import Path

from sepc_tf.errors import ConfigError


def add_arguments(parser):
    parser.add_argument("--to", choices=["run", "mmdet1"], default="run", help="default: run")
    parser.add_argument("--config", type=Path, help="the detector that was trained")
    parser.add_argument(
        "--checkpoint", help="a .pth, .npz or .safetensors file; with --to mmdet1 best or last"
    )
    parser.add_argument("--run-dir", type=Path, help="with --to mmdet1: the run to convert")
    parser.add_argument("--out", type=Path, required=True, help="run directory, or .npz/.pth file")
    parser.add_argument(
        "--annotations", type=Path, help="COCO file with the categories; default: COCO's 80"
    )
    parser.add_argument(
        "--reset-head", action="store_true", help="start a new classifier for other classes"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")


def run(arguments):
    needed = ["run_dir"] if arguments.to == "mmdet1" else ["config", "checkpoint"]
    missing = [f"--{n.replace('_', '-')}" for n in needed if getattr(arguments, n) is None]
    if missing:
        raise ConfigError(f"--to {arguments.to} needs {' and '.join(missing)}")

    from sepc_tf.config import load_config
    from sepc_tf.convert import annotation_categories, convert_to_mmdet1, convert_to_run

    out = arguments.out
    if arguments.to == "mmdet1":
        state_dict = convert_to_mmdet1(arguments.run_dir, out, arguments.checkpoint or "best")
        print(f"{len(state_dict)} arrays in {out}")
        return
    config = load_config(arguments.config, arguments.overrides)
    categories = annotation_categories(arguments.annotations) if arguments.annotations else None
    print(convert_to_run(config, arguments.checkpoint, out, categories, arguments.reset_head))
    print(f"run directory {out}: evaluate with sepc-tf evaluate --run-dir {out}")
