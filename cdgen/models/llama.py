"""A lean runner for models of the Llama family: tokens of any texts in, last hidden states out, on a paged cache.

Matrix products are torch's; what lies between them is :mod:`cdgen_kernels.layers`. Weights are the transformers
module's own: those that one product can serve are laid side by side once, and the module keeps views of them.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from cdgen_kernels.layers import FLOATS, add_rms_norm, paged_attention, rope_and_store

_FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # angles that do not change as a text grows


@dataclass
class _Layer:
    """Weights of one decoder layer; a product is (weight, bias or None)."""

    input_norm: torch.Tensor
    qkv: tuple
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: tuple
    mlp_norm: torch.Tensor
    gate_up: tuple
    down: tuple
    window: int  # keys a token sees; 0: all


def unsupported(module):
    """Why :class:`LlamaRunner` cannot run a transformers model, in a few words, or None if it can."""
    config = module.config
    if type(module).__name__ not in _FAMILY:
        return f"{config.model_type} is not of the Llama family"
    rope = module.model.rotary_emb
    if rope.rope_type not in _FIXED_ROPE:
        return f"its rotary embedding is of type {rope.rope_type}"
    head_dim = module.model.layers[0].self_attn.head_dim
    if 2 * len(rope.inv_freq) != head_dim:
        return "its rotary embedding turns only a part of each head"
    products = [part for name, part in module.named_modules() if name.endswith(("_proj", "lm_head"))]
    if any(type(part) is not nn.Linear for part in products) or module.lm_head.bias is not None:
        return "its linear layers are not plain"
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if len(dtypes) > 1 or not dtypes <= set(FLOATS):
        return f"its weights are {', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in dtypes))}"
    return None


class LlamaRunner:
    """Runs the decoder of a transformers Llama, Mistral, Qwen2 or Qwen3 (see :func:`unsupported`).

    Args:
        module: the model; its weights are not copied, but fused where they lie.
        max_length: positions that will be asked for.
        dropout: probability to drop an attention weight, always on (see :func:`cdgen_kernels.layers.paged_attention`).
    Attributes:
        output_weight: [V', D], the output layer.
    """

    def __init__(self, module, max_length, dropout=0.0):
        self.config, self.dropout = module.config, dropout
        self.output_weight = module.lm_head.weight.data
        self.embedding = module.model.embed_tokens.weight.data
        self.norm, self.eps = module.model.norm.weight.data, module.model.norm.variance_epsilon
        attention = module.model.layers[0].self_attn
        self.head_dim, self.scale = attention.head_dim, attention.scaling
        self.num_heads, self.num_kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        self.activation = module.model.layers[0].mlp.act_fn
        self.layers = [_layer(part, self.config) for part in module.model.layers]
        rope = module.model.rotary_emb
        angle = torch.arange(max_length, device=module.device).float()[:, None] * rope.inv_freq.float()
        self.cos, self.sin = angle.cos() * rope.attention_scaling, angle.sin() * rope.attention_scaling  # [P, d / 2]

    def hidden_states(self, ids, position, cache_row, slots, page_table, keys, values, seed, sequence, last=None):
        """Run N tokens, of any texts, and write them to the cache. All tokens of a text before them are there already,
        or among them.

        Args:
            ids, position: int64 [N].
            cache_row: int32 [N], each token's row of the page table; below 0 if the token is unused.
            slots: int64 [N], flat cache positions to write to, from :func:`slot_mapping`.
            page_table: int32 [S, M]. keys, values: [layers, pages, K, page_size, d].
            seed: int64 [1] and sequence: int64 [N], which dropout is drawn from.
            last: int64 [L], the tokens whose state is wanted; default all.
        Returns:
            [N or L, D], normed: what the output layer takes.
        """
        sizes = [heads * self.head_dim for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        delta, total = embedding(ids, self.embedding), None  # [N, D]
        for at, (layer, *store) in enumerate(zip(self.layers, keys.unbind(), values.unbind(), strict=True)):
            normed, total = add_rms_norm(delta, total, layer.input_norm, self.eps)
            q, k, v = (x.unflatten(1, (-1, self.head_dim)) for x in linear(normed, *layer.qkv).split(sizes, 1))
            if layer.q_norm is not None:
                q, k = self._head_norm(q, layer.q_norm), self._head_norm(k, layer.k_norm)
            q = rope_and_store(q, k, v, self.cos, self.sin, position, slots, *store)
            options = {"scale": self.scale, "window": layer.window, "dropout": self.dropout, "layer": at}
            noise = {"seed": seed, "sequence": sequence} if self.dropout else {}
            mixed = paged_attention(q, *store, page_table, cache_row, position, **options, **noise)
            normed, total = add_rms_norm(linear(mixed.flatten(1), *layer.out), total, layer.mlp_norm, self.eps)
            gate, up = linear(normed, *layer.gate_up).chunk(2, 1)
            delta = linear(self.activation(gate) * up, *layer.down)
        if last is not None:
            delta, total = delta[last], total[last]
        return add_rms_norm(delta, total, self.norm, self.eps)[0]

    def _head_norm(self, x, weight):
        return add_rms_norm(x.flatten(0, 1), None, weight, self.eps)[0].view(x.shape)


def slot_mapping(page_table, cache_row, position, page_size):
    """int64 [N]: where each token is written, -1 where it is nobody's or has no page."""
    page = page_table.take(cache_row.clamp(min=0) * page_table.shape[1] + position // page_size)
    return torch.where((cache_row >= 0) & (page >= 0), page * page_size + position % page_size, -1)


def _layer(part, config):
    attention, mlp = part.self_attn, part.mlp
    window = getattr(attention, "sliding_window", None)
    if config.model_type == "mistral":  # which keeps it in its config alone
        window = config.sliding_window
    return _Layer(
        input_norm=part.input_layernorm.weight.data,
        qkv=_fused(attention.q_proj, attention.k_proj, attention.v_proj),
        q_norm=attention.q_norm.weight.data if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight.data if hasattr(attention, "k_norm") else None,
        out=_fused(attention.o_proj),
        mlp_norm=part.post_attention_layernorm.weight.data,
        gate_up=_fused(mlp.gate_proj, mlp.up_proj),
        down=_fused(mlp.down_proj),
        window=window or 0,
    )


def _fused(*products):
    """(weight, bias or None) of one product that does the work of several on the same input."""
    weight = _side_by_side([part.weight for part in products])
    return weight, None if products[0].bias is None else _side_by_side([part.bias for part in products])


def _side_by_side(parameters):
    """One tensor of all rows, of which the parameters become views; nothing moves where they lie so already."""
    first = parameters[0].data
    rows, end = 0, first.data_ptr()
    for parameter in parameters:
        if not parameter.is_contiguous() or parameter.data_ptr() != end:
            break
        rows, end = rows + len(parameter), end + parameter.nbytes
    else:
        if end - first.data_ptr() <= first.untyped_storage().nbytes() - first.storage_offset() * first.itemsize:
            return first.as_strided((rows, *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, view in zip(parameters, whole.split([len(x) for x in parameters]), strict=True):
        parameter.data = view
    return whole
