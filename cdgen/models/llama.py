"""A runner for models of the Llama family on a paged cache: from the tokens of any sequences to last hidden states.

Everything between its matrix products is from :mod:`cdgen_kernels.layers`. The weights are those of the transformers
module; :mod:`cdgen.models.products` multiplies with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding

from cdgen.models.layer_cache import LayerCache
from cdgen.models.products import Product
from cdgen_kernels import add_rms_norm, paged_attention, rope_and_store, silu_mul
from cdgen_kernels.checks import FLOAT_DTYPES

_FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # angles that do not change as a sequence grows


@dataclass
class _Layer:
    """The weights of one decoder layer."""

    input_norm: torch.Tensor
    qkv: Product
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: Product
    mlp_norm: torch.Tensor
    gate_up: Product
    down: Product
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
        module: the model. On a GPU, its parameters become views of fused tensors.
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
        self._activation = module.model.layers[0].mlp.act_fn
        self._output = Product(module.lm_head)
        self.layers = [_layer(part, self.config) for part in module.model.layers]
        rope = module.model.rotary_emb
        angle = torch.arange(max_length, device=module.device).float()[:, None] * rope.inv_freq.float()
        self.cos, self.sin = angle.cos() * rope.attention_scaling, angle.sin() * rope.attention_scaling  # [P, d / 2]

    def hidden_states(
        self,
        ids: torch.Tensor,
        position: torch.Tensor,
        cache_row: torch.Tensor,
        page_table: torch.Tensor,
        caches: Sequence[LayerCache],
        seed: torch.Tensor | None,
        sequence: torch.Tensor | None,
        prefill: bool = False,
        shared_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run N tokens of any sequences and write their keys and values to the cache.

        All earlier tokens of each sequence must be in the cache already or among the N.

        Args:
            ids: int64 [N].
            position: int64 [N], positions in their sequences.
            cache_row: int32 [N], each token's row of the page table; below 0 if the token is unused.
            page_table: int32 [S, M], the pages of each sequence.
            caches: the pages of each layer.
            seed: int64 [1], key of the dropout mask.
            sequence: int64 [N], sequence numbers for the dropout mask.
            prefill: whether the tokens are those of prompts; see :func:`cdgen_kernels.layers.paged_attention`.
            shared_lengths: int32 [S], tokens in pages that sequences share; see
                :func:`cdgen_kernels.layers.paged_attention`.
        Returns:
            [N, D], the input of the output layer, after the final norm.
        """
        heads = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        delta = embedding(ids, self.embedding)  # [N, D]
        total: torch.Tensor | None = None  # [N, D], the residual stream without `delta`
        for at, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            normed, total = add_rms_norm(delta, total, layer.input_norm, self.eps)
            q, k, v = layer.qkv(normed).view(len(ids), -1, self.head_dim).split_with_sizes(heads, 1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = self._head_norm(q, layer.q_norm), self._head_norm(k, layer.k_norm)
            q = rope_and_store(q, k, v, self.cos, self.sin, page_table, cache_row, position, *cache)
            mixed = paged_attention(
                q,
                cache.keys,
                cache.values,
                page_table,
                cache_row,
                position,
                scale=self.scale,
                window=layer.window,
                dropout=self.dropout,
                seed=seed if self.dropout else None,
                sequence=sequence if self.dropout else None,
                layer=at,
                prefill=prefill,
                shared_lengths=shared_lengths,
                key_scales=cache.key_scales,
                value_scales=cache.value_scales,
            )
            normed, total = add_rms_norm(layer.out(mixed.flatten(1)), total, layer.mlp_norm, self.eps)
            delta = layer.down(self._gated(layer.gate_up(normed)))
        return add_rms_norm(delta, total, self.norm, self.eps)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, V'] of hidden states [N, D] that :meth:`hidden_states` returned."""
        return self._output(hidden)

    def refresh(self) -> None:
        """Use the new values of parameters that were changed in place."""
        for layer in self.layers:
            for product in (layer.qkv, layer.out, layer.gate_up, layer.down):
                product.refresh()
        self._output.refresh()

    def _gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return activation(gate) * up, [N, F], for gate and up [N, 2 F]."""
        if self.config.hidden_act == "silu":
            return silu_mul(gate_up)
        gate, up = gate_up.chunk(2, 1)
        return self._activation(gate) * up

    def _head_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return add_rms_norm(x.flatten(0, 1), None, weight, self.eps)[0].view(x.shape)


def _layer(part: Any, config: Any) -> _Layer:
    attention, mlp = part.self_attn, part.mlp
    window = getattr(attention, "sliding_window", None)
    if config.model_type == "mistral":  # its attention modules have no such attribute
        window = config.sliding_window
    return _Layer(
        input_norm=part.input_layernorm.weight.data,
        qkv=Product(attention.q_proj, attention.k_proj, attention.v_proj),
        q_norm=attention.q_norm.weight.data if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight.data if hasattr(attention, "k_norm") else None,
        out=Product(attention.o_proj),
        mlp_norm=part.post_attention_layernorm.weight.data,
        gate_up=Product(mlp.gate_proj, mlp.up_proj),
        down=Product(mlp.down_proj),
        window=window or 0,
    )
