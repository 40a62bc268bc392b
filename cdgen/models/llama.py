"""A runner for models of the Llama family on a paged cache: from the tokens of any sequences to last hidden states.

Matrix products are torch's; everything between them is from :mod:`cdgen_kernels.layers`. The weights are those of the
transformers module. Weights that are multiplied with the same input are made adjacent once, and the module keeps views
of them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from cdgen_kernels import add_rms_norm, paged_attention, rope_and_store
from cdgen_kernels.checks import FLOAT_DTYPES

_FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # angles that do not change as a sequence grows


class _Product(NamedTuple):
    """The parameters of a linear layer, or of several that share their input."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass
class _Layer:
    """The weights of one decoder layer."""

    input_norm: torch.Tensor
    qkv: _Product
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: _Product
    mlp_norm: torch.Tensor
    gate_up: _Product
    down: _Product
    window: int  # number of keys that a token sees; 0: all


def unsupported(module: Any) -> str | None:
    """Return why :class:`LlamaRunner` cannot run a transformers model, or None if it can."""
    config = module.config
    if type(module).__name__ not in _FAMILY:
        return f"{config.model_type} is not of the Llama family"
    rope = module.model.rotary_emb
    if rope.rope_type not in _FIXED_ROPE:
        return f"its rotary embedding is of type {rope.rope_type}"
    head_dim = module.model.layers[0].self_attn.head_dim
    if 2 * len(rope.inv_freq) != head_dim:
        return "its rotary embedding rotates only a part of each head"
    products = [part for name, part in module.named_modules() if name.endswith(("_proj", "lm_head"))]
    if any(type(part) is not nn.Linear for part in products) or module.lm_head.bias is not None:
        return "its linear layers are not plain"
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if len(dtypes) > 1 or not dtypes <= set(FLOAT_DTYPES):
        return f"its weights are {', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in dtypes))}"
    return None


class LlamaRunner:
    """Runs the decoder of a transformers Llama, Mistral, Qwen2 or Qwen3 (see :func:`unsupported`).

    Args:
        module: the model. Its parameters become views of fused tensors.
        max_length: number of positions.
        dropout: probability of dropping an attention weight, always on (see
            :func:`cdgen_kernels.layers.paged_attention`).
    Attributes:
        output_weight: [V', D], the output layer.
    """

    def __init__(self, module: Any, max_length: int, dropout: float = 0.0) -> None:
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

    def hidden_states(
        self,
        ids: torch.Tensor,
        position: torch.Tensor,
        cache_row: torch.Tensor,
        slots: torch.Tensor,
        page_table: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        seed: torch.Tensor | None,
        sequence: torch.Tensor | None,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run N tokens of any sequences and write their keys and values to the cache.

        All earlier tokens of each sequence must be in the cache already or among the N.

        Args:
            ids: int64 [N].
            position: int64 [N], positions in their sequences.
            cache_row: int32 [N], each token's row of the page table; below 0 if the token is unused.
            slots: int64 [N], flat cache positions to write to, from :func:`slot_mapping`.
            page_table: int32 [S, M].
            keys, values: [layers, pages, K, page_size, d].
            seed: int64 [1], key of the dropout mask.
            sequence: int64 [N], sequence numbers for the dropout mask.
            last: int64 [L], the tokens whose states are returned; default: all.
        Returns:
            [N or L, D], the input of the output layer, after the final norm.
        """
        sizes = [heads * self.head_dim for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        delta = embedding(ids, self.embedding)  # [N, D]
        total: torch.Tensor | None = None  # [N, D], the residual stream without `delta`
        stores = zip(self.layers, keys.unbind(), values.unbind(), strict=True)
        for at, (layer, layer_keys, layer_values) in enumerate(stores):
            normed, total = add_rms_norm(delta, total, layer.input_norm, self.eps)
            q, k, v = (x.unflatten(1, (-1, self.head_dim)) for x in linear(normed, *layer.qkv).split(sizes, 1))
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = self._head_norm(q, layer.q_norm), self._head_norm(k, layer.k_norm)
            q = rope_and_store(q, k, v, self.cos, self.sin, position, slots, layer_keys, layer_values)
            mixed = paged_attention(
                q,
                layer_keys,
                layer_values,
                page_table,
                cache_row,
                position,
                scale=self.scale,
                window=layer.window,
                dropout=self.dropout,
                seed=seed if self.dropout else None,
                sequence=sequence if self.dropout else None,
                layer=at,
            )
            normed, total = add_rms_norm(linear(mixed.flatten(1), *layer.out), total, layer.mlp_norm, self.eps)
            gate, up = linear(normed, *layer.gate_up).chunk(2, 1)
            delta = linear(self.activation(gate) * up, *layer.down)
        if last is not None:
            delta, total = delta[last], None if total is None else total[last]
        return add_rms_norm(delta, total, self.norm, self.eps)[0]

    def _head_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return add_rms_norm(x.flatten(0, 1), None, weight, self.eps)[0].view(x.shape)


def slot_mapping(
    page_table: torch.Tensor, cache_row: torch.Tensor, position: torch.Tensor, page_size: int
) -> torch.Tensor:
    """Return the flat cache position of each token, int64 [N]; -1 if the token is unused or has no page.

    Args:
        page_table: int32 [S, M].
        cache_row: int32 [N], rows of the page table; below 0 for unused tokens.
        position: int64 [N], positions in the sequences.
        page_size: tokens per page.
    """
    page = page_table.take(cache_row.clamp(min=0) * page_table.shape[1] + position // page_size)
    return torch.where((cache_row >= 0) & (page >= 0), page * page_size + position % page_size, -1)


def _layer(part: Any, config: Any) -> _Layer:
    attention, mlp = part.self_attn, part.mlp
    window = getattr(attention, "sliding_window", None)
    if config.model_type == "mistral":  # its attention modules have no such attribute
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


def _fused(*layers: nn.Linear) -> _Product:
    """Return one product that computes several linear layers on the same input."""
    weight = _adjacent([layer.weight for layer in layers])
    return _Product(weight, None if layers[0].bias is None else _adjacent([layer.bias for layer in layers]))


def _adjacent(parameters: list[torch.Tensor]) -> torch.Tensor:
    """Return one tensor of all rows and make the parameters views of it; nothing is copied if they are adjacent."""
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
