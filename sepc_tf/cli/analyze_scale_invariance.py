"""Draws that PConv extracts scale-invariant features from a Gaussian pyramid (Remark 1, Fig. 6).

  sepc-tf analyze scale-invariance

The response of one PConv to a picture, and to the picture twice as large a level above: equal in a
Gaussian pyramid, not in others. Writes scale_invariance.png and scale_invariance.json. No model and
no data are needed.
"""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument("--out", type=Path, default=Path("analysis"), help="default: analysis")


def run(arguments):
    from sepc_tf.analysis.scale_invariance import analyze_scale_invariance

    for kind, changes in analyze_scale_invariance(arguments.out).items():
        print(f"{kind}: change of the response {', '.join(f'{100 * c:.2g} %' for c in changes)}")
    print(f"{arguments.out / 'scale_invariance.png'} and scale_invariance.json")
