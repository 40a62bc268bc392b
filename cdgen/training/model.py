"""The model in training: built from a preset or a config, its loss without logits, what decays, what a token costs."""

import time
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cdgen.errors import InputError
from cdgen.hardware import data_sheet
from cdgen.models.quiet import quiet_transformers
from cdgen.training.config import PRESETS
from cdgen_kernels.cross_entropy import linear_cross_entropy

CONTEXT = 2048  # positions of the paper's models


def build(config, tokenizer):
    """A model with fresh weights, in float32, ready to train.

    Args:
        config: :class:`~cdgen.training.config.TrainConfig`; its seed decides the weights. tokenizer: of transformers.
    Raises:
        InputError: no such preset or config; a vocabulary or context that is too small; an output layer that is more
            than a product with a matrix.
    """
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(config.seed)
    with quiet_transformers():
        if config.model in PRESETS:
            positions = max(CONTEXT, config.block_size)
            shape = PRESETS[config.model] | {"vocab_size": len(tokenizer), "max_position_embeddings": positions}
            return LlamaForCausalLM(LlamaConfig(**shape, **ids, tie_word_embeddings=False))
        if not Path(config.model).expanduser().exists():
            raise InputError(f"model = {config.model!r}: use {', '.join(PRESETS)}, or a folder with a config.json")
        try:
            found = AutoConfig.from_pretrained(Path(config.model).expanduser(), **ids)
            lm = AutoModelForCausalLM.from_config(found, dtype=torch.float32)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"model = {config.model!r}: {str(error).strip().splitlines()[0]}") from error
    text = found.get_text_config()
    if text.vocab_size < len(tokenizer):
        raise InputError(
            f"model = {config.model!r}: has a vocabulary of {text.vocab_size}, but the tokenizer {config.tokenizer} "
            f"has {len(tokenizer)} entries; set vocab_size in its config.json"
        )
    positions = getattr(text, "max_position_embeddings", None)
    if positions and positions < config.block_size:
        raise InputError(f"block_size = {config.block_size}: the model {config.model} has {positions} positions")
    _check_output_layer(lm, config.model)
    return lm


def _check_output_layer(lm, name):
    """Some families scale or bend their logits, or add a bias; their loss is not :class:`SummedLoss`."""
    ids = torch.arange(8).unsqueeze(0)  # [1, 8]
    lm.eval()
    with torch.no_grad():
        hidden = lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
        same = torch.allclose(lm(input_ids=ids).logits, hidden @ lm.get_output_embeddings().weight.T, atol=1e-4)
    lm.train()
    if not same or getattr(lm.get_output_embeddings(), "bias", None) is not None:
        raise InputError(f"model = {name!r}: {lm.config.model_type} does more to its logits than a product; use llama")


class SummedLoss(nn.Module):
    """Cross entropy of every token of a block but the first, added up, with only a chunk of the logits in memory."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def forward(self, blocks):
        """float32 scalar of int64 [B, T] blocks."""
        hidden = self.lm.base_model(input_ids=blocks, use_cache=False).last_hidden_state  # [B, T, D]
        weight = self.lm.get_output_embeddings().weight
        return linear_cross_entropy(hidden[:, :-1], weight, blocks[:, 1:], reduction="sum")


def parameter_groups(lm, weight_decay):
    """AdamW's groups: matrices decay, biases and norms do not, as in transformers' Trainer."""
    parameters = list(lm.parameters())
    return [
        {"params": [x for x in parameters if x.dim() >= 2], "weight_decay": weight_decay},
        {"params": [x for x in parameters if x.dim() < 2], "weight_decay": 0.0},
    ]


def use_liger(lm):
    """Liger's fused norms, rotary embedding and SwiGLU, where Liger is installed; it has Triton kernels alone."""
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
    except ImportError:
        return
    if lm.config.model_type == "llama":
        apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False, model=lm)


def operations_per_token(lm, block_size):
    """Floating-point operations of a training step per token: 6 a weight that multiplies, 12 D T a layer for attention.

    As Chowdhery et al. (PaLM, arXiv 2204.02311, appendix B) count: an embedding that is only looked up does not
    multiply, and attention is counted without its mask.
    """
    config = lm.config.get_text_config()
    embedding, output = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    weights = sum(x.numel() for x in lm.parameters()) - (0 if embedding is output else embedding.numel())
    return 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * block_size


def peak_operations(device, dtype):
    """Operations a second of a device's matrix products: data sheet of a GPU, measured on a CPU; None: not known."""
    if device.type != "cpu":
        sheet = data_sheet(device)
        return sheet and sheet.matmul
    x, seconds = torch.ones(1024, 1024, dtype=dtype), []
    while sum(seconds) < 0.5:  # on a shared machine the best of many, else the model's share exceeds 100 %
        start = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds)
