"""Evaluates a run on its validation set with pycocotools.

sepc-tf evaluate --run-dir runs/demo --checkpoint best
sepc-tf evaluate --run-dir runs/demo --iou 0.33 --iou 0.95
"""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best", help="best, last, or a checkpoint's path")
    parser.add_argument("--out", type=Path, help="default: RUN_DIR/evaluation")
    parser.add_argument(
        "--iou",
        action="append",
        default=[],
        metavar="IOU",
        help="report mAP@IOU too; may be given several times "
        "(default: evaluation.iou_thresholds of the run's config)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as data.val.images=DIR")


def run(arguments):
    from rich.console import Console

    from sepc_tf.data.sources import evaluation_pipeline, load_split
    from sepc_tf.evaluation.run import evaluate_run
    from sepc_tf.runs import load_run
    from sepc_tf.training.distribution import make_strategy

    strategy = make_strategy("mirrored")  # all GPUs there are
    overrides = list(arguments.overrides)
    if arguments.iou:
        overrides.append(f"evaluation.iou_thresholds=[{', '.join(arguments.iou)}]")
    trained = load_run(arguments.run_dir, arguments.checkpoint, overrides, strategy)
    dataset = load_split(trained.config.data, "val")
    out_dir = arguments.out or arguments.run_dir / "evaluation"
    pipeline = evaluation_pipeline(dataset, trained.config, trained.batch_size)
    metrics = evaluate_run(trained, dataset, pipeline, out_dir)
    console = Console()
    console.print(metrics.class_table())
    console.print(metrics.table())
    print(f"{trained.checkpoint} (step {trained.step}): metrics.json, detections.json in {out_dir}")
