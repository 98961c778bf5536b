"""Bridges of several forms for the pair and the data of a training.yaml, in one table.

A cell is a bridge as `h2c train CONFIG` with a form's fields trains it. It is then asked the grid's sets of
questions, with its own message and with another question's (`shuffled`).
"""

import tempfile
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from ..config_parser import read_yaml
from ..evaluation.runner import evaluate
from ..evaluation.sets import QuestionSet
from ..modeling import H2CForCausalLM, H2CProcessor
from ..pair import Pair
from ..reports.statistics import mean_difference
from ..training.arguments import parse
from ..training.data import load_data
from ..training.train import make_model, make_trainer
from .atlas_grid import FUSION, refuse_unknown
from .cache_fusion import CacheFusion
from .merits import averaged, by_seed, figure, markdown


INNER = "inner_size"  # of cache fusion
ASKED = ["h2c", "shuffled"]
BATCH = 16  # questions at a time: some vocabularies are large, and cells run side by side


@dataclass
class PairGrid:
    """A grid file with a `config`.

    Args:
        config: a training.yaml: the pair, the data, and the fields that all forms share.
        forms: name -> fields of the training.yaml that differ; or `cache_fusion: true`, for the related
            system of `h2c_hf.experiments.cache_fusion`, and its `inner_size`.
        sets: questions, as `sets` of an evaluation.yaml.
        seeds: of each cell: weights and order of the examples.
    """

    config: str
    forms: dict[str, dict]
    sets: list[dict]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    @classmethod
    def read(cls, path: str | Path) -> "PairGrid":
        """
        Raises:
            ValueError: for an unknown field, or a value that the config or a set cannot have.
        """
        values = read_yaml(path)
        refuse_unknown(values, [field.name for field in fields(cls)], path)
        grid = cls(**{"forms": {}, "sets": [], **values})
        for name, what in (
            ("forms", "a mapping of names to fields of the training.yaml"),
            ("sets", "a list of sets of questions"),
            ("seeds", "a list of numbers"),
        ):
            if not getattr(grid, name):
                raise ValueError(f"{path} has no {name}; expected {what}.")
        grid.forms = {name: form or {} for name, form in grid.forms.items()}
        for name, form in grid.forms.items():
            h2c, _ = grid.arguments(name, grid.seeds[0], "outputs")
            Pair(h2c).bridge_config()
            if form.get(FUSION) and form.get(INNER, 1) < 1:
                raise ValueError(f"{INNER} of {name} is {form[INNER]}; expected at least 1.")
        for entry in grid.sets:
            QuestionSet.parse(entry)
        return grid

    def arguments(self, form: str, seed: int, output: str) -> tuple:
        """`h2c train CONFIG` with a form's fields."""
        other = (FUSION, INNER) if self.forms[form].get(FUSION) else ()
        told = {name: value for name, value in self.forms[form].items() if name not in other}
        told |= {"seed": seed, "output_dir": output, "report_to": "none", "save_strategy": "no"}
        options = [part for name, value in told.items() for part in (f"--{name}", str(value))]
        return parse([self.config, *options], "h2c ablate")

    def settings(self) -> dict:
        """The fields that all cells of one folder share, beside the forms."""
        return {"config": Path(self.config).read_text(encoding="utf-8"), "sets": self.sets}

    def cells(self) -> list[tuple[str, int]]:
        return [(form, seed) for seed in self.seeds for form in self.forms]

    def compute_alone(self) -> dict:
        """The answers of both models without a bridge."""
        h2c, training = self.arguments(next(iter(self.forms)), 0, "outputs")
        model = Pair(h2c).model(training.device)
        return {"correct": self.ask(model, Pair(h2c).processor(), ["receiver", "sharer"])}

    def compute(self, form: str, seed: int) -> dict:
        """Train a bridge and ask it."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as output:
            model, processor, losses = self.train(form, seed, output)
        return {
            "form": form, "seed": seed, "fields": self.forms[form], "losses": losses,
            "training_seconds": time.monotonic() - started, "parameters": model.bridge.num_parameters(),
            "correct": self.ask(model, processor, ASKED),
        }  # fmt: skip

    def train(self, form: str, seed: int, output: str) -> tuple[H2CForCausalLM, H2CProcessor, list[float]]:
        """Return the pair with a trained bridge, its processor, and the losses that were logged."""
        h2c, training = self.arguments(form, seed, output)
        pair = Pair(h2c)
        processor = pair.processor()
        data = load_data(h2c, training, processor)
        model = make_model(h2c, training, pair, processor, data)
        if self.forms[form].get(FUSION):
            model = CacheFusion(
                model.sharer, model.receiver, processor, anneal_steps=training.max_steps,
                inner_size=self.forms[form].get(INNER), dropout=h2c.dropout,
            )  # fmt: skip
        trainer = make_trainer(h2c, training, pair, processor, data, model)
        trainer.train()
        return model, processor, [row["loss"] for row in trainer.state.log_history if "loss" in row]

    def ask(self, model: H2CForCausalLM, processor: H2CProcessor, methods: list[str]) -> dict[str, list[int]]:
        """Return {"set/method": 1 or 0 by question}: whether the whole answer is right."""
        correct = {}
        for entry in self.sets:
            asked = QuestionSet.parse(entry)
            questions, _ = asked.load(processor.receiver_tokenizer, processor.chat_template_kwargs)
            results = evaluate(
                model, processor, questions, methods, form="open", batch_size=BATCH,
                answer_tokens=asked.answer_tokens, draft_tokens=asked.draft_tokens,
            )  # fmt: skip
            for method, result in results.items():
                correct[f"{asked.name}/{method}"] = [int(right) for right in result["correct"]]
        return correct

    def tables(self, cells: dict[tuple, dict]) -> str:
        """One Markdown table, a row a form: exact match of each set, and with another question's message.
        Last, the Receiver and the Sharer alone, who answer as their makers taught them."""
        names = [QuestionSet.parse(entry).name for entry in self.sets]
        titles = [part for name in names for part in (f"{name}, exact match (%)", "with another's message")]
        lines = []
        for form in self.forms:
            found = [cells[form, seed] for seed in self.seeds if (form, seed) in cells]
            if not found:
                continue
            right = by_seed(found)
            figures = []
            for name in names:
                own = [mean_difference(one, np.zeros(len(one))) for one in averaged(right[f"{name}/h2c"])]
                figures += [figure(own), f"{100 * right[f'{name}/shuffled'].mean():.1f}"]
            lines.append([form, str(len(found)), f"{found[0]['parameters']:,}", *figures])
        for method in ("receiver", "sharer"):
            alone = [cells[()]["correct"][f"{name}/{method}"] for name in names]
            own = [part for right in alone for part in (f"{100 * np.mean(right):.1f}", "")]
            lines.append([f"{method} alone", "", "", *own])
        return markdown(("form", "seeds", "parameters", *titles), lines)
