"""The options of the commands that load a bridge reach the loader."""

import inspect

from h2c_hf.apps.parsers import add_repo, pair_options
from h2c_hf.command_line import Parser
from h2c_hf.loading import load_model, load_pair, opened


def test_every_option_of_a_bridge_is_handed_on_to_the_loader():
    parser = Parser("h2c chat", "Talk.")
    add_repo(parser)
    values = {action.dest: f"{action.dest} told" for action in parser._actions if action.dest != "help"}
    values["sharer_quantization"] = "nf4"
    repo = values.pop("repo")
    given = [part for name, value in values.items() for part in (f"--{name}", value)]
    assert pair_options(parser.parse_args([repo, *given])) == values
    known = {name for way in (opened, load_pair, load_model) for name in inspect.signature(way).parameters}
    assert values.keys() <= known
