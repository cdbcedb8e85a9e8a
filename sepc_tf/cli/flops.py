"""Counts multiply-adds and parameters by the paper's rules.

sepc-tf flops --config retinanet_r50_sepc_1x --size 800x1280
sepc-tf flops --table
"""

from pathlib import Path

from sepc_tf.cli.numbers import height_width, whole_number


def add_arguments(parser):
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="count the detector of this config")
    what.add_argument(
        "--table", action="store_true", help="every row of the paper's Tables 1, 2 and 4"
    )
    parser.add_argument("--size", type=height_width, default=(800, 1280), metavar="HEIGHTxWIDTH")
    parser.add_argument(
        "--classes", type=whole_number(1), default=80, help="number of classes (default 80)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def run(arguments):
    from sepc_tf import flops
    from sepc_tf.config import DetectorConfig, HeadConfig, load_config
    from sepc_tf.zoo import build_detector

    def build(kind, variant, necks, options):
        head = HeadConfig(variant=variant) if variant else HeadConfig()
        config = DetectorConfig(type=kind, necks=necks, head=head, options=options)
        return build_detector(config, 80)

    if arguments.table:
        print(flops.paper_tables(build, *arguments.size))
        return
    config = load_config(arguments.config, arguments.overrides)
    detector = build_detector(config.detector, arguments.classes)
    print(flops.format_costs(flops.count_detector(detector, *arguments.size)))
