"""The facts of Atlas: real (entity, attribute, value) triples, split by entity.

``data/facts.tsv`` ships with the package; `select_facts` made it from the public tables that its header
credits. A fact's split belongs to its *entity*: everything about one city is in train, or validation, or
test, so that nothing learned on train can answer a test question.
"""

import csv
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path


FACTS_FILE = Path(__file__).parent / "data" / "facts.tsv"
SPLITS = ("train", "validation", "test")
SPLIT_WEIGHTS = (62, 10, 28)

CREDITS = """\
Atlas: facts about real things, selected from public tables.
city: GeoNames (geonames.org), CC BY 4.0.
country: annexare/Countries, MIT.
element: facts as listed in Periodic-Table-JSON (Bowserinator), facts only.
star, musician, athlete: evandez/relations, MIT.
company: datasets/s-and-p-500-companies, PDDL.
"""

# Cities are taken from the largest regions of countries that have several, so that a value is met often.
REGIONS_A_COUNTRY, CITIES_A_REGION, FEWEST_CITIES = 3, 12, 6

# attribute of triples.tsv -> (our attribute, kind of entity, at most so many entities a value). The cap keeps
# a value's frequency from giving the answer away.
TRIPLES = {
    "star constellation name": ("constellation", "star", 25),
    "person plays instrument": ("instrument", "musician", 55),
    "person sport position": ("position", "athlete", 45),
    "plays pro sport": ("sport", "athlete", 52),
    "sector": ("sector", "company", 50),
}


@dataclass(frozen=True)
class Fact:
    """One fact. ``kind`` is the entity's (city, star, ...), ``split`` is train, validation or test."""

    entity: str
    kind: str
    attribute: str
    value: str
    split: str
    source: str


def load_facts(path: str | Path = FACTS_FILE) -> list[Fact]:
    """Read the facts that ship with the package (or another file of the same columns)."""
    with open(path, encoding="utf-8") as file:
        rows = csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t")
        return [Fact(**row) for row in rows]


def save_facts(facts: list[Fact], path: str | Path = FACTS_FILE) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {line}\n" for line in CREDITS.splitlines())
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(Fact.__dataclass_fields__)
        writer.writerows([f.entity, f.kind, f.attribute, f.value, f.split, f.source] for f in facts)


def select_facts(tables: str | Path, seed: int = 0) -> list[Fact]:
    """Select Atlas from the source tables (``cities.csv``, ``countries.csv`` and so on)."""
    rng = random.Random(seed)
    rows = [
        *_cities(Path(tables), rng),
        *_countries(Path(tables)),
        *_elements(Path(tables)),
        *_triples(Path(tables), rng),
    ]
    # Values are single words, which both tokenizers hold as one token: the tiny models learn to match those
    # in a tenth of the time.
    rows = [row for row in rows if _plain(row[0]) and _plain(row[3]) and row[3].isalnum()]

    entities = sorted({(kind, entity) for entity, kind, *_ in rows})
    splits = dict(zip(entities, rng.choices(SPLITS, SPLIT_WEIGHTS, k=len(entities)), strict=True))
    return [
        Fact(entity, kind, attribute, value, splits[kind, entity], source)
        for entity, kind, attribute, value, source in rows
    ]


def _plain(text: str) -> bool:
    return bool(text) and text.isascii() and len(text) <= 24


def _cities(tables: Path, rng: random.Random):
    regions = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(open(tables / "cities.csv", encoding="utf-8")):
        if (
            " " not in row["country"] + row["region"] + row["name"]
            and row["name"].isascii()
            and len(row["name"]) <= 12
        ):
            regions[row["country"]][row["region"]].append(row["name"])
    for country, by_region in sorted(regions.items()):
        largest = sorted(by_region.items(), key=lambda item: (-len(item[1]), item[0]))[:REGIONS_A_COUNTRY]
        largest = [(region, names) for region, names in largest if len(names) >= FEWEST_CITIES]
        for region, names in largest if len(largest) > 1 else []:
            for city in sorted(rng.sample(names, min(CITIES_A_REGION, len(names)))):
                if city != region:
                    yield city, "city", "country", country, "GeoNames"
                    yield city, "city", "region", region, "GeoNames"


def _countries(tables: Path):
    for row in csv.DictReader(open(tables / "countries.csv", encoding="utf-8")):
        if row["Capital"] != row["Name"]:
            yield row["Name"], "country", "capital", row["Capital"], "annexare/Countries"
        yield row["Name"], "country", "continent", row["Continent"], "annexare/Countries"
        yield row["Name"], "country", "currency", row["Currency"].split(",")[0], "annexare/Countries"


def _elements(tables: Path):
    for row in csv.DictReader(open(tables / "elements.csv", encoding="utf-8")):
        yield row["name"], "element", "symbol", row["symbol"], "Periodic-Table-JSON"
        yield row["name"], "element", "period", row["period"], "Periodic-Table-JSON"
        yield row["name"], "element", "block", row["block"], "Periodic-Table-JSON"


def _triples(tables: Path, rng: random.Random):
    rows = list(
        csv.DictReader(open(tables / "triples.tsv", encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
    )
    rng.shuffle(rows)
    count = Counter()
    for row in rows:
        if row["attribute"] in TRIPLES:
            attribute, kind, cap = TRIPLES[row["attribute"]]
            count[attribute, row["value"]] += 1
            if count[attribute, row["value"]] <= cap:
                yield row["entity"], kind, attribute, row["value"], row["source"]
