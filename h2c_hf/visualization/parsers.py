"""The argument parser of plot. Without torch."""

from ..command_line import Parser
from ..reports.parsers import report_path


def plot() -> Parser:
    parser = Parser("h2c plot", "Draw the figures of a saved report; no model is needed.")
    parser.add_argument("report", type=report_path, metavar="REPORT", help="a report.json, or its folder")
    parser.add_argument(
        "--theme", choices=("light", "dark", "both"), default="light", help="default: %(default)s"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder to write PNG, SVG and PDF to (default: figures, beside the report)",
    )
    return parser
