"""How many neurons matter: CETT, its thresholds, PPL-p %, and steerings that silence the others (arXiv 2411.02335)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from austeer.activations import TOKENS_PER_PASS, Texts, require_finite
from austeer.generation import quiet
from austeer.models import info, several
from austeer.remote import bundles, run
from austeer.sites import Place, Sites, anatomy, weight
from austeer.steering import Operator, Pass, Steering, apply, require_steering

CANDIDATES = 65_536  # thresholds that the search may choose from
HIGHEST = 0.99  # the largest candidate, as a quantile of the norms: the longest outputs are never silenced


class Threshold(Operator):
    """x_i <- 0 where its size is below threshold_i: `threshold`, (layers, width) float32, for first layers."""

    name = "threshold"

    def writes(self) -> list[Place]:
        """Return a place of each layer that has a row."""
        return [Place(layer, self.site) for layer in range(len(self.tensors["threshold"]))]

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return -x where x is small, and 0 elsewhere."""
        return torch.where(x.abs() < self.tensors["threshold"][place.layer].to(x.device), -x, 0.0)


class TopK(Operator):
    """Keeps the largest x_i of every token, in size, and no other: `keep`, (layers,) int64, how many of a layer."""

    name = "top-k"

    def writes(self) -> list[Place]:
        """Return a place of each layer that has a number."""
        return [Place(layer, self.site) for layer in range(len(self.tensors["keep"]))]

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return -x where x is not among the largest, and 0 there."""
        size = x.abs()
        smallest = size.topk(int(self.tensors["keep"][place.layer]), dim=-1).values[..., -1:]
        return torch.where(size < smallest, -x, 0.0)


@dataclass(frozen=True)
class Activity:
    """What the neurons of a model did while it read some texts.

    Args:
        active: (layers, width) float32, the share of tokens in which a neuron was not 0.
        size: (layers, width) float32, the mean size of its activation.
        nats: (texts,) float64, negative log-probability of each text; its first token is not scored.
        scored: (texts,) int64, how many tokens were.
        tokens: how many were read.
    """

    active: Tensor
    size: Tensor
    nats: Tensor
    scored: Tensor
    tokens: int

    def perplexity(self) -> float:
        """Return one perplexity for all texts: exp of the mean over all tokens that were scored."""
        return (self.nats.sum() / self.scored.sum()).exp().item()


def activity(model, texts: Sequence[str], steering: Steering | None = None) -> Activity:
    """Read texts, steered or not, and say how often each neuron is active and how well the texts are predicted.

    Args:
        model: a model from `load()`.
        texts: read as they are.
        steering: what is applied, such as `sparsified(...)`; activations are counted after it.

    Raises:
        ValueError: no text, an empty or too long one, one of a single token, or a steering of another shape.
    """
    if steering is not None:
        require_steering(steering, model)
    operators = () if steering is None else steering.operators
    active = size = torch.zeros(1, dtype=torch.float64)
    nats, scored = torch.zeros(len(texts), dtype=torch.float64), torch.zeros(len(texts), dtype=torch.int64)
    tokens = 0
    for rows, (counts, sizes, lost, read) in _passes(model, texts, 2 * TOKENS_PER_PASS, _active, operators):
        active, size, tokens = active + counts, size + sizes, tokens + sum(read)
        nats[rows], scored[rows] = lost, torch.tensor(read) - 1
    if not scored.all():
        raise ValueError("A text is one token long, and its first token is not scored; give longer ones.")
    return Activity((active / tokens).float(), (size / tokens).float(), nats, scored, tokens)


def neuron_activations(model, texts: Sequence[str]) -> Tensor:
    """Read the neurons at every token of some texts, one text after the other; padding is left out.

    Returns:
        (tokens, layers, width) float32; 30 layers of 1,536 neurons take 184 kB a token.

    Raises:
        ValueError: no text, an empty or too long one, or activations that are not finite.
    """
    each: dict[int, Tensor] = {}
    for rows, (read, lengths) in _passes(model, texts, TOKENS_PER_PASS, _every_token):
        each |= zip(rows, read.split(lengths), strict=True)
    read = torch.cat([each[row] for row in range(len(texts))])
    require_finite(read)
    return read


def cett(x: Tensor, matrix: Tensor, threshold: float) -> float:
    """Return how long the sum of the silenced outputs is, as a share of what the FFN writes: the mean over tokens.

    A neuron is silenced on a token where its output, x_i W[:, i], is no longer than the threshold. (Cumulative errors
    of tail truncation; arXiv 2411.02335.) A bias is left out, and a token to which nothing is written counts 0.

    Args:
        x: (tokens, width), a layer's neurons.
        matrix: (hidden, width), what they write: `sites.weight`.
        threshold: in units of the residual stream.
    """
    norms, written = x.abs() * matrix.norm(dim=0), (x @ matrix.T).norm(dim=-1)
    return _cett(x, matrix, norms, written, threshold)


def _cett(x: Tensor, matrix: Tensor, norms: Tensor, written: Tensor, threshold: float) -> float:
    silenced = torch.where(norms <= threshold, x, 0.0) @ matrix.T
    return (silenced.norm(dim=-1) / written).nan_to_num(0.0).mean().item()


def threshold_at(x: Tensor, matrix: Tensor, target: float) -> float:
    """Return the largest threshold of a layer whose CETT is at most the target, by bisection over 65,536 candidates.

    They are evenly spaced between the smallest output norm and the 0.99 quantile of a sample of the norms, so one
    output in a hundred is never silenced. Where even the smallest is too large, it is returned all the same.

    Args:
        x, matrix: as for `cett`.
        target: a CETT in [0, 1].

    Raises:
        ValueError: a target outside [0, 1].
    """
    if not 0 <= target <= 1:
        raise ValueError(f"target is {target!r}; a CETT is a number from 0 to 1.")
    norms, written = x.abs() * matrix.norm(dim=0), (x @ matrix.T).norm(dim=-1)
    sample = norms.flatten()[:: max(norms.numel() // CANDIDATES, 1)]
    candidates = torch.linspace(norms.min().item(), sample.quantile(HIGHEST).item(), CANDIDATES)
    left, right = 0, CANDIDATES - 1
    while left < right:
        middle = (left + right) // 2
        if _cett(x, matrix, norms, written, candidates[middle].item()) > target:
            right = middle
        else:
            left = middle + 1
    return candidates[max(left - 1, 0)].item()


def thresholds_at(model, activations: Tensor, target: float) -> Tensor:
    """Return the threshold of every layer at one CETT: (layers,) float32, in units of the residual stream.

    Args:
        model: a local model from `load()`.
        activations: (tokens, layers, width), from `neuron_activations`.
        target: the CETT that all layers share.

    Raises:
        ValueError: as `threshold_at`, or a remote model.
    """
    layers = tqdm(range(activations.shape[1]), desc=f"thresholds at CETT {target:.4g}", unit="layer", leave=False)
    return torch.tensor(
        [threshold_at(activations[:, layer], weight(model, Place(layer, "neuron")), target) for layer in layers]
    )


def cett_at(ratio: Callable[[float], float], p: float = 1.0, evaluations: int = 15) -> float:
    """Return the CETT at which perplexity has risen by p %, by bisection on [0, 1]: PPL-p % (arXiv 2411.02335).

    Args:
        ratio: gives the perplexity at a CETT as a multiple of that of the dense model.
        p: in percent; the paper uses 1.
        evaluations: each halves the interval; 15 leave 3e-5.
    """
    low, high = 0.0, 1.0
    for _ in range(evaluations):
        middle = (low + high) / 2
        if ratio(middle) < 1 + p / 100:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def sparsified(model, thresholds: Tensor) -> Steering:
    """Silence every neuron on every token where its output is shorter than its layer's threshold.

    Args:
        model: a local model from `load()`.
        thresholds: (layers,), in units of the residual stream; all layers are sparsified at once.

    Raises:
        ValueError: another number of layers, negative thresholds or such that are not finite, or a remote model.
    """
    layers = anatomy(model).layers
    if thresholds.shape != (layers,) or not (thresholds.isfinite() & (thresholds >= 0)).all():
        raise ValueError(
            f"thresholds is {tuple(thresholds.shape)}; give {layers} finite numbers from 0 on, one a layer."
        )
    norms = torch.stack([weight(model, Place(layer, "neuron")).float().norm(dim=0).cpu() for layer in range(layers)])
    least = torch.finfo(torch.float32).tiny  # a neuron that writes nothing gets a threshold that is finite
    threshold = (thresholds[:, None] / norms.clamp(min=least)).clamp(max=torch.finfo(torch.float32).max)
    return _steering(model, Threshold("neuron", {"threshold": threshold}), "output norm threshold")


def fat(model, epsilon: float, site: str = "neuron") -> Steering:
    """Silence neurons wherever their activation is smaller than epsilon in size, one number for all (FAT-epsilon).

    Args:
        model: a model from `load()`.
        epsilon: in units of the activation.
        site: "neuron", what the matrix reads, or "gate", act(W_g x) alone, which the paper's code compares.
    """
    found = anatomy(model)
    threshold = torch.full((found.layers, found.require(site)), float(epsilon))
    return _steering(model, Threshold(site, {"threshold": threshold}), f"FAT-{epsilon:g}")


def top_k(model, share: float, site: str = "neuron") -> Steering:
    """Keep, on every token and in every layer, the same share of the neurons, those of the largest activation in size.

    Args:
        model: a model from `load()`.
        share: of the neurons of a layer.
        site: as for `fat`; the paper's code keeps a share of all numbers of a text together.

    Raises:
        ValueError: a share that keeps no neuron or more than all, or a model without a gate where one is asked for.
    """
    found = anatomy(model)
    width = found.require(site)
    keep = round(share * width)
    if not 1 <= keep <= width:
        raise ValueError(f"share is {share!r}; give a share of the {width} neurons above 0 and up to 1.")
    return _steering(model, TopK(site, {"keep": torch.full((found.layers,), keep)}), f"top {share:.3g}")


def _steering(model, operator: Threshold | TopK, method: str) -> Steering:
    found = anatomy(model)
    about = {"method": method, "site": operator.site, "shape": [found.layers, found.widths[operator.site]]}
    return Steering([operator], info(model), about)


def _passes(model, texts: Sequence[str], tokens_per_pass: int, job: Callable, *shared) -> Iterator[tuple]:
    """Yield the numbers of the texts of each batch, longest first, and what a job gives for it."""
    laid_out = Texts.of(model, several(texts), None)

    def batch(rows: list[int]) -> tuple:
        inputs, _ = laid_out.encode(model, rows)
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)  # padding has no position
        return rows, inputs

    batches = map(batch, laid_out.batches(tokens_per_pass))
    with tqdm(total=len(texts), desc="reading neurons", unit="text", leave=False) as bar, quiet():
        for bundle, found in run(model, job, bundles(model, batches), *shared, again=batch):
            for (rows, _), read in zip(bundle, found, strict=True):
                yield rows, read
                bar.update(len(rows))


def _active(model, bundle: list[tuple], operators: Sequence[Operator]) -> list[tuple]:
    """Return for each batch: how often each neuron was active, sums of sizes, nats of each text, and its tokens."""
    found = []
    for _, batch in bundle:
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        with torch.no_grad(), model.trace(use_cache=False) as tracer:
            with tracer.invoke(batch):
                if operators:
                    apply(model, tracer, [(slice(None), operators)])
            with tracer.invoke():
                sites = Sites(model)
                active = torch.zeros(sites.anatomy.layers, sites.anatomy.widths["neuron"]).save()
                size = torch.zeros(sites.anatomy.layers, sites.anatomy.widths["neuron"]).save()
                for layer in range(sites.anatomy.layers):
                    x = sites.read(Place(layer, "neuron"))
                    x = x[real.to(x.device)].float()
                    active[layer] = (x != 0).float().sum(0).cpu()
                    size[layer] = x.abs().sum(0).cpu()
                logits = model.output.logits[:, :-1].float().cpu()
                lost = logits.logsumexp(-1) - logits.gather(-1, ids[:, 1:, None])[..., 0]
                nats = torch.where(real[:, :-1], lost, 0.0).sum(-1, dtype=torch.float64).save()
        found.append((active, size, nats, real.sum(-1).tolist()))
    return found


def _every_token(model, bundle: list[tuple]) -> list[tuple]:
    """Return for each batch (tokens, layers, width) float32, and how many of the tokens each text has."""
    found = []
    for _, batch in bundle:
        real = batch["attention_mask"].bool()
        with torch.no_grad(), model.trace(batch, use_cache=False) as tracer:
            sites = Sites(model)
            read = torch.zeros(int(real.sum()), sites.anatomy.layers, sites.anatomy.widths["neuron"]).save()
            for layer in range(sites.anatomy.layers):
                x = sites.read(Place(layer, "neuron"))
                read[:, layer] = x[real.to(x.device)].float().cpu()
            tracer.stop()
        found.append((read, real.sum(-1).tolist()))
    return found
