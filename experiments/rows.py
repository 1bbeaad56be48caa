"""What the experiments share: a file of rows, whole after every row, so that a killed run goes on where it was."""

import json
from pathlib import Path

import torch
import transformers

RESULTS = Path(__file__).parents[1] / "data" / "results"


class Rows:
    """The rows of one file; a row's `about` says what it is, and is there once.

    Args:
        path: of the file.
        model: its fingerprint, and the versions that were used, go into every new row.
        about: the fields of a row that say what it is.
    """

    def __init__(self, path: Path, model, about: tuple[str, ...] = ("cell",)):
        self.path, self.about = path, about
        self.versions = {
            "weights": model.austeer_info.fingerprint,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = {self._key(row): row for row in map(json.loads, lines)}

    def _key(self, row: dict) -> str:
        return json.dumps([row[field] for field in self.about], sort_keys=True)

    def get(self, **about) -> dict | None:
        """Return the row that is about this, if it is there."""
        return self.known.get(self._key(about))

    def add(self, row: dict) -> dict:
        """Write a row beside the file and rename: a killed run leaves whole rows only."""
        row = {**row, **self.versions}
        self.known[self._key(row)] = row
        beside = self.path.with_suffix(".partial")
        beside.write_text("".join(json.dumps(one) + "\n" for one in self.known.values()))
        beside.replace(self.path)
        return row


def rounded(values: torch.Tensor, digits: int = 4) -> list:
    """Return the values as lists of few digits."""
    if values.ndim > 1:
        return [rounded(row, digits) for row in values]
    return [round(value, digits) for value in values.tolist()]
