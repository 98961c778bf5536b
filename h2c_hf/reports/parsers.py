"""The argument parser of report. Without torch."""

from pathlib import Path

from ..command_line import Parser


def report() -> Parser:
    parser = Parser(
        "h2c report", "Print a report as a page, or compare two over the questions that both asked."
    )
    parser.add_argument("report", type=report_path, metavar="REPORT", help="a report.json, or its folder")
    parser.add_argument(
        "other", type=report_path, nargs="?", metavar="OTHER", help="another one, to compare with"
    )
    return parser


def report_path(text: str) -> Path:
    path = Path(text)
    return path / "report.json" if path.is_dir() else path
