"""Shows what is wrong with a run's detections: one HTML page, its figures, JSON.

  sepc-tf analyze --run-dir runs/demo

Takes the detections that `sepc-tf evaluate` left if they are those of the checkpoint, and evaluates
otherwise. Needs hotcoco: pip install "sepc-tf[analysis]".

Looks inside a detector instead, one figure and JSON each (`--help` after any of them):

  sepc-tf analyze levels --run-dir runs/demo             correlation of the pyramid's levels
  sepc-tf analyze offsets --model demo --image FILE      where SEPC's convolutions read
  sepc-tf analyze scale-invariance                       PConv on a Gaussian pyramid
"""

from pathlib import Path

SUBCOMMANDS = ("levels", "offsets", "scale-invariance")


def add_arguments(parser):
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best", help="best, last, or a checkpoint's path")
    parser.add_argument("--out", type=Path, help="default: RUN_DIR/analysis")
    parser.add_argument("--worst", type=int, default=12, help="images to draw (default 12)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as data.val.images=DIR")


def run(arguments):
    from sepc_tf.analysis import analyze, run_detections
    from sepc_tf.analysis.hot import hotcoco
    from sepc_tf.runs import run_config

    overrides = arguments.overrides
    thresholds = run_config(arguments.run_dir, overrides).evaluation.iou_thresholds
    hotcoco()  # a missing package is an error before the work
    dataset, results = run_detections(arguments.run_dir, arguments.checkpoint, overrides)
    out_dir = arguments.out or arguments.run_dir / "analysis"
    analyze(
        dataset,
        results,
        out_dir,
        str(arguments.run_dir),
        thresholds,
        arguments.worst,
    )
    print(f"{out_dir / 'analysis.html'}, its figures and analysis.json")
