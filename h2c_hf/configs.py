"""`h2c configs`: the configs that come with the package, by name. `h2c train atlas` reads
`atlas/training.yaml` among them."""

import shutil
from pathlib import Path

from .command_line import Parser
from .hints import next_commands


# In the wheel the folder lies inside the package, in a clone beside it.
HUB_CONFIGS = next(
    (
        folder
        for folder in (Path(__file__).parent / "hub_configs", Path(__file__).parents[1] / "hub_configs")
        if folder.is_dir()
    ),
    None,
)
ADAPTER = "atlas/adapter"  # the adapter control of the Atlas bridge


def names(file: str = "*.yaml") -> list[str]:
    """Return the names of the folders that hold a config of this kind."""
    return sorted({path.parent.name for path in HUB_CONFIGS.glob(f"*/{file}")}) if HUB_CONFIGS else []


def find(given: str, file: str) -> Path:
    """Return the yaml file that an argument means: a file, a folder that holds `file`, or a packaged name.

    Args:
        file: "training.yaml" or "evaluation.yaml".

    Raises:
        ValueError: if there is none of these.
    """
    if Path(given).is_file():
        return Path(given)
    if Path(given).is_dir() and (Path(given) / file).is_file():
        return Path(given) / file
    if given in names(file):
        return HUB_CONFIGS / given / file
    if given.endswith((".yaml", ".yml")):
        raise ValueError(
            f"There is no file {given!r}; expected a yaml file of fields, or one of {', '.join(names(file))}."
        )
    raise ValueError(
        f"There is no config {given!r}; expected a yaml file, a folder with {file}, or one of "
        f"{', '.join(names(file))}."
    )


def add_config(parser: Parser, file: str) -> None:
    action = parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help=f"a yaml file of fields, a folder with {file}, or one of: {', '.join(names(file))}",
    )
    action.completer = lambda prefix, **_: [*names(file), *(str(path) for path in Path().glob(f"{prefix}*"))]


def configs() -> Parser:
    parser = Parser("h2c configs", "List the configs that come with the package, or copy one to start from.")
    parser.add_argument(
        "action", nargs="?", choices=("list", "copy"), default="list", help="default: %(default)s"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the config to copy")
    parser.add_argument("directory", nargs="?", metavar="DIR", help="folder to copy it to (default: NAME)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = configs().parse_args(arguments)
    if options.action == "copy":
        return copy(options.name or "", Path(options.directory or options.name or ""))
    for name in names():
        print(
            name,
            *(
                f"  {path.name:<16} {first_comment(path)}"
                for path in sorted((HUB_CONFIGS / name).glob("*.yaml"))
            ),
            sep="\n",
        )
    next_commands("h2c train atlas", "h2c configs copy atlas my-pair")
    return 0


def copy(name: str, directory: Path) -> int:
    """Copy a config's yaml files into a folder of the user's.

    Raises:
        ValueError: for an unknown name, or if a file is already there.
    """
    if name not in names():
        raise ValueError(f"There is no config {name!r}; expected one of {', '.join(names())}.")
    if directory.is_file():
        raise ValueError(f"{directory} is a file; expected a folder to copy to.")
    files = sorted((HUB_CONFIGS / name).glob("*.yaml"))
    for path in files:
        if (directory / path.name).exists():
            raise ValueError(
                f"{directory / path.name} is already there; expected another folder, or remove it."
            )
    directory.mkdir(parents=True, exist_ok=True)
    for path in files:
        print(f"Wrote {shutil.copyfile(path, directory / path.name)}")
    if (directory / "training.yaml").exists():
        next_commands(f"h2c train {directory}/training.yaml --dry_run")
    return 0


def first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
