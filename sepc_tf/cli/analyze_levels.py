"""Draws how much the levels of a detector's pyramid correlate (the paper's Fig. 2).

  sepc-tf analyze levels --run-dir runs/baseline --run-dir runs/pconv

At each station (backbone, necks, towers) the mean of |x| over a level's channels is resized to the
finest level and correlated with the others', over the pixels of an image; the mean over the images
is shown. Writes levels.png and levels.json.
"""

from pathlib import Path

from sepc_tf.cli.numbers import whole_number


def add_arguments(parser):
    parser.add_argument(
        "--run-dir", type=Path, action="append", required=True, help="may be given several times"
    )
    parser.add_argument("--checkpoint", default="best", choices=["best", "last"])
    parser.add_argument("--out", type=Path, help="default: analysis in the first RUN_DIR")
    parser.add_argument(
        "--limit",
        type=whole_number(1),
        default=50,
        help="images of the first run's validation set (default 50)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs")


def run(arguments):
    from sepc_tf.analysis.levels import analyze_levels
    from sepc_tf.data.sources import load_split
    from sepc_tf.files import check_writable
    from sepc_tf.runs import load_run, run_config

    overrides = arguments.overrides
    out_dir = arguments.out or arguments.run_dir[0] / "analysis"
    data = run_config(arguments.run_dir[0], overrides).data
    check_writable(out_dir)
    runs = {
        str(path): load_run(path, arguments.checkpoint, overrides) for path in arguments.run_dir
    }
    analyze_levels(runs, load_split(data, "val"), out_dir, arguments.limit)
    print(f"{out_dir / 'levels.png'} and levels.json")
