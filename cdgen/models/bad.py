"""BADs made from GOOD itself: with attention dropout, or with fewer layers. Both share GOOD's weights."""

import copy
from typing import Any

import torch
from torch import nn

from cdgen.errors import InputError
from cdgen.models.language_model import LanguageModel
from cdgen.rng import private_noise
from cdgen.values import real

# Attributes in which the architectures of transformers keep the probability of attention dropout, as a number or an
# nn.Dropout. Only modules with "Attention" in their class name count: others use `dropout` for their outputs.
_DROPOUT_ATTRIBUTES = ("attention_dropout", "attn_dropout", "attn_dropout_p", "dropout")


def parse_bad(text: str) -> dict[str, Any]:
    """Return the arguments of :class:`cdgen.ContrastiveLM` for `dropout:0.3`, `layers:12`, or a path or hub name.

    Raises:
        InputError: what follows `dropout:` or `layers:` is not a number, or a dropout is out of range.
    """
    kind, _, value = text.partition(":")
    if kind not in ("dropout", "layers") or not value:
        return {"bad": text}
    try:
        number = float(value) if kind == "dropout" else int(value)
    except ValueError:
        raise InputError(f"bad = {text!r}: use dropout:0.3, layers:12, or a path or hub name") from None
    return {kind: dropout_rate(number) if kind == "dropout" else number}


def dropout_rate(value: Any) -> float:
    """Return a probability of attention dropout.

    Raises:
        InputError: it is not a number between 0 and 1.
    """
    p = real("dropout", value)
    if not 0 < p < 1:
        raise InputError(f"dropout = {p}: must be between 0 and 1, such as 0.3")
    return p


def derived(good: LanguageModel, dropout: float | None, layers: int | None) -> LanguageModel | None:
    """Return the BAD that is made from GOOD with one of the two options, or None if both are None."""
    if dropout is not None:
        return attention_dropout(good, dropout)
    return None if layers is None else first_layers(good, layers)


def attention_dropout(good: LanguageModel, p: float) -> LanguageModel:
    """Return GOOD with attention dropout switched on while it decodes (the dropout BAD of Ulm et al. 2025).

    Args:
        good: GOOD, which does not change.
        p: probability of dropping an attention weight, in (0, 1).
    Returns:
        a model that shares the tensors of `good`.
    Raises:
        InputError: p is out of range, or the architecture's attention dropout is not found.
    """
    p = dropout_rate(p)
    module = _share(good.module)
    bad = LanguageModel(module, f"dropout:{p:g}", rule=f"dropout:{p!r}", parent=good, dropout=p)
    attentions = [part for part in module.modules() if "Attention" in type(part).__name__]
    for part in attentions:
        _switch_on(part, 0.5)
    if not _is_noisy(bad):
        raise InputError(
            f"dropout: no attention dropout found in {module.config.model_type}; use another checkpoint or layers="
        )
    for part in attentions:
        _switch_on(part, p)
    return bad


def first_layers(good: LanguageModel, n: int) -> LanguageModel:
    """Return GOOD's first `n` layers under its final norm and output layer.

    Args:
        good: GOOD, which does not change.
        n: number of layers to keep, fewer than GOOD has.
    Returns:
        a model that shares the tensors of `good`.
    Raises:
        InputError: n is out of range, or the architecture's list of layers is not found.
    """
    total = good.num_layers
    if not 1 <= n < total:
        raise InputError(f"layers = {n}: must be 1 to {total - 1}; GOOD has {total} layers")
    module = _share(good.module)
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == total)
    layers = next(lists, None)  # modules() lists outer modules first, so this is not a list of experts
    if layers is None:
        raise InputError(
            f"layers: no list of {total} layers found in {module.config.model_type}; use another checkpoint"
        )
    del layers[n:]
    config = module.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = n
    if kinds is not None:
        config.layer_types = list(kinds[:n])
    return LanguageModel(module, f"layers:{n}", rule=f"layers:{n}", parent=good)


def _share(module: nn.Module) -> Any:
    """Return a copy of the module tree over the same parameters and buffers."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


def _switch_on(attention: nn.Module, p: float) -> None:
    for name in _DROPOUT_ATTRIBUTES:
        value = getattr(attention, name, None)
        if isinstance(value, nn.Dropout):
            value.p, value.training = p, True
        elif isinstance(value, (int, float)):
            setattr(attention, name, p)
        else:
            continue
        attention.training = True  # for this module alone: dropout on its outputs stays off
        return


def _is_noisy(model: LanguageModel) -> bool:
    """Return whether two passes over eight tokens differ: an attribute of the right name may be unused."""
    ids = torch.arange(8, device=model.device).unsqueeze(0)  # [1, 8]
    with torch.inference_mode(), private_noise(model.device):
        first, second = (model.last_logits(ids, torch.ones_like(ids), ids, model.new_cache(8)) for _ in range(2))
    return not torch.equal(first, second)
