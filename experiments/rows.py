"""What the experiments share: a file of rows, whole after every row, so that a killed run goes on where it was."""

import json
from pathlib import Path

import torch
import transformers

RESULTS = Path(__file__).parents[1] / "data" / "results"


class Rows:
    """The rows of one file in data/results, or of a path; a row's `cell` says what it is, and is there once.

    Args:
        name: of the file, without ".jsonl", or a path.
        model: its fingerprint, and the versions that were used, go into every new row.
    """

    def __init__(self, name: str | Path, model):
        self.path = Path(name) if str(name).endswith(".jsonl") else RESULTS / f"{name}.jsonl"
        self.versions = {
            "weights": model.austeer_info.fingerprint,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = {self._key(row["cell"]): row for row in map(json.loads, lines)}

    @staticmethod
    def _key(cell: dict) -> str:
        return json.dumps(cell, sort_keys=True)

    def get(self, cell: dict) -> dict | None:
        """Return the row of a cell, if it is there."""
        return self.known.get(self._key(cell))

    def add(self, cell: dict, row: dict) -> dict:
        """Write a row beside the file and rename: a killed run leaves whole rows only."""
        row = {"cell": cell, **row, **self.versions}
        self.known[self._key(cell)] = row
        beside = self.path.with_suffix(".partial")
        beside.write_text("".join(json.dumps(one) + "\n" for one in self.known.values()))
        beside.replace(self.path)
        return row


def rounded(values: torch.Tensor, digits: int = 4) -> list:
    """Return the values as nested lists of few digits."""
    values = values.tolist()
    return [rounded(torch.tensor(v), digits) if isinstance(v, list) else round(v, digits) for v in values]
