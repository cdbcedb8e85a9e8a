"""Evaluates a run on its validation set with pycocotools.

sepc-tf evaluate --run-dir runs/demo --checkpoint best
sepc-tf evaluate --run-dir runs/demo --iou 0.33 --iou 0.95
sepc-tf evaluate --run-dir runs/demo --model demo.onnx
"""

from pathlib import Path

from sepc_tf.errors import UserError


def add_arguments(parser):
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", help="of the run: best (default), last, or a path")
    parser.add_argument(
        "--model", type=Path, help="evaluate this file of sepc-tf export on the run's data"
    )
    parser.add_argument(
        "--out", type=Path, help="default: RUN_DIR/evaluation, of a model MODEL.evaluation"
    )
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
    overrides = list(arguments.overrides)
    if arguments.iou:
        overrides.append(f"evaluation.iou_thresholds=[{', '.join(arguments.iou)}]")
    if arguments.model and arguments.checkpoint:
        raise UserError("--checkpoint is one of --run-dir; --model is what is evaluated instead")
    if arguments.model:
        metrics, origin, out_dir = _of_model(arguments, overrides)
    else:
        metrics, origin, out_dir = _of_run(arguments, overrides)
    _show(metrics)
    print(f"{origin}: metrics.json, detections.json in {out_dir}")


def _of_run(arguments, overrides):
    from sepc_tf.data.sources import evaluation_pipeline, load_split
    from sepc_tf.evaluation.run import evaluate_run
    from sepc_tf.runs import load_run
    from sepc_tf.training.distribution import make_strategy

    strategy = make_strategy("mirrored")  # all GPUs there are
    trained = load_run(arguments.run_dir, arguments.checkpoint or "best", overrides, strategy)
    dataset = load_split(trained.config.data, "val")
    out_dir = arguments.out or arguments.run_dir / "evaluation"
    pipeline = evaluation_pipeline(dataset, trained.config, trained.batch_size)
    metrics = evaluate_run(trained, dataset, pipeline, out_dir)
    return metrics, f"{trained.checkpoint} (step {trained.step})", out_dir


def _of_model(arguments, overrides):
    from sepc_tf.data.sources import load_split
    from sepc_tf.evaluation.run import evaluate_model
    from sepc_tf.exported import ExportedModel
    from sepc_tf.runs import run_config

    model = ExportedModel(arguments.model)
    config = run_config(arguments.run_dir, overrides)
    dataset = load_split(config.data, "val")
    out_dir = arguments.out or arguments.model.with_name(f"{arguments.model.name}.evaluation")
    thresholds = config.evaluation.iou_thresholds
    metrics = evaluate_model(model.detect, model.categories, dataset, out_dir, thresholds)
    return metrics, arguments.model, out_dir


def _show(metrics):
    from rich.console import Console

    console = Console()
    console.print(metrics.class_table())
    console.print(metrics.table())
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.summary.items()))
