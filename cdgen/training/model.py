"""The model in training: how it is built, its loss without stored logits, its parameter groups, and its cost."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cdgen.errors import InputError
from cdgen.hardware import data_sheet
from cdgen.models.configs import load_config
from cdgen.models.load_errors import loading
from cdgen.models.vocabulary import vocabulary_size
from cdgen.training.config import PRESETS, TrainConfig, config_folder, preset_shape
from cdgen_kernels import linear_cross_entropy


def build(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build a model with fresh float32 weights, which `config.seed` determines.

    Raises:
        InputError: `config.model` is neither a preset nor a config; its vocabulary or context is too small; or its
            output layer does more than multiply with a matrix.
    """
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tokens = vocabulary_size(tokenizer)
    torch.manual_seed(config.seed)
    if config.model in PRESETS:
        shape = preset_shape(config) | {"vocab_size": tokens}
        return LlamaForCausalLM(LlamaConfig(**shape, **ids, tie_word_embeddings=False))
    found = load_config(config_folder(config.model))
    _check_sizes(config, found.get_text_config(), tokens)
    for name, token in ids.items():
        setattr(found, name, token)
    with loading(f"model = {config.model!r}"):
        lm = AutoModelForCausalLM.from_config(found, dtype=torch.float32, trust_remote_code=False)
        _check_output_layer(lm, config.model)
    return lm


def _check_sizes(config: TrainConfig, shape: PretrainedConfig, tokens: int) -> None:
    """Refuse a model whose vocabulary or context is too small, before its weights are made."""
    if shape.vocab_size < tokens:
        raise InputError(
            f"model = {config.model!r}: has a vocabulary of {shape.vocab_size}, but the tokenizer {config.tokenizer} "
            f"has {tokens} entries; set vocab_size in its config.json"
        )
    limit = getattr(shape, "max_position_embeddings", None)
    if limit and limit < config.block_size:
        raise InputError(
            f"block_size = {config.block_size}: the model {config.model} has {limit} positions; use smaller blocks"
        )


def _check_output_layer(lm: PreTrainedModel, name: str) -> None:
    """Refuse models that scale, cap or bias their logits, because :class:`SummedLoss` would be wrong for them."""
    ids = torch.arange(8).unsqueeze(0)  # [1, 8]
    lm.eval()
    with torch.no_grad():
        hidden = lm.base_model(input_ids=ids, use_cache=False).last_hidden_state  # [1, 8, D]
        same = torch.allclose(lm(input_ids=ids).logits, hidden @ lm.get_output_embeddings().weight.T, atol=1e-4)
    lm.train()
    if not same or getattr(lm.get_output_embeddings(), "bias", None) is not None:
        raise InputError(
            f"model = {name!r}: {lm.config.model_type} does more to its logits than a matrix product; use llama"
        )


class SummedLoss(nn.Module):
    """Cross entropy, summed over all tokens of a block except the first. Only a chunk of the logits exists at once."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the loss of int64 [B, T] blocks as a float32 scalar."""
        hidden = self.lm.base_model(input_ids=blocks, use_cache=False).last_hidden_state  # [B, T, D]
        weight = self.lm.get_output_embeddings().weight  # [V, D]
        return linear_cross_entropy(hidden[:, :-1], weight, blocks[:, 1:], reduction="sum")


def parameter_groups(lm: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: matrices decay, biases and norms do not, as in transformers' Trainer."""
    parameters = list(lm.parameters())
    return [
        {"params": [x for x in parameters if x.dim() >= 2], "weight_decay": weight_decay},
        {"params": [x for x in parameters if x.dim() < 2], "weight_decay": 0.0},
    ]


def use_liger(lm: PreTrainedModel) -> None:
    """Switch a Llama on a GPU to Liger's fused norms, rotary embedding and SwiGLU, if Liger is installed."""
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
    except ImportError:
        return
    if lm.config.model_type == "llama":
        apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False, model=lm)


def operations_per_token(lm: PreTrainedModel, block_size: int) -> int:
    """Return the floating-point operations per token of a training step.

    They are counted as in PaLM (Chowdhery et al., arXiv 2204.02311, appendix B): 6 N + 12 L D T, with N weights, L
    layers, width D and T = `block_size`. N leaves out an embedding that is only looked up, and attention is counted
    without its mask.
    """
    config = lm.config.get_text_config()
    embedding, output = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    weights: int = sum(x.numel() for x in lm.parameters()) - (0 if embedding is output else embedding.numel())
    layers, width = int(config.num_hidden_layers), int(config.hidden_size)
    return 6 * weights + 12 * layers * width * block_size


def peak_operations(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a device's peak FLOP/s in matrix products of `dtype`.

    A GPU's value is taken from its data sheet (16-bit products); None for unknown GPUs. A CPU's value is measured.
    """
    if device.type != "cpu":
        sheet = data_sheet(device)
        return sheet.matmul if sheet else None
    x = torch.ones(1024, 1024, dtype=dtype)
    seconds: list[float] = []
    while sum(seconds) < 0.5:  # the fastest of many is taken, since other processes may slow down some
        start = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds)
