"""The last cell of a chapter: what the prose states is asserted against what the chapter has just computed."""

from __future__ import annotations

import html

import torch
from IPython.display import display

from austeer.models import DEFAULT, info

MIME = "application/vnd.austeer.claims+json"
_DEFAULT_FINGERPRINT = "ad9c707b6ed183df"


def check_claims(
    model,
    values: dict[str, tuple[float, float, float]] | None = None,
    orderings: dict[str, bool] | None = None,
    published: dict[str, tuple[str, str, float]] | None = None,
) -> None:
    """Show and assert a chapter's claims; with another model than the default one, show expected beside found.

    Args:
        model: the model that the chapter used.
        values: for each statement with a number, (stated, found, tolerance): stated is what the prose prints.
        orderings: for each statement that one thing exceeds another, whether it holds (with its margin).
        published: for each quantity, (the published figure with its model, its source, what was measured here), for
            the page of results; asserted nowhere.

    Raises:
        AssertionError: a claim fails on the default model on the CPU in float32; the message lists those that fail.
    """
    values = {name: tuple(map(float, value)) for name, value in (values or {}).items()}
    orderings = {name: bool(holds) for name, holds in (orderings or {}).items()}
    asserted = _is_default(model)
    failed = [name for name, (stated, found, tolerance) in values.items() if not abs(found - stated) <= tolerance]
    failed += [name for name, holds in orderings.items() if not holds]
    display({"text/html": _table(values, orderings, failed), "text/plain": _text(values, orderings)}, raw=True)
    record = {
        "values": [
            {
                "name": name,
                "stated": stated,
                "found": found,
                "tolerance": tolerance,
                "printed": [shown(stated), shown(found)],
            }
            for name, (stated, found, tolerance) in values.items()
        ],
        "orderings": [{"name": name, "holds": holds} for name, holds in orderings.items()],
        "published": [
            {"name": name, "published": figure, "source": source, "measured": float(measured)}
            for name, (figure, source, measured) in (published or {}).items()
        ],
        "asserted": asserted,
    }
    display({MIME: record}, raw=True)
    if asserted and failed:
        raise AssertionError(f"{len(failed)} of {len(values) + len(orderings)} claims fail: {'; '.join(failed)}")


def _is_default(model) -> bool:
    about, module = info(model), model._module
    on_cpu = module.device.type == "cpu" and module.dtype == torch.float32
    return on_cpu and not about.remote and (about.id, about.fingerprint) == (DEFAULT, _DEFAULT_FINGERPRINT)


def shown(number: float) -> str:
    """Write a number for readers: four digits, and no exponent where all of its digits fit."""
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e9 else f"{number:.4g}"


def _text(values: dict, orderings: dict) -> str:
    lines = [f"{name}: stated {shown(stated)}, found {shown(found)}" for name, (stated, found, _) in values.items()]
    return "\n".join(lines + [f"{name}: {'holds' if holds else 'fails'}" for name, holds in orderings.items()])


def _table(values: dict, orderings: dict, failed: list[str]) -> str:
    rows = [(name, shown(stated), shown(found)) for name, (stated, found, _) in values.items()]
    rows += [(name, "holds", "holds" if holds else "fails") for name, holds in orderings.items()]
    body = "".join(
        f"<tr><td style='text-align:left'>{html.escape(name)}</td><td>{stated}</td><td>{found}</td>"
        f"<td>{'no' if name in failed else 'yes'}</td></tr>"
        for name, stated, found in rows
    )
    head = "<tr><th style='text-align:left'>claim</th><th>stated</th><th>found</th><th>agrees</th></tr>"
    return f"<table>{head}{body}</table>"
