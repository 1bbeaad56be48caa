"""Masked diffusion: a model that sees both ways and fills in masks; its loss, its sampler, and LLaDA's weights.

What a denoising step computes is one pass of a transformers Llama without its causal mask, so sites, `collect`,
momentum and every steering are those of causal models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from austeer import models
from austeer.generation import gumbel, quiet
from austeer.models import apply_template, encode, info, several
from austeer.sites import Place, Sites, anatomy
from austeer.small import grammar, training
from austeer.steering import Operator, Steering, apply, require_steering

ANSWER = 24  # tokens that are filled in after the first sentence of a review; what is not needed is end of text
ROWS_PER_PASS = 128


def masked(module: LlamaForCausalLM) -> LlamaForCausalLM:
    """Make a masked diffusion model of reviews out of a causal one, in place; it has to be trained to be one.

    The language has no unknown words, so the token of the unknown word is the mask.

    Args:
        module: from `training.llama`, trained or not.
    """
    module.config.mask_token_id = grammar.VOCABULARY[grammar.UNKNOWN]
    return bidirectional(module)


def bidirectional(module: LlamaForCausalLM) -> LlamaForCausalLM:
    """Take the causal mask out of a model of transformers, in place: every token sees every other one but padding."""
    module.config.is_causal = False  # where padding needs a mask
    for part in module.modules():
        if hasattr(part, "is_causal"):  # where none is needed, attention itself would be causal
            part.is_causal = False
    return module


def masked_loss(module: nn.Module, generator: torch.Generator) -> Tensor:
    """Return the mean loss of new reviews with masks, in nats per token of the answer: what `train` minimises."""
    ids, real, answer = canvas(grammar.sample(training.BATCH, generator))
    return estimate(module, ids, real, answer, generator).sum() / answer.sum()


def estimate(module: nn.Module, ids: Tensor, real: Tensor, answer: Tensor, generator: torch.Generator) -> Tensor:
    """Return an unbiased estimate of an upper bound on -log p(answer | the rest) of each text, from one draw of masks.

    Of a text's n tokens that may be masked k are, with k from 1 to n alike. What the model loses on them is weighed by
    n / k, which is 1 / t with t the share that is masked (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992).

    Args:
        module: a masked diffusion model.
        ids: (texts, tokens) int64, without masks.
        real, answer: (texts, tokens) bool, False on padding, and True on what may be masked.
        generator: every draw comes from it.

    Returns:
        (texts,) float32, in nats.
    """
    masked, weight = corrupt(answer, generator)
    corrupted = torch.where(masked, module.config.mask_token_id, ids).to(module.device)
    logits = module(input_ids=corrupted, attention_mask=real.long().to(module.device), use_cache=False).logits.cpu()
    loss = nn.functional.cross_entropy(logits[masked], ids[masked], reduction="none")
    return torch.zeros(masked.shape).masked_scatter(masked, loss).sum(-1) * weight[:, 0]


def canvas(reviews: Sequence[grammar.Review]) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out reviews as the sampler does: first sentences end in one column, and ANSWER tokens follow.

    Returns:
        ids, real (False on padding) and answer (True on what is to be filled in), each (reviews, tokens).
    """
    number = grammar.VOCABULARY
    given = [[grammar.BOS, *review.prompt.split()] for review in reviews]
    width = max(map(len, given))
    rows = []
    for review, first in zip(reviews, given, strict=True):
        rest = review.text.removeprefix(review.prompt).split()
        end = [grammar.EOS] * (ANSWER - len(rest))
        rows.append([number[word] for word in [grammar.PAD] * (width - len(first)) + first + rest + end])
    ids = torch.tensor(rows)
    columns = torch.arange(ids.shape[1]).expand_as(ids)
    return ids, ids != number[grammar.PAD], columns >= width


def corrupt(answer: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the tokens to mask: in each row k of the n that may be, with k drawn from 1 to n.

    Args:
        answer: (texts, tokens) bool, which may be.
        generator: every draw comes from it; numbers k are spread evenly over the rows.

    Returns:
        (texts, tokens) bool, and the weight n / k, (texts, 1) float32.
    """
    n = answer.sum(-1, keepdim=True)
    even = (torch.randperm(len(answer), generator=generator) + torch.rand(1, generator=generator)) / len(answer)
    k = (even[:, None] * n).long().clamp(max=n - 1) + 1
    order = torch.rand(answer.shape, generator=generator).masked_fill(~answer, 2.0).argsort(-1).argsort(-1)
    return order < k, n / k


def bound(module: nn.Module, reviews: Sequence[grammar.Review], draws: int, generator: torch.Generator) -> Tensor:
    """Return an upper bound on -log p of each review's answer, an unbiased estimate: (reviews,) float32, in nats.

    Args:
        module: the model.
        reviews: what is scored; its end of text and what follows counts, too.
        draws: how often masks are drawn for each review.
        generator: every draw comes from it.
    """
    parts = canvas(reviews)
    with torch.no_grad():
        return sum(estimate(module, *parts, generator) for _ in range(draws)) / draws


def states(model, texts: Sequence[str], site: str = "residual", where: str = "last") -> Tensor:
    """Read a site of every layer, at a place of each text that `collect` does not know.

    Args:
        model: a masked diffusion model.
        texts: read in one pass each, without an answer, unless it is asked for.
        site: "attention", "ffn", "neuron" or "residual".
        where: "last" or "first", that token of the text, BOS included; "mean" over all of its tokens; "masks", the mean
            over an answer of ANSWER masks that follows the text.

    Returns:
        (texts, layers, width) float32.

    Raises:
        ValueError: an unknown site or place, or as `collect`.
    """
    if where not in ("first", "last", "mean", "masks"):
        raise ValueError(f"where is {where!r}; give first, last, mean or masks.")
    anatomy(model).require(site)
    found, answer = [], ANSWER if where == "masks" else 0
    for start in range(0, max(1, len(texts)), ROWS_PER_PASS):
        batch, width = _canvas_of(model, texts[start : start + ROWS_PER_PASS], None, answer)
        share = batch["attention_mask"].float()  # of each token in what is read
        if answer:
            share[:, :width] = 0
        elif where != "mean":
            column = share.argmax(-1) if where == "first" else torch.full((len(share),), width - 1)
            share = nn.functional.one_hot(column, width).float()
        share = (share / share.sum(-1, keepdim=True)).to(model.device)
        with quiet(), torch.no_grad(), model.trace(batch, use_cache=False):
            sites = Sites(model)
            places = (Place(layer, site) for layer in range(sites.anatomy.layers))
            read = [torch.einsum("btw,bt->bw", sites.read(place).float(), share) for place in places]
            read = torch.stack(read, 1).cpu().save()
        found.append(read)
    return torch.cat(found)


def _canvas_of(model, texts: Sequence[str], template: str | None, new_tokens: int) -> tuple[dict[str, Tensor], int]:
    """Return the inputs of a pass over texts with masks behind them, and in which column the masks begin."""
    batch = encode(model, apply_template(model, several(texts), template), room=new_tokens)
    masks = torch.full((len(batch["input_ids"]), new_tokens), model._module.config.mask_token_id)
    inputs = {
        "input_ids": torch.cat([batch["input_ids"], masks], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(masks)], 1),
    }
    return inputs, batch["input_ids"].shape[1]


def denoise(model, prompts: Sequence[str], steering: Steering | None = None, **options) -> list[str]:
    """Continue prompts by filling in masks, the surest first, with every pass steered.

    Args:
        model, prompts, steering, options: as in `denoising`; prompts are batched inside, in the order given.

    Returns:
        The continuations only; what stands after an end of text is cut off, and special tokens are left out.

    Raises:
        ValueError: as `denoising`.
    """
    texts, end = [], model.tokenizer.eos_token_id
    with tqdm(total=len(several(prompts)), desc="denoising", unit="text", leave=False) as bar:
        for start in range(0, max(1, len(prompts)), ROWS_PER_PASS):
            rows = prompts[start : start + ROWS_PER_PASS]
            *_, ids = denoising(model, rows, steering, **options)
            ended = (ids == end).cumsum(-1) > 0
            texts += model.tokenizer.batch_decode(ids.masked_fill(ended, end), skip_special_tokens=True)
            bar.update(len(rows))
    return texts


def denoising(
    model,
    prompts: Sequence[str],
    steering: Steering | None = None,
    *,
    new_tokens: int = ANSWER,
    steps: int | None = None,
    blocks: int = 1,
    steered: Container[int] | None = None,
    generator: torch.Generator | None = None,
    template: str | None = None,
) -> Iterator[Tensor]:
    """Yield the answers of one batch after every pass, (prompts, new_tokens) int64, with masks where nothing is yet.

    Args:
        model: a masked diffusion model, from `small.load` or `llada`.
        prompts: texts, read in one batch.
        steering: what to apply, or None; at positions "generated" it acts on the answer's tokens, masks included.
        new_tokens: length of the answer.
        steps: passes through the model, a multiple of `blocks`; None takes one for each token.
        blocks: equal parts of the answer, filled from left to right.
        steered: numbers of the passes that are steered, from 0 on, such as `range(8)`; None steers all.
        generator: draws each token from the model's distribution, with noise that is drawn once a text: runs on the
            same prompts from equal generators differ by what the steering did. None takes the likeliest token.
        template: None or "chat".

    Raises:
        ValueError: a model that sees one way only, no prompt, numbers of steps and blocks that do not fit together,
            what is no steering, one of another shape, or a prompt that leaves no room in the context.
    """
    mask, steps = getattr(model._module.config, "mask_token_id", None), steps or new_tokens
    if getattr(model._module.config, "is_causal", True) or mask is None:
        raise ValueError(f"{info(model).id} sees one way only; give a masked diffusion model, or use au.generate().")
    if new_tokens % blocks or steps % blocks or not 0 < steps <= new_tokens:
        raise ValueError(
            f"{steps} steps for {new_tokens} tokens in {blocks} blocks: give a number of steps up to that of the "
            "tokens, and blocks that divide both."
        )
    if steering is not None:
        require_steering(steering, model)
    batch, prompt = _canvas_of(model, prompts, template, new_tokens)
    ids, size, noise = batch["input_ids"][:, prompt:], new_tokens // blocks, 0.0
    for step in range(steps):
        block, turn = divmod(step, steps // blocks)
        acts = steering is not None and (steered is None or step in steered)
        batch["input_ids"] = torch.cat([batch["input_ids"][:, :prompt], ids], 1)
        logits = _answer_logits(model, batch, steering.operators if acts else (), prompt)
        logits[..., mask] = -torch.inf
        if generator is not None and step == 0:
            noise = gumbel(logits.shape, generator)
        token = (logits + noise).argmax(-1)
        sure = logits.softmax(-1).gather(-1, token[..., None])[..., 0]
        here = torch.arange(new_tokens) // size == block
        sure = sure.masked_fill((ids != mask) | ~here, -1.0)
        many = size // (steps // blocks) + (turn < size % (steps // blocks))
        chosen = sure.topk(many).indices
        ids = ids.scatter(1, chosen, token.gather(1, chosen))
        yield ids


def _answer_logits(model, batch: dict[str, Tensor], operators: Sequence[Operator], prompt: int) -> Tensor:
    """Return the logits at the answer's tokens, (texts, new_tokens, vocabulary) float32, of one steered pass."""
    with quiet(), torch.no_grad(), model.trace(use_cache=False) as tracer:
        with tracer.invoke(batch):
            if operators:
                apply(model, tracer, [(slice(None), operators)], prompt)
        with tracer.invoke():
            logits = model.output.logits[:, prompt:].float().cpu().save()
    return logits


# LLaDA's names and those of transformers' Llama, as the released checkpoint has them: 9 tensors a block, and 3 more.
_OUTSIDE = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm", "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj", "attn_out": "self_attn.o_proj", "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "ff_out": "mlp.down_proj",
}  # fmt: skip
_SETTINGS = {  # LLaDA's name for a setting of Llama
    "vocab_size": "embedding_size", "hidden_size": "d_model", "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "max_sequence_length", "rms_norm_eps": "rms_norm_eps", "rope_theta": "rope_theta",
    "tie_word_embeddings": "weight_tying", "mask_token_id": "mask_token_id", "eos_token_id": "eos_token_id",
}  # fmt: skip
_AS_LLAMA = {  # what must be so for the two to compute the same
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "alibi": False,
    "include_bias": False, "include_qkv_bias": False, "attention_layer_norm": False, "input_emb_norm": False,
    "scale_logits": False,
}  # fmt: skip


def llada(source: str | os.PathLike, *, device: str = "cpu", dtype: str = "bfloat16"):
    """Load LLaDA's weights into a Llama that sees both ways, without the checkpoint's own code.

    Written from the names and shapes of `GSAI-ML/LLaDA-8B-Instruct`, and tested on a small random checkpoint that has
    them; not run on the released weights.

    Args:
        source: a directory, or the hub id, with config.json, the tokenizer and the weights as safetensors.
        device, dtype: as in `au.load`.

    Returns:
        What `au.load` returns.

    Raises:
        ValueError: a setting under which the two architectures differ, or weights that are missing or too many.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
    own = json.loads((folder / "config.json").read_text("utf-8"))
    for name, value in _AS_LLAMA.items():
        if own.get(name, value) != value:
            raise ValueError(f"{name} is {own[name]!r} in {source}, and a Llama needs {value!r}.")
    config = LlamaConfig(**{name: own[its] for name, its in _SETTINGS.items() if own.get(its) is not None})
    config._name_or_path = str(source)
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= {llama_name(key): weight for key, weight in load_file(file).items()}
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in LlamaForCausalLM(config).named_parameters()}
    found = {name: weight.shape for name, weight in weights.items()}
    if odd := sorted(name for name, _ in found.items() ^ expected.items()):
        raise ValueError(f"{odd[0]} is missing, too many, or of another shape than the settings of {source} say.")
    module = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=getattr(torch, dtype))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return models.load(bidirectional(module), tokenizer=tokenizer, device=device)


def llama_name(key: str) -> str:
    """Return the name that transformers' Llama has for a tensor of LLaDA; the tensor's own, if it has none.

    Example:
        >>> au.small.diffusion.llama_name("model.transformer.blocks.7.ff_proj.weight")
        'model.layers.7.mlp.gate_proj.weight'
    """
    *path, part, kind = key.removeprefix("model.transformer.").split(".")
    if not path and part in _OUTSIDE:
        return f"{_OUTSIDE[part]}.{kind}"
    if len(path) == 2 and path[0] == "blocks" and part in _IN_BLOCK:
        return f"model.layers.{path[1]}.{_IN_BLOCK[part]}.{kind}"
    return key
