"""The finished batches of a run, on disk as they come, so that a killed run goes on; and shares a process."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object


class Progress:
    """Computes the numbered batches of a stage, each once.

    With a directory, every batch is a line of `progress-<rank>.jsonl`, under a hash of model, questions and
    settings: batches of others are never taken for these. A last line that a kill left torn is dropped.
    """

    def __init__(self, directory: str | Path | None = None, state: PartialState | None = None):
        """``state``: of the processes that share the batches."""
        self.rank, self.ranks = (0, 1) if state is None else (state.process_index, state.num_processes)
        self.done, self.path = {}, None
        if directory is not None:
            directory = Path(directory)
            directory.mkdir(parents=True, exist_ok=True)
            self.path = directory / f"progress-{self.rank}.jsonl"
            if self.path.exists():
                whole = self.path.read_bytes()
                self.path.write_bytes(whole[: whole.rfind(b"\n") + 1])
            for path in directory.glob("progress-*.jsonl"):
                for line in path.read_bytes().split(b"\n")[:-1]:
                    entry = json.loads(line)
                    self.done[entry["key"], entry["number"]] = entry["record"]

    def each(self, asked: dict, count: int, compute: Callable[[int], dict]) -> Iterator[dict]:
        """The records of this process's share of batches 0 to ``count`` - 1; absent ones are computed.

        Args:
            asked: all that the records depend on; anything that json can write.
            compute: a batch's number in, its record out.
        """
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        for number in range(self.rank, count, self.ranks):
            if (key, number) not in self.done:
                record = compute(number)
                if self.path is not None:
                    with open(self.path, "a", encoding="utf-8") as file:
                        file.write(json.dumps({"key": key, "number": number, "record": record}) + "\n")
                self.done[key, number] = record
            yield self.done[key, number]

    def gather(self, records: list[dict]) -> list[dict]:
        """The records of all processes, in every one."""
        return gather_object(records) if self.ranks > 1 else records


def fingerprint(module) -> str | None:
    """A hash of a model's weights."""
    if module is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
