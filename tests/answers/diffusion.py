from __future__ import annotations

import math

import torch

from austeer import exercises


def mask_weight(n: int, k: int) -> float:
    return math.factorial(k - 1) * math.factorial(n - k) / math.factorial(n)


def unmask(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    logits = logits.clone()
    logits[..., mask] = -torch.inf
    probability, token = logits.softmax(-1).max(-1)
    chosen = probability.masked_fill(ids != mask, -1.0).topk(many).indices
    return ids.scatter(1, chosen, token.gather(1, chosen))


def by_logits(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    logits = logits.clone()
    logits[..., mask] = -torch.inf
    size, token = logits.max(-1)
    chosen = size.masked_fill(ids != mask, -torch.inf).topk(many).indices
    return ids.scatter(1, chosen, token.gather(1, chosen))


def everywhere(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    return unmask(torch.full_like(ids, mask), logits, many, mask)


def in_place(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    return ids.copy_(unmask(ids, logits, many, mask))


def over_the_batch(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    probability, token = logits.index_fill(-1, torch.tensor([mask]), -torch.inf).softmax(-1).max(-1)
    chosen = probability.masked_fill(ids != mask, -1.0).flatten().topk(many * len(ids)).indices
    return ids.flatten().scatter(0, chosen, token.flatten()[chosen]).view(ids.shape)


def by_margin(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    two = logits.index_fill(-1, torch.tensor([mask]), -torch.inf).softmax(-1).topk(2, -1)
    sure = two.values[..., 0] - two.values[..., 1]
    chosen = sure.masked_fill(ids != mask, -1.0).topk(many).indices
    return ids.scatter(1, chosen, two.indices[..., 0].gather(1, chosen))


def of_all_tokens(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    probability, token = logits.softmax(-1)[..., :mask].max(-1)
    chosen = probability.masked_fill(ids != mask, -1.0).topk(many).indices
    return ids.scatter(1, chosen, token.gather(1, chosen))


def changes_logits(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    found = unmask(ids, logits, many, mask)
    logits[..., mask] = -torch.inf
    return found


def leftmost(ids: torch.Tensor, logits: torch.Tensor, many: int, mask: int) -> torch.Tensor:
    token = logits[..., :mask].argmax(-1)
    return torch.where((ids == mask) & ((ids == mask).cumsum(1) <= many), token, ids)


RIGHT = [
    (exercises.check_mask_weight, mask_weight),
    (exercises.check_unmask, unmask),
]

WRONG = [
    (exercises.check_mask_weight, lambda n, k: 1 / k, "C(n, k) of them"),
    (exercises.check_mask_weight, lambda n, k: 1 / math.comb(n, k), "factor 1 / k"),
    (exercises.check_mask_weight, lambda n, k: 1 / ((n + 1) * math.comb(n, k)), "chance of the set alone"),
    (exercises.check_mask_weight, lambda n, k: n / k, "expected"),
    (exercises.check_unmask, by_logits, "softmax over the vocabulary"),
    (exercises.check_unmask, everywhere, "there already"),
    (exercises.check_unmask, in_place, "changes the ids"),
    (exercises.check_unmask, changes_logits, "changes the logits"),
    (exercises.check_unmask, over_the_batch, "[2, 0] masks"),
    (exercises.check_unmask, by_margin, "largest probability"),
    (exercises.check_unmask, of_all_tokens, "once the mask is ruled out"),
    (exercises.check_unmask, leftmost, "largest probability"),
    (exercises.check_unmask, lambda ids, logits, many, mask: unmask(ids, logits, 1, mask), "[2, 2] masks"),
    (exercises.check_unmask, lambda ids, logits, many, mask: unmask(ids, -logits, many, mask), "other masks"),
    (exercises.check_unmask, lambda ids, logits, many, mask: unmask(ids, logits, many, mask)[0], "shape (4,)"),
]
