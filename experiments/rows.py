"""What the experiments share: a file of rows, whole after every row, so that a killed run goes on where it was."""

import hashlib
import json
import tempfile
from pathlib import Path

import torch
import transformers
from filelock import FileLock

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
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        self.lock = FileLock(Path(tempfile.gettempdir()) / f"austeer-rows-{name}.lock")
        self.known = self._read()

    def _read(self) -> dict[str, dict]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {self._key(row): row for row in map(json.loads, lines)}

    def _key(self, row: dict) -> str:
        return json.dumps([row[field] for field in self.about], sort_keys=True)

    def get(self, **about) -> dict | None:
        """Return the row that is about this, if it is there."""
        return self.known.get(self._key(about))

    def add(self, row: dict) -> dict:
        """Write a row beside the file and rename: a killed run leaves whole rows only, two runs keep each other's."""
        row, beside = {**row, **self.versions}, self.path.with_suffix(".partial")
        with self.lock:
            self.known = self._read() | {self._key(row): row}
            try:
                beside.write_text("".join(json.dumps(one) + "\n" for one in self.known.values()))
                beside.replace(self.path)
            finally:
                beside.unlink(missing_ok=True)
        return row


def rounded(values: torch.Tensor, digits: int = 4) -> list:
    """Return the values as lists of few digits."""
    if values.ndim > 1:
        return [rounded(row, digits) for row in values]
    return [round(value, digits) for value in values.tolist()]
