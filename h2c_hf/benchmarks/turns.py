"""`scripts/benchmark.py turns`: time to the first token, turn by turn, of a conversation that keeps its
caches (`H2CConversation`) against reading and bridging the whole conversation in every turn.

Both answer the same prompts of random tokens, on a pair with random weights, by turns in one process. That
both give the same logits in the first turn, in which they do the same, is checked first. (In later turns they
may differ: the whole is bridged anew from all that the Sharer has read by then.)

The condition: the last turn takes at most the first turn's time and, for its new tokens, their share of that
time, last <= first * (1 + new tokens / tokens of the first turn). Tokens are those of either model, here as
many.
"""

import argparse
from statistics import median

import torch
from matplotlib.figure import Figure

from ..modeling import H2CConversation, H2CForCausalLM
from ..visualization.style import BLUE, GREY
from .measure import command, device_to_measure, now, report, settings, spread
from .pairs import PAIRS, pair


FORMS = {"kept": "turn by turn: only what is new", "whole": "the whole conversation in every turn"}


def main(arguments: list[str] | None = None) -> int:
    parser = command("turns", __doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--first_tokens", type=int, default=128, help="tokens of the first prompt (default: 128)"
    )
    parser.add_argument(
        "--new_tokens", type=int, default=128, help="an answer and the next message (default: 128)"
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="conversations that are measured (default: 10)"
    )
    return report(parser.parse_args(arguments), measure, describe, draw)


def measure(options: argparse.Namespace) -> dict:
    """Seconds of every turn of every round, and their ratios round by round."""
    torch.manual_seed(options.seed)
    device = device_to_measure()
    model = pair(PAIRS[options.pair], 0.0, device).eval()
    check_same_first_turn(model, random_turns(model, options)[0])
    seconds = {name: [] for name in FORMS}
    for number in range(options.rounds + 1):  # the first warms up
        conversation, taken = model.conversation(), {name: [] for name in FORMS}
        for turn in random_turns(model, options):
            for name in list(FORMS)[:: 1 if number % 2 else -1]:
                answering = conversation if name == "kept" else model
                start = now(device)
                first_token(answering, turn)
                taken[name].append(now(device) - start)
        if number:
            for name, row in taken.items():
                seconds[name].append(row)
    ratios = {
        "kept": [row[-1] / row[0] for row in seconds["kept"]],
        "whole": [row[-1] / row[0] for row in seconds["whole"]],
        "saved": [whole[-1] / kept[-1] for kept, whole in zip(*seconds.values(), strict=True)],
    }
    allowed = 1 + options.new_tokens / options.first_tokens
    return {
        **settings(options, device),
        "seconds": seconds,
        "ratios": {name: spread(x) for name, x in ratios.items()},
        "allowed": allowed,
        "holds": median(ratios["kept"]) <= allowed,
    }


def random_turns(model: H2CForCausalLM, options: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """The prompts of a conversation, each with the one before as its beginning."""
    lengths = [options.first_tokens + number * options.new_tokens for number in range(options.turns)]
    ids = {
        name: torch.randint(1, base.config.vocab_size, (1, lengths[-1]), device=base.device)
        for name, base in (("input_ids", model.receiver), ("sharer_input_ids", model.sharer))
    }
    return [{name: tokens[:, :length] for name, tokens in ids.items()} for length in lengths]


def first_token(answering: H2CForCausalLM | H2CConversation, turn: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of a turn's first token, (1, vocabulary), through `generate`."""
    output = answering.generate(
        **turn, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return output.logits[0]


def check_same_first_turn(model: H2CForCausalLM, turn: dict[str, torch.Tensor]) -> None:
    """
    Raises:
        ValueError: if the two would not do the same work.
    """
    ours, whole = first_token(model.conversation(), turn), first_token(model, turn)
    difference = float((ours - whole).abs().max())
    if difference > (1e-4 if model.receiver.dtype == torch.float32 else 5e-2):
        raise ValueError(
            f"The two differ in the first turn: their logits by up to {difference}; expected none."
        )


def describe(result: dict) -> str:
    settings = result["settings"]
    lines = [f"{', '.join(f'{name} {value}' for name, value in settings.items())}; {result['device']}"]
    lines.append(f"{'time to first token, ms':<23}" + "".join(f"{title:>40}" for title in FORMS.values()))
    for number in range(settings["turns"]):
        taken = [[1e3 * row[number] for row in result["seconds"][name]] for name in FORMS]
        cells = [f"{median(x):.1f} (min {min(x):.1f}, max {max(x):.1f})" for x in taken]
        lines.append(f"{f'turn {number + 1}':<23}" + "".join(f"{cell:>40}" for cell in cells))
    spread = {
        name: f"{x['median']:.2f} (min {x['min']:.2f}, max {x['max']:.2f})"
        for name, x in result["ratios"].items()
    }
    last, new, first = settings["turns"], settings["new_tokens"], settings["first_tokens"]
    lines += [
        f"turn {last} / turn 1: turn by turn {spread['kept']}, the whole {spread['whole']}",
        f"turn {last}, the whole / turn by turn: {spread['saved']}",
        f"turn {last} <= turn 1 x (1 + {new} new tokens / {first} tokens of turn 1) = "
        f"{result['allowed']:.2f} x turn 1: {'holds' if result['holds'] else 'DOES NOT HOLD'}, by the median "
        f"{result['ratios']['kept']['median']:.2f}",
    ]
    return "\n".join(lines)


def draw(result: dict) -> Figure:
    """Median time to first token of each turn, its range over rounds, and the limit for the last turn."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    settings = result["settings"]
    turns = range(1, settings["turns"] + 1)
    for (name, title), shade, marker in zip(FORMS.items(), (BLUE, GREY), "os", strict=True):
        columns = [[1e3 * value for value in column] for column in zip(*result["seconds"][name], strict=True)]
        middle = [median(column) for column in columns]
        ends = [[value - min(column) for value, column in zip(middle, columns, strict=True)]]
        ends += [[max(column) - value for value, column in zip(middle, columns, strict=True)]]
        axes.errorbar(turns, middle, ends, color=shade, marker=marker, capsize=3, label=title)
        if name == "kept":
            allowed = f"allowed in turn {settings['turns']}: turn 1 and the new tokens' share"
            axes.axhline(result["allowed"] * middle[0], color=shade, lw=1, ls="--", label=allowed)
    axes.set(xlabel="turn", ylabel="time to first token, ms", ylim=(0, None), xticks=turns)
    axes.legend(loc="upper left")
    axes.set_title(
        f"{settings['first_tokens']} tokens in turn 1, {settings['new_tokens']} new in each later turn; pair "
        f"{settings['pair']}"
    )
    return figure
