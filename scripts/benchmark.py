"""Measures speed and memory.

python scripts/benchmark.py deform-conv --json deform_conv.json
"""

import argparse
import json
from pathlib import Path

from sepc_tf.command_line import run


def deform_conv(args):
    import tensorflow as tf

    from sepc_tf import benchmark

    tf.get_logger().setLevel("ERROR")  # it warns of one traced function per form, which is meant
    report = benchmark.deform_conv(
        tuple(args.batch),
        [case for case in benchmark.MAPS if not args.map or case[0] in args.map],
        args.repeats,
        memory=not args.times_only,
        neck=not args.times_only,
    )
    print(benchmark.markdown(report))
    return report


def label_assignment(args):
    from sepc_tf import benchmark

    report = benchmark.label_assignment(tuple(args.objects), repeats=args.repeats)
    print(benchmark.assignment_markdown(report))
    return report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "deform-conv", help="the deformable convolution against the ordinary one"
    )
    command.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    command.add_argument("--map", nargs="+", help="P4, P5, P6, P7 or 'P3, stride 2'; default all")
    command.add_argument("--repeats", type=int, default=15)
    command.add_argument("--times-only", action="store_true", help="no memory, no whole neck")
    command.set_defaults(function=deform_conv)
    command = commands.add_parser(
        "label-assignment", help="memory and time of deciding which anchor learns what"
    )
    command.add_argument("--objects", type=int, nargs="+", default=[8, 32, 128, 256, 512])
    command.add_argument("--repeats", type=int, default=15)
    command.set_defaults(function=label_assignment)
    for command in commands.choices.values():
        command.add_argument("--json", type=Path, help="write the numbers there too")
    args = parser.parse_args()
    report = args.function(args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


run(main)
