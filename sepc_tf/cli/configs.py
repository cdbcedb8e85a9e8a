"""Lists, shows or copies the packaged configs.

sepc-tf configs list
sepc-tf configs show demo_sepc_lite --resolved
sepc-tf configs copy retinanet_r50_sepc_1x configs
"""

from sepc_tf.config_files import config_files, config_names, copy_config
from sepc_tf.errors import ConfigError


def add_arguments(parser):
    parser.add_argument("action", choices=["list", "show", "copy"])
    parser.add_argument("name", nargs="?", help="of the config; `show` takes a file as well")
    parser.add_argument(
        "directory", nargs="?", help="where `copy` puts it and its _base_ files; default: here"
    )
    parser.add_argument(
        "--resolved", action="store_true", help="show every setting, inherited and default ones too"
    )


def run(arguments):
    if arguments.action == "list":
        print(*config_names(), sep="\n")
        return
    if arguments.name is None:
        raise ConfigError(f"configs {arguments.action} needs a name of `sepc-tf configs list`")
    if arguments.action == "copy":
        print(*copy_config(arguments.name, arguments.directory or "."), sep="\n")
    elif arguments.resolved:
        from sepc_tf.config import config_to_yaml, load_config

        print(config_to_yaml(load_config(arguments.name)), end="")
    else:
        for file in reversed(config_files(arguments.name)):
            print(f"# ---- {file}\n{file.read_text(encoding='utf-8')}")
