"""A BAD made of GOOD itself: attention dropout, or fewer layers. Both share GOOD's weights."""

import copy

import torch
from torch import nn

from cdgen.errors import InputError
from cdgen.models.language_model import LanguageModel
from cdgen.rng import private_noise

# Where the architectures of transformers keep the probability of attention dropout: a number or an nn.Dropout. Only
# modules with "Attention" in their class name are looked at, since others use `dropout` for their outputs.
_DROPOUT_ATTRIBUTES = ("attention_dropout", "attn_dropout", "attn_dropout_p", "dropout")


def parse_bad(text):
    """Arguments of :class:`cdgen.ContrastiveLM` for a string: `dropout:0.3`, `layers:12`, or a path or name."""
    kind, _, value = text.partition(":")
    if kind not in ("dropout", "layers") or not value:
        return {"bad": text}
    try:
        return {kind: float(value) if kind == "dropout" else int(value)}
    except ValueError:
        raise InputError(f"--bad {text}: use dropout:0.3, layers:12, or a path or name") from None


def attention_dropout(good, p):
    """GOOD with attention dropout switched on while it decodes (Ulm et al. 2025, their dropout BAD).

    Args:
        good: :class:`LanguageModel`. p: probability to drop an attention weight, in (0, 1).
    Returns:
        LanguageModel over the very tensors of `good`.
    Raises:
        InputError: p out of range, or an architecture whose attention dropout is not found.
    """
    if not 0 < p < 1:
        raise InputError(f"dropout = {p}: must be between 0 and 1, as 0.3")
    module = _share(good.module)
    bad = LanguageModel(module, f"dropout:{p:g}", rule=f"dropout:{p:g}", parent=good, dropout=p)
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


def first_layers(good, n):
    """GOOD's first `n` layers under its final norm and output head.

    Args:
        good: :class:`LanguageModel`. n: layers to keep, fewer than GOOD has.
    Returns:
        LanguageModel over the very tensors of `good`.
    """
    total = good.num_layers
    if not 1 <= n < total:
        raise InputError(f"layers = {n}: must be 1 to {total - 1}; GOOD has {total} layers")
    module = _share(good.module)
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) == total)
    layers = next(lists, None)  # modules() goes from the outside in, so this is not a list of experts
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


def _share(module):
    """A second module tree over the same parameters and buffers."""
    memo = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


def _switch_on(attention, p):
    for name in _DROPOUT_ATTRIBUTES:
        value = getattr(attention, name, None)
        if isinstance(value, nn.Dropout):
            value.p, value.training = p, True
        elif isinstance(value, (int, float)):
            setattr(attention, name, p)
        else:
            continue
        attention.training = True  # of this module alone: dropout on its outputs stays off
        return


def _is_noisy(model):
    """Whether two passes over eight tokens differ: an attribute of the right name may yet be one that nobody reads."""
    ids = torch.arange(8, device=model.device).unsqueeze(0)  # [1, 8]
    with torch.inference_mode(), private_noise(model.device):
        first, second = (model.last_logits(ids, torch.ones_like(ids), ids, model.new_cache(8)) for _ in range(2))
    return not torch.equal(first, second)
