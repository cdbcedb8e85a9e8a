"""What the pages of the site say is what the package does."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

from sepc_tf.cli import main
from sepc_tf.config import Config, config_to_dict
from sepc_tf.zoo import DETECTORS, NECKS

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))

from _pages import guides, settings  # noqa: E402

pytestmark = pytest.mark.same_on_both_stacks


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "options":
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_every_setting_is_listed_with_its_default_and_a_meaning():
    listed = {s.key: s.default for heading, _, found in settings.sections() for s in found
              if " " not in heading}  # fmt: skip
    assert listed == dict(flat(config_to_dict(Config())))


@pytest.mark.parametrize(
    ("table", "title"),
    [(DETECTORS, "`detector.options` of"), (NECKS, "`detector.necks`, an entry")],
)
def test_every_option_of_a_part_is_listed(table, title):
    listed = {h: f for h, _, f in settings.sections() if h.startswith(title)}
    assert len(listed) == len(table)
    for heading, found in listed.items():
        cls = table[re.search(r"type: (\w+)", heading)[1]]
        defaults = dict(flat(vars_of(cls.Options())))
        assert {s.key.removeprefix("detector.options."): s.default for s in found} == defaults


def vars_of(options):
    """A dataclass as nested dicts."""
    return {k: vars_of(v) if hasattr(v, "__dict__") else v for k, v in vars(options).items()}


def test_every_setting_has_a_meaning():
    assert not [s.key for _, _, found in settings.sections() for s in found if not s.meaning
                and s.key not in settings._SEE]  # fmt: skip


BLOCKS = re.findall(
    r"```console\n\$ sepc-tf (.*)\n(error: .*)\n```", (DOCS / "errors.md").read_text()
)


@pytest.mark.parametrize(("command", "message"), BLOCKS)
def test_common_errors_are_those_of_the_commands(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 2
    expected = ".*".join(map(re.escape, message.split("...")))
    assert re.fullmatch(expected, capsys.readouterr().err.strip())


def test_a_guide_loses_nothing_of_its_code():
    for file in (DOCS / "guides").glob("*.py"):
        page = guides.markdown(file.read_text())
        code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
        tree = ast.parse(file.read_text())
        assert ast.dump(ast.parse(code)) == ast.dump(ast.Module(tree.body[1:], []))
