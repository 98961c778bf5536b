"""`h2c <command>`: a thin door to each part of the package."""

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="h2c", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    quick = commands.add_parser("quickstart", help="train a bridge on Atlas, measure it, draw it, load it back and ask it")
    quick.add_argument("--output", default="outputs/quickstart", help="folder to write to (default: %(default)s)")
    quick.add_argument("--seed", type=int, default=0)
    quick.add_argument("--epochs", type=float, default=1.0, help="passes over the training questions (default: %(default)s)")
    quick.set_defaults(run=run_quickstart)

    atlas = commands.add_parser("atlas", help="the embedded world of facts and tiny models").add_subparsers(dest="action", required=True)
    build = atlas.add_parser("build", help="rebuild facts, tokenizers and both models from nothing (about 25 minutes on 2 cores)")
    build.add_argument("--output", default="outputs/atlas", help="folder to write to (default: %(default)s)")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--tables", help="folder of the source tables to select facts from (default: the facts that ship)")
    build.set_defaults(run=run_atlas_build)

    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:  # a user's mistake: one sentence, no traceback
        print(f"h2c: {error}", file=sys.stderr)
        return 2


# Imported when they are run: `h2c --help` should not wait for torch.


def run_quickstart(options: argparse.Namespace) -> int:
    from .quickstart import quickstart

    return quickstart(options.output, options.seed, options.epochs)


def run_atlas_build(options: argparse.Namespace) -> int:
    from .atlas.build import build

    build(options.output, options.seed, options.tables)
    print(f"Wrote {options.output}/facts.tsv, {options.output}/sharer and {options.output}/receiver")
    return 0


if __name__ == "__main__":
    sys.exit(main())
