"""Makes a run directory of a checkpoint of mmdetection 1.x, or writes a run's weights back.

python scripts/convert_checkpoint.py --config configs/retinanet_r50_sepc_1x.yaml \
    --checkpoint retinanet_sepc.pth --out runs/retinanet_sepc detector.convention=mmdet1
python scripts/convert_checkpoint.py --to mmdet1 --run-dir runs/retinanet_sepc --out sepc.npz
"""

import argparse
from pathlib import Path

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    args = parser.parse_intermixed_args()
    needed = ["run_dir"] if args.to == "mmdet1" else ["config", "checkpoint"]
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"--to {args.to} needs {' and '.join(missing)}")

    from sepc_tf.config import load_config
    from sepc_tf.convert import annotation_categories, convert_to_mmdet1, convert_to_run

    if args.to == "mmdet1":
        state_dict = convert_to_mmdet1(args.run_dir, args.out, args.checkpoint or "best")
        print(f"{len(state_dict)} arrays in {args.out}")
        return
    config = load_config(args.config, args.overrides)
    categories = annotation_categories(args.annotations) if args.annotations else None
    print(convert_to_run(config, args.checkpoint, args.out, categories, args.reset_head))
    print(f"run directory {args.out}: evaluate with scripts/evaluate.py --run-dir {args.out}")


run(main)
