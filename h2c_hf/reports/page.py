"""`report.md`: a report as a page."""

TITLES = {
    "receiver": "Receiver", "text_to_text": "text-to-text", "text_to_text_answer": "text-to-text: answer",
    "text_to_text_reasoning": "text-to-text: reasoning", "text_to_text_draft": "text-to-text: draft",
    "h2c": "H2C", "sharer": "Sharer", "shuffled": "control: shuffled",
    "zeros": "control: zeros", "noise": "control: noise", "adapter": "control: adapter",
    "skyline": "skyline (Receiver reads the passage)", "lora": "Receiver with LoRA",
}  # fmt: skip
ONLY_IN = {"skyline": "private"}  # methods that answer in one regime only
ONLY_IN_SETS = (*ONLY_IN, "text_to_text_draft")  # methods that need a passage or a draft
CONTROLS = ("shuffled", "zeros", "noise", "adapter")
PARTS = {
    "sharer_prefill": "Sharer prefill", "sharer_writes": "Sharer writes",
    "receiver_prefill": "Receiver prefill", "bridge": "bridge", "decode": "decode", "other": "other",
}  # fmt: skip


def markdown(report: dict) -> str:
    """The report as a page."""
    sections = [
        headline(report),
        comparisons(report.get("comparisons", []), "Differences over the same questions"),
    ]
    sections += [section(report[key]) for key, section in SECTIONS.items() if report.get(key)]
    sections.append([*heading("Run"), *[f"- {name}: {value}" for name, value in run(report).items()]])
    return "\n".join(line for lines in sections for line in lines) + "\n"


def headline(report: dict) -> list[str]:
    gain, share = report["information_gain"], report["recovered"]
    rows = [
        [
            TITLES.get(name, name), percent(row["accuracy"]),
            f"{percent(row['accuracy_low'])} - {percent(row['accuracy_high'])}",
            percent(row.get("macro_accuracy")), f"{row['n']:,}", number(row.get("ttft_ms_median")),
            number(row.get("ttft_ms_p90")), number(row.get("per_token_ms_median")),
        ]
        for name, row in report["methods"].items()
    ]  # fmt: skip
    names = [
        "method",
        "accuracy",
        "95 % interval",
        "macro mean",
        "questions",
        "first token, ms",
        "p90, ms",
        "further token, ms",
    ]
    return [
        *table(names, rows),
        "",
        f"- recovered, (H2C - Receiver) / (Sharer - Receiver): {interval(share)}",
        f"- information gain, H2C - best control ({gain['control']}): {interval(gain)}, McNemar p = "
        f"{gain['p']:.1g}",
    ]


def comparisons(rows: list[dict], title: str, level: int = 2) -> list[str]:
    cells = [
        [
            f"{TITLES.get(row['first'], row['first'])} - {TITLES.get(row['second'], row['second'])}",
            *difference_cells(row),
            f"{row['questions_needed']:,}" if row.get("questions_needed") else "-",
            equivalence_cell(row.get("equivalence")),
        ]
        for row in rows
    ]
    names = ["methods", "difference", "95 % interval", "McNemar p", "questions needed", "equivalent"]
    note = (
        "Questions needed: for McNemar's test to find the difference in 80 % of tries, if it did not here. "
        "Equivalent: whether two one-sided t-tests (TOST) show that the difference lies within the margin."
    )
    return [*heading(title, level), *table(names, cells), "", note] if rows else []


def equivalence_cell(row: dict | None) -> str:
    if row is None:
        return "-"
    shown = "yes" if row["equivalent"] else "not shown"
    return f"{shown}, within {100 * row['margin']:g} points, p = {row['p']:.1g}"


def difference_cells(row: dict) -> list[str]:
    return [percent(row["value"]), f"{percent(row['low'])} to {percent(row['high'])}", f"{row['p']:.1g}"]


def open_form(rows: dict) -> list[str]:
    cells = [[TITLES.get(name, name), *accuracy_cells(row)] for name, row in rows.items()]
    return [
        *heading("In words (the answer without the choices, exact match)"),
        *table(["method", "exact", "95 % interval", "questions"], cells),
    ]


def hand_off(rows: dict) -> list[str]:
    return [
        *heading("Context hand-off (the Sharer reads a passage, the Receiver the question alone)"),
        *words_table(rows),
    ]


WORDS = (
    "method",
    "exact match",
    "95 % interval",
    "contained",
    "95 % interval",
    "token F1",
    "95 % interval",
    "n",
)


def words_table(rows: dict) -> list[str]:
    """Methods that answer in words, as `h2c_hf.evaluation.hand_off.words_row` has them."""
    return table(list(WORDS), [[TITLES.get(name, name), *words_cells(row)] for name, row in rows.items()])


def words_cells(row: dict) -> list[str]:
    cells = []
    for measure in ("accuracy", "contained", "f1"):
        # Older reports have only the shares.
        low, high = row.get(f"{measure}_low"), row.get(f"{measure}_high")
        cells += [percent(row.get(measure), "-"), "-" if low is None else f"{percent(low)} - {percent(high)}"]
    return [*cells, f"{row['n']:,}"]


REGIMES = {
    "private": "Private regime: only the Sharer reads the passage",
    "shared": "Shared regime: both models read the question",
}


def sets(rows: dict) -> list[str]:
    """A section for each regime, and in it one for each set."""
    lines = []
    for regime, title in REGIMES.items():
        own = {name: row for name, row in rows.items() if row["regime"] == regime}
        lines += heading(title) if own else []
        for name, row in own.items():
            lines += [
                *heading(f"{name}: {row['source']}", 3),
                *words_table(row["methods"]),
                "",
                *set_figures(row),
            ]
            lines += comparisons(row["comparisons"], f"{name}: differences over the same questions", 4)
            if regime == "shared":  # the Receiver answers in sentences; older reports lack `contained`
                held = [{**one, **one["contained"]} for one in row["comparisons"] if "contained" in one]
                lines += comparisons(held, f"{name}: differences, an answer contained", 4)
            lines += set_examples(row.get("examples", []))
    return lines


def set_figures(row: dict) -> list[str]:
    gain = row["information_gain"]
    lines = [
        f"- recovered, (H2C - Receiver) / (Sharer - Receiver): {interval(row['recovered'])}",
        f"- information gain, H2C - best control ({gain['control']}): {interval(gain)}, McNemar p = "
        f"{gain['p']:.1g}",
    ]
    if pairing := row.get("pairing_gain"):
        lines.append(
            f"- pairing gain, matched - shuffled: {interval(pairing)}, McNemar p = {pairing['p']:.1g}; in F1 "
            f"{interval(pairing['f1'])}"
        )
    if follow := row.get("follow_rate"):
        over = "" if follow["over_h2c"] is None else f"; {percent(follow['over_h2c'])} of H2C's own accuracy"
        lines.append(
            f"- follow rate, the donor's answer with another question's states: {interval(follow)}{over}"
        )
    tokens = ", ".join(
        f"{TITLES.get(name, name)} {percent(own['token_accuracy'])}" for name, own in row["methods"].items()
    )
    lines.append(f"- tokens of the answer in their place: {tokens}")
    for name in ("h2c", "shuffled"):
        if shares := row["methods"].get(name, {}).get("token_accuracy_by_position"):
            lines.append(
                f"- {TITLES[name]}, by position, %: {', '.join(f'{100 * share:.0f}' for share in shares)}"
            )
    return lines


def set_examples(rows: list[dict]) -> list[str]:
    lines = []
    for example in rows:
        lines += ["", f"**{cell(example['question'])}** Expected: {cell('; '.join(example['expected']))}."]
        if "passage" in example:
            lines += ["", f"> {cell(example['passage'])}"]
        lines += [
            "",
            *table(
                ["method", "answer"],
                [[TITLES.get(name, name), cell(text)] for name, text in example["answers"].items()],
            ),
        ]
    return lines


def cell(text: str) -> str:
    """The text on one line, with the sign that ends a table's cell escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def perplexity(rows: dict) -> list[str]:
    cells = [
        [
            TITLES.get(name, name),
            number(row["perplexity"], 2),
            f"{number(row['low'], 2)} - {number(row['high'], 2)}",
            f"{row['n']:,}",
        ]
        for name, row in rows.items()
    ]
    return [
        *heading("Perplexity on instruction data"),
        *table(["method", "perplexity", "95 % interval", "answers"], cells),
    ]


def counts(rows: dict) -> list[str]:
    kept = {
        name: {key: value for key, value in row.items() if not isinstance(value, list)}
        for name, row in rows.items()
    }
    lines = [
        f"- {name}: {', '.join(f'{key} {value}' for key, value in row.items())}" for name, row in kept.items()
    ]
    return [*heading("What was asked, cut and refused"), *lines]


def latency_parts(rows: dict) -> list[str]:
    parts = [part for part in PARTS if any(part in row for row in rows.values())]
    cells = [
        [TITLES.get(name, name), *(number(row.get(part), 2) for part in parts)] for name, row in rows.items()
    ]
    return [
        *heading("First token by part, median ms"),
        *table(["method", *(PARTS[part] for part in parts)], cells),
    ]


def output_lengths(rows: list[dict]) -> list[str]:
    names = [name for name in rows[0] if name != "tokens"]
    cells = [[str(row["tokens"]), *(number(row[name]) for name in names)] for row in rows]
    return [
        *heading("Output length, median ms"),
        *table(["tokens", *(TITLES.get(name, name) for name in names)], cells),
    ]


def break_even(row: dict) -> list[str]:
    if row["tokens"] is None:
        return ["", "At no output length is H2C cheaper than the Sharer alone here."]
    return ["", f"H2C is cheaper than the Sharer alone from {row['tokens']} tokens of output on."]


def memory(row: dict) -> list[str]:
    lines = [
        f"- weights of the {part}: {size / 2**20:,.1f} MiB" for part, size in row["weights_bytes"].items()
    ]
    lines += [
        f"- peak in {PARTS[part]}: {size / 2**20:,.1f} MiB"
        for part, size in row.get("peak_bytes", {}).items()
    ]
    return [*heading("Memory"), *lines]


def groups(title: str):
    def section(rows: dict) -> list[str]:
        names = [name for name in next(iter(rows.values())) if name != "n"]
        cells = [
            [group, f"{row['n']:,}", *(percent(row[name]) for name in names)] for group, row in rows.items()
        ]
        return [
            *heading(f"By {title}"),
            *table([title, "questions", *(TITLES.get(name, name) for name in names)], cells),
        ]

    return section


def examples(rows: list[dict]) -> list[str]:
    lines = heading("Examples")
    for example in rows:
        lines += [
            f"**{example['question']}** {'; '.join(example['choices'])}. Expected: {example['expected']}.",
            "",
        ]
        cells = [
            [TITLES.get(name, name), row["choice"], row["open"].replace("\n", " ")]
            for name, row in example["answers"].items()
        ]
        lines += [*table(["method", "letter", "in words, without the choices"], cells), ""]
    return lines[:-1]


SECTIONS = {
    "sets": sets, "open_form": open_form, "hand_off": hand_off, "perplexity": perplexity, "counts": counts,
    "latency_parts": latency_parts, "output_lengths": output_lengths, "break_even": break_even,
    "memory": memory, "by_category": groups("category"), "by_subject": groups("subject"),
    "examples": examples,
}  # fmt: skip


def run(report: dict) -> dict:
    models = {
        f"{role}": " at ".join(filter(None, row.values())) for role, row in report.get("models", {}).items()
    }
    config = {
        name: value
        for name, value in report.get("config", {}).items()
        if value is not None and name != "sets"
    }
    return {
        **models,
        **config,
        **{name: value for name, value in report["environment"].items() if value is not None},
    }


def heading(title: str, level: int = 2) -> list[str]:
    return ["", f"{'#' * level} {title}", ""]


def table(names: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(names)} |",
        f"| --- |{' ---: |' * (len(names) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def accuracy_cells(row: dict) -> list[str]:
    return [
        percent(row["accuracy"]),
        f"{percent(row['accuracy_low'])} - {percent(row['accuracy_high'])}",
        f"{row['n']:,}",
    ]


def percent(fraction: float | None, missing: str = "not defined") -> str:
    return missing if fraction is None else f"{100 * fraction:.1f} %"


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def interval(row: dict) -> str:
    if row["value"] is None:
        return f"not defined{': ' + row['reason'] if row.get('reason') else ''}"
    return f"{percent(row['value'])} (95 % interval {percent(row['low'])} to {percent(row['high'])})"
