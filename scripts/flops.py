"""Counts multiply-adds and parameters by the paper's rules.

python scripts/flops.py --config configs/retinanet_r50_sepc_1x.yaml --size 800x1280
python scripts/flops.py --table
"""

import argparse

from sepc_tf.command_line import run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="count the detector of this config")
    what.add_argument("--table", action="store_true", help="every row of the paper's Table 1")
    parser.add_argument("--size", type=size, default=(800, 1280), metavar="HEIGHTxWIDTH")
    parser.add_argument("--classes", type=int, default=80, help="number of classes (default 80)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    from sepc_tf import flops
    from sepc_tf.config import DetectorConfig, HeadConfig, load_config
    from sepc_tf.zoo import build_detector

    if args.table:

        def build(kind, variant):
            return build_detector(DetectorConfig(type=kind, head=HeadConfig(variant=variant)), 80)

        print(flops.paper_table(build, *args.size))
        return
    config = load_config(args.config, args.overrides)
    detector = build_detector(config.detector, args.classes)
    print(flops.format_costs(flops.count_detector(detector, *args.size)))


def size(text):
    height, separator, width = text.partition("x")
    if not (separator and height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, as 800x1280; got {text!r}")
    return int(height), int(width)


run(main)
