"""The argument parsers of lora and ablate. Without torch."""

from ..command_line import Parser
from ..training.parsers import train


def lora() -> Parser:
    return train("lora")


def ablate() -> Parser:
    parser = Parser(
        "h2c ablate",
        "Train bridges of several forms alike, and print tables of their answers.",
    )
    parser.add_argument(
        "grid",
        metavar="GRID.yaml",
        help="forms, data and seeds: the fields of experiments.atlas_grid.AtlasGrid, or of "
        "experiments.pair_grid.PairGrid if it has a config",
    )
    parser.add_argument(
        "--output", default="outputs/ablation", help="folder of the cells (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="cells that are computed side by side (default: %(default)s)"
    )
    return parser
