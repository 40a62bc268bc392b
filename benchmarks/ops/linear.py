"""The ops with an output layer inside, as entries for the table and the benchmark. Width 768 is the paper's GOOD."""

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.ops.op import ALPHA, BFLOAT16, Inputs, Op, Outputs, zipf_like
from cdgen_kernels import cross_entropy, reference
from cdgen_kernels.sampling_tensors import SamplingTensors, make_sampling_tensors

WIDTH = 768
CAPACITY = 256  # of the candidate lists
SPREAD = 4.0  # standard deviation of the logits of random weights, which leaves a head of about 10
CHUNK_ROWS = 768  # of logits that linear_cross_entropy has at a time, by default, at this width
TOKENS = 8192  # of a training step


def layer(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int, width: int = WIDTH
) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden [B, D], weight [V, D]) whose products are spread as logits are."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(batch, width, device=device, generator=generator)
    weight = torch.randn(vocab_size, width, device=device, generator=generator).mul_(SPREAD / width**0.5)
    return hidden.to(dtype), weight.to(dtype)


# ------------------------------------------------------------------------- select_candidates_linear, gather_logits


def select_candidates_linear_inputs(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int, width: int = WIDTH
) -> Inputs:
    """(hidden [B, D], weight [V, D], rows)"""
    return *layer(batch, vocab_size, dtype, device, seed, width), make_sampling_tensors(
        batch, alpha=ALPHA, device=device
    )


def select_candidates_linear_plain(
    hidden: torch.Tensor, weight: torch.Tensor, sampling: SamplingTensors, banned: torch.Tensor | None = None
) -> Outputs:
    wide = hidden.double(), weight.double()
    return reference.select_candidates_linear(*wide, sampling.margin, banned, weight.shape[0], CAPACITY)._asdict()


def select_candidates_linear_fused(
    hidden: torch.Tensor, weight: torch.Tensor, sampling: SamplingTensors, banned: torch.Tensor | None = None
) -> Outputs:
    from cdgen_kernels.triton import linear as triton_linear

    return triton_linear.select_candidates_linear(
        hidden, weight, sampling.margin, banned, weight.shape[0], CAPACITY
    )._asdict()


def select_candidates_linear_eager(
    hidden: torch.Tensor, weight: torch.Tensor, sampling: SamplingTensors
) -> tuple[torch.Tensor, ...]:
    logit, token = (hidden @ weight.T).float().topk(CAPACITY)
    inside = logit >= logit[:, :1] - sampling.margin.unsqueeze(1)
    return torch.where(inside, token, -1), torch.where(inside, logit, -torch.inf), inside.sum(1), logit[:, 0]


def select_candidates_linear_floats(
    outputs: Outputs, hidden: torch.Tensor, weight: torch.Tensor, sampling: SamplingTensors
) -> Outputs:
    logits = (hidden @ weight.T).float()
    token = outputs["token"]
    logit = logits.gather(1, token.clamp(min=0).long())
    return {"logit": torch.where(token < 0, -torch.inf, logit), "max": logits.amax(1)}


def layer_once(hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> int:
    return hidden.nbytes + weight.nbytes


def layer_product(hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> int:
    return 2 * hidden.shape[0] * weight.numel()


def gathered_inputs(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """(hidden [B, D], weight [V, D], tokens [B, C], how many of them count [B])"""
    hidden, weight = layer(batch, vocab_size, dtype, device, seed)
    margin = make_sampling_tensors(batch, alpha=ALPHA, device=device).margin
    generator = torch.Generator(device).manual_seed(seed)
    logits = zipf_like(batch, vocab_size, device, generator)
    candidates = reference.select_candidates(logits, margin, None, vocab_size, CAPACITY)
    return hidden, weight, candidates.token, candidates.count


def gathered_plain(hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor) -> Outputs:
    return {"score": reference.gather_logits(hidden.double(), weight.double(), token, count)}


def gathered_fused(hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor) -> Outputs:
    from cdgen_kernels.triton import linear as triton_linear

    return {"score": triton_linear.gather_logits(hidden, weight, token, count)}


def gathered_eager(
    hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    score = torch.einsum("bd,bcd->bc", hidden, weight[token.clamp(min=0).long()]).float()
    return torch.where(token < 0, -torch.inf, score)


def gathered_once(hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor) -> int:
    return hidden.nbytes + int(count.sum()) * (weight.shape[1] * weight.element_size() + 4 + 4)


# ---------------------------------------------------------------------------------------- linear_cross_entropy


def chunk_inputs(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """(logits [N, V], target [N])"""
    generator = torch.Generator(device).manual_seed(seed)
    logits = zipf_like(batch, vocab_size, device, generator).to(dtype)
    return logits, torch.randint(vocab_size, (batch,), device=device, generator=generator)


def chunk_plain(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    logits = logits.double()
    return {"loss": cross_entropy.softmax_gradient(logits, target, -100, True), "gradient": logits}


def chunk_fused(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    from cdgen_kernels.triton import cross_entropy as triton_cross_entropy

    return {"loss": triton_cross_entropy.softmax_gradient(logits, target, -100, True), "gradient": logits}


def chunk_eager(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    wide = logits.float()
    loss = functional.cross_entropy(wide, target, reduction="none")
    gradient = torch.softmax(wide, -1)
    gradient[torch.arange(len(target), device=target.device), target] -= 1
    return {"loss": loss, "gradient": gradient.to(logits.dtype)}


def training_inputs(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """(hidden [N, D], weight [V, D], target [N])"""
    hidden, weight = layer(batch, vocab_size, dtype, device, seed)
    generator = torch.Generator(device).manual_seed(seed)
    target = torch.randint(vocab_size, (batch,), device=device, generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), target


def gradients(loss: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> Outputs:
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    return {"loss": loss.detach(), "grad_hidden": grad_hidden, "grad_weight": grad_weight}


def training_plain(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    """A thousand rows at a time: float64 logits of a whole step do not fit every GPU."""
    wide = hidden.detach().double(), weight.detach().double()
    total = {"loss": 0, "grad_hidden": [], "grad_weight": 0}
    for rows, wanted in zip(wide[0].split(1024), target.split(1024), strict=True):
        rows, matrix = rows.requires_grad_(), wide[1].requires_grad_()
        part = gradients(functional.cross_entropy(rows @ matrix.T, wanted, reduction="sum") / len(target), rows, matrix)
        total["loss"] += part["loss"]
        total["grad_hidden"].append(part["grad_hidden"])
        total["grad_weight"] += part["grad_weight"]
    return total | {"grad_hidden": torch.cat(total["grad_hidden"])}


def training_fused(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, chunk_rows: int | None = None
) -> Outputs:
    loss = cross_entropy.linear_cross_entropy(hidden, weight, target, chunk_rows=chunk_rows)
    return gradients(loss, hidden, weight)


def training_eager(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    return gradients(functional.cross_entropy((hidden @ weight.T).float(), target), hidden, weight)


def training_torch(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    return gradients(functional.linear_cross_entropy(hidden, weight, target), hidden, weight)


def training_liger(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return gradients(LigerFusedLinearCrossEntropyLoss()(weight, hidden, target), hidden, weight)


def select_candidates_linear_op(name: str, width: int, **other: Any) -> Op:
    return Op(
        name,
        partial(select_candidates_linear_inputs, width=width),
        select_candidates_linear_fused,
        select_candidates_linear_plain,
        select_candidates_linear_eager,
        streams=("right", "rows"),
        bytes=layer_once,
        flops=layer_product,
        torch_floats=select_candidates_linear_floats,
        **other,
    )


LINEAR_OPS = [
    select_candidates_linear_op("select_candidates_linear", WIDTH),
    select_candidates_linear_op("select_candidates_linear, width 4096", 4096, compiled=False),
    Op(
        "gather_logits",
        gathered_inputs,
        gathered_fused,
        gathered_plain,
        gathered_eager,
        streams=("right", "rows"),
        bytes=gathered_once,
        torch_floats=lambda outputs, *inputs: {"score": gathered_eager(*inputs)},
    ),
    Op(
        "softmax_gradient",
        chunk_inputs,
        chunk_fused,
        chunk_plain,
        chunk_eager,
        streams=("logits",),
        bytes=lambda logits, target: 2 * logits.nbytes,
        torch_floats=lambda outputs, *inputs: chunk_eager(*inputs),
        batches=(CHUNK_ROWS,),
    ),
    Op(
        "linear_cross_entropy",
        training_inputs,
        training_fused,
        training_plain,
        training_eager,
        streams=("logits",),
        bytes=lambda hidden, weight, target: 2 * (hidden.nbytes + weight.nbytes),
        flops=lambda hidden, weight, target: 3 * layer_product(hidden, weight),
        torch_floats=lambda outputs, *inputs: training_eager(*inputs),
        rivals={"torch fused": training_torch, "Liger": training_liger},
        dtypes=BFLOAT16,
        batches=(TOKENS,),
        compiled=False,
    ),
]
