"""Make data/results/traffic_light.jsonl: the two logistic regressions behind the traffic light of chapter 16.

    python experiments/traffic_light.py

From the rows of `indicators.jsonl` alone, in a second: ten concepts, without the two that the light is tried on, and
without random vectors. A run is coherent, or works, by the marks below, set after a look at the labels, before
any predictor was fitted.
"""

import json

import torch
from rows import RESULTS
from sklearn.linear_model import LogisticRegression

import austeer as au
from austeer.diagnostics import Indicators, changes

COHERENT, GAIN = 0.85, 0.15
SQUARES = ("works",)  # what a push does to the behaviour rises and falls; what it breaks stays broken
METHODS, UNSEEN = ("CAA", "Rotation", "AUSteer"), ("garden", "refusal")


def indicators_of(row: dict) -> Indicators:
    """Return the indicators of a shipped row; an unsteered one has no push."""
    empty = [torch.nan] * len(row["entropy"])
    return Indicators(**{name: torch.tensor(row.get(name, empty)) for name in Indicators.__dataclass_fields__})


def main() -> None:
    """Fit and write."""
    rows = [row for row in au.load_results("indicators") if row["cell"]["concept"] not in UNSEEN]
    plain = {row["cell"]["concept"]: row for row in rows if row["cell"]["method"] == "none"}
    rows = [row for row in rows if row["cell"]["method"] in METHODS]
    found = [changes(indicators_of(row), indicators_of(plain[row["cell"]["concept"]])) for row in rows]
    means = torch.tensor([[row["coherence"], row["behaviour"]] for row in rows]).mean(-1)
    before = torch.tensor([plain[row["cell"]["concept"]]["behaviour"] for row in rows]).mean(-1)
    coherent = means[:, 0] >= COHERENT
    labels = {"coherent": coherent, "works": coherent & (means[:, 1] - before >= GAIN)}
    X = torch.tensor([list(one.values()) for one in found], dtype=torch.float64)
    center, scale = X.mean(0), X.std(0, correction=0)
    z, lines, names = (X - center) / scale, [], list(found[0])
    for predicts, label in labels.items():
        features = torch.cat([z, z**2], 1) if predicts in SQUARES else z
        fit = LogisticRegression(C=1.0, max_iter=1000).fit(features.numpy(), label.numpy())
        weight = fit.coef_[0]
        parts = {"center": center, "scale": scale, "weight": weight[:5], "square": weight[5:]}
        named = {
            part: {name: round(float(value), 6) for name, value in zip(names, values, strict=False)}
            for part, values in parts.items()
        }
        about = {"predicts": predicts, "bias": round(float(fit.intercept_[0]), 6), "runs": len(rows)}
        lines.append({**about, **named, "marks": {"coherence": COHERENT, "gain": GAIN}, "weights": rows[0]["weights"]})
    (RESULTS / "traffic_light.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
