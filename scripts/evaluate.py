"""Evaluates a run on its validation set with pycocotools.

python scripts/evaluate.py --run-dir runs/demo --checkpoint best
"""

import argparse
from pathlib import Path

from rich.console import Console

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best", help="best, last, or a checkpoint's path")
    parser.add_argument("--out", type=Path, help="default: RUN_DIR/evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as data.val.images=DIR")
    args = parser.parse_args()

    from sepc_tf.data.sources import evaluation_pipeline, load_split
    from sepc_tf.evaluation.run import evaluate_run
    from sepc_tf.runs import load_run
    from sepc_tf.training.distribution import make_strategy

    strategy = make_strategy("mirrored")  # all GPUs there are
    trained = load_run(args.run_dir, args.checkpoint, args.overrides, strategy)
    dataset = load_split(trained.config.data, "val")
    out_dir = args.out or args.run_dir / "evaluation"
    pipeline = evaluation_pipeline(dataset, trained.config, trained.batch_size)
    metrics = evaluate_run(trained, dataset, pipeline, out_dir)
    console = Console()
    console.print(metrics.class_table())
    console.print(metrics.table())
    print(f"{trained.checkpoint} (step {trained.step}): metrics.json, detections.json in {out_dir}")


run(main)
