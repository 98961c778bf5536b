"""`report.md`: a report as a page."""

TITLES = {
    "receiver": "Receiver", "text_to_text": "text-to-text", "text_to_text_answer": "text-to-text: answer",
    "text_to_text_reasoning": "text-to-text: reasoning", "h2c": "H2C", "sharer": "Sharer", "shuffled": "control: shuffled",
    "zeros": "control: zeros", "noise": "control: noise", "adapter": "control: adapter",
}  # fmt: skip
PARTS = {
    "sharer_prefill": "Sharer prefill", "sharer_writes": "Sharer writes", "receiver_prefill": "Receiver prefill", "bridge": "bridge",
    "decode": "decode", "other": "other",
}  # fmt: skip


def markdown(report: dict) -> str:
    """The report as a page."""
    sections = [headline(report), comparisons(report)]
    sections += [section(report[key]) for key, section in SECTIONS.items() if report.get(key)]
    sections.append([*heading("Run"), *[f"- {name}: {value}" for name, value in run(report).items()]])
    return "\n".join(line for lines in sections for line in lines) + "\n"


def headline(report: dict) -> list[str]:
    gain, share = report["information_gain"], report["recovered"]
    rows = [
        [
            TITLES.get(name, name), percent(row["accuracy"]), f"{percent(row['accuracy_low'])} - {percent(row['accuracy_high'])}",
            percent(row.get("macro_accuracy")), f"{row['n']:,}", number(row.get("ttft_ms_median")), number(row.get("ttft_ms_p90")),
            number(row.get("per_token_ms_median")),
        ]
        for name, row in report["methods"].items()
    ]  # fmt: skip
    names = ["method", "accuracy", "95 % interval", "macro mean", "questions", "first token, ms", "p90, ms", "further token, ms"]
    return [
        *table(names, rows),
        "",
        f"- recovered, (H2C - Receiver) / (Sharer - Receiver): {interval(share)}",
        f"- information gain, H2C - best control ({gain['control']}): {interval(gain)}, McNemar p = {gain['p']:.1g}",
    ]


def comparisons(report: dict) -> list[str]:
    rows = [
        [
            TITLES.get(row["second"], row["second"]),
            *difference_cells(row),
            f"{row['questions_needed']:,}" if row["questions_needed"] else "-",
        ]
        for row in report.get("comparisons", [])
    ]
    names = ["H2C against", "difference", "95 % interval", "McNemar p", "questions needed"]
    note = "Questions needed: for McNemar's test to find the difference in 80 % of tries, where it did not here."
    return [*heading("Differences over the same questions"), *table(names, rows), "", note] if rows else []


def difference_cells(row: dict) -> list[str]:
    return [percent(row["value"]), f"{percent(row['low'])} to {percent(row['high'])}", f"{row['p']:.1g}"]


def open_form(rows: dict) -> list[str]:
    cells = [[TITLES.get(name, name), *accuracy_cells(row)] for name, row in rows.items()]
    return [
        *heading("In words (the answer without the choices, exact match)"),
        *table(["method", "exact", "95 % interval", "questions"], cells),
    ]


def hand_off(rows: dict) -> list[str]:
    cells = [[TITLES.get(name, name), *accuracy_cells(row), percent(row["contained"])] for name, row in rows.items()]
    title = "Context hand-off (the Sharer reads a passage, the Receiver the question alone)"
    return [*heading(title), *table(["method", "exact", "95 % interval", "questions", "contained"], cells)]


def perplexity(rows: dict) -> list[str]:
    cells = [
        [TITLES.get(name, name), number(row["perplexity"], 2), f"{number(row['low'], 2)} - {number(row['high'], 2)}", f"{row['n']:,}"]
        for name, row in rows.items()
    ]
    return [*heading("Perplexity on instruction data"), *table(["method", "perplexity", "95 % interval", "answers"], cells)]


def counts(rows: dict) -> list[str]:
    kept = {name: {key: value for key, value in row.items() if not isinstance(value, list)} for name, row in rows.items()}
    lines = [f"- {name}: {', '.join(f'{key} {value}' for key, value in row.items())}" for name, row in kept.items()]
    return [*heading("What was asked, cut and refused"), *lines]


def latency_parts(rows: dict) -> list[str]:
    parts = [part for part in PARTS if any(part in row for row in rows.values())]
    cells = [[TITLES.get(name, name), *(number(row.get(part), 2) for part in parts)] for name, row in rows.items()]
    return [*heading("First token by part, median ms"), *table(["method", *(PARTS[part] for part in parts)], cells)]


def output_lengths(rows: list[dict]) -> list[str]:
    names = [name for name in rows[0] if name != "tokens"]
    cells = [[str(row["tokens"]), *(number(row[name]) for name in names)] for row in rows]
    return [*heading("Output length, median ms"), *table(["tokens", *(TITLES.get(name, name) for name in names)], cells)]


def break_even(row: dict) -> list[str]:
    if row["tokens"] is None:
        return ["", "At no output length is H2C cheaper than the Sharer alone here."]
    return ["", f"H2C is cheaper than the Sharer alone from {row['tokens']} tokens of output on."]


def memory(row: dict) -> list[str]:
    lines = [f"- weights of the {part}: {size / 2**20:,.1f} MiB" for part, size in row["weights_bytes"].items()]
    lines += [f"- peak in {PARTS[part]}: {size / 2**20:,.1f} MiB" for part, size in row.get("peak_bytes", {}).items()]
    return [*heading("Memory"), *lines]


def groups(title: str):
    def section(rows: dict) -> list[str]:
        names = [name for name in next(iter(rows.values())) if name != "n"]
        cells = [[group, f"{row['n']:,}", *(percent(row[name]) for name in names)] for group, row in rows.items()]
        return [*heading(f"By {title}"), *table([title, "questions", *(TITLES.get(name, name) for name in names)], cells)]

    return section


def examples(rows: list[dict]) -> list[str]:
    lines = heading("Examples")
    for example in rows:
        lines += [f"**{example['question']}** {'; '.join(example['choices'])}. Expected: {example['expected']}.", ""]
        cells = [[TITLES.get(name, name), row["choice"], row["open"].replace("\n", " ")] for name, row in example["answers"].items()]
        lines += [*table(["method", "letter", "in words, without the choices"], cells), ""]
    return lines[:-1]


SECTIONS = {
    "open_form": open_form, "hand_off": hand_off, "perplexity": perplexity, "counts": counts, "latency_parts": latency_parts,
    "output_lengths": output_lengths, "break_even": break_even, "memory": memory, "by_category": groups("category"),
    "by_subject": groups("subject"), "examples": examples,
}  # fmt: skip


def run(report: dict) -> dict:
    models = {f"{role}": " at ".join(filter(None, row.values())) for role, row in report.get("models", {}).items()}
    config = {name: value for name, value in report.get("config", {}).items() if value is not None}
    return {**models, **config, **{name: value for name, value in report["environment"].items() if value is not None}}


def heading(title: str) -> list[str]:
    return ["", f"## {title}", ""]


def table(names: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}", *(f"| {' | '.join(row)} |" for row in rows)]


def accuracy_cells(row: dict) -> list[str]:
    return [percent(row["accuracy"]), f"{percent(row['accuracy_low'])} - {percent(row['accuracy_high'])}", f"{row['n']:,}"]


def percent(fraction: float | None) -> str:
    return "not defined" if fraction is None else f"{100 * fraction:.1f} %"


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def interval(row: dict) -> str:
    return f"{percent(row['value'])} (95 % interval {percent(row['low'])} to {percent(row['high'])})"
