"""`select()`: settings are chosen on the validation part alone, and the choice is reported on the test part."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from austeer.evaluation import Report, price, score, text_prices, unrelated_to
from austeer.steering import Steering
from austeer.tasks import Task, load_task


@dataclass(frozen=True)
class Selection:
    """What was searched on the validation part, what was chosen, and what that does on the test part.

    Args:
        name: of the chosen candidate.
        steering: the chosen candidate.
        limit: the largest price that was allowed, as a multiple of the unsteered perplexity.
        searched: the validation report of every candidate, in the order given.
        unsteered: the reports of the unsteered model on the validation and the test part.
        test: the report of the chosen candidate on the test part.
    """

    name: str
    steering: Steering
    limit: float
    searched: dict[str, Report]
    unsteered: tuple[Report, Report]
    test: Report

    @property
    def curse(self) -> float:
        """The winner's curse, the chosen candidate's gain over the unsteered model on validation minus that on test.

        Gains and not scores, since the two parts need not be equally hard.
        """
        validation, test = self.unsteered
        return self.searched[self.name].gain_over(validation)["gain"] - self.test.gain_over(test)["gain"]

    def __repr__(self) -> str:
        validation, test = self.unsteered
        lines = [f"{len(self.searched)} candidates on validation; price at most {self.limit:g} x perplexity"]
        for name, report in self.searched.items():
            mark = "->" if name == self.name else "  "
            gain = report.gain_over(validation)["gain"]
            lines.append(f" {mark} {name:>32}  gain {gain:+.3f}  price {report.price['perplexity']:.2f}")
        gain = self.test.gain_over(test)
        lines.append(f"{self.name} on test: gain {gain['gain']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})")
        return "\n".join([*lines, f"winner's curse (validation gain minus test gain): {self.curse:+.3f}"])

    def _repr_html_(self) -> str:
        validation, test = self.unsteered
        rows = [("candidate", "validation gain", "price")]
        for name, report in self.searched.items():
            gain = f"{report.gain_over(validation)['gain']:+.3f}"
            rows.append((f"{name} (chosen)" if name == self.name else name, gain, f"{report.price['perplexity']:.2f}"))
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        gain = self.test.gain_over(test)
        return (
            f"<p>{len(self.searched)} candidates; price at most {self.limit:g} x perplexity</p><table>{body}</table>"
            f"<p>{html.escape(self.name)} on test: gain {gain['gain']:+.3f} "
            f"({gain['low']:+.3f} to {gain['high']:+.3f}); winner's curse {self.curse:+.3f}</p>"
        )


def select(
    model,
    task: str | tuple[Task, Task],
    candidates: Mapping[str, Steering],
    *,
    limit: float = 1.5,
    unsteered: tuple[Report, Report] | None = None,
    n: int | None = None,
    seed: int = 0,
    shots: int = 0,
    template: str | None = None,
) -> Selection:
    """Choose among steerings by their headline score on validation, at a bounded price, and report the choice on test.

    Args:
        model: a model from `load()`.
        task: a name that `load_task` knows, or the validation and the test part of a task of one's own.
        candidates: steerings by name: such as one for each k, alpha, site and rule.
        limit: candidates that raise perplexity beyond this multiple are left out.
        unsteered: that of an earlier selection on the same parts, so that it is not measured again.
        n, seed, shots: as in `load_task`, for both parts, where `task` is a name.
        template: None or "chat".

    Raises:
        ValueError: no candidate, candidates without names, or none within the price; otherwise as `evaluate`.
    """
    if not candidates or not isinstance(candidates, Mapping):
        raise ValueError("No candidate was given by name; give a dictionary of steerings.")
    parts = task
    if isinstance(task, str):
        parts = [load_task(task, part, n=n, seed=seed, shots=shots) for part in ("validation", "test")]
    prices = text_prices(model, [None, *candidates.values()])
    unsteered = unsteered or tuple(score(model, part, None, template, prices[0]) for part in parts)
    searched = {
        name: score(model, parts[0], steering, template, paid)
        for (name, steering), paid in zip(candidates.items(), prices[1:], strict=True)
    }
    allowed = [name for name, found in searched.items() if found.price["perplexity"] <= limit]
    if not allowed:
        least = min(found.price["perplexity"] for found in searched.values())
        raise ValueError(f"Every candidate costs more than {limit:g} x perplexity (least {least:.2f}); lower alpha.")
    name = max(allowed, key=lambda one: searched[one].mean())
    paid = price(model, candidates[name], unrelated_to(parts[0].name))
    test = score(model, parts[1], candidates[name], template, paid)
    return Selection(name, candidates[name], limit, searched, unsteered, test)
