"""Table entries of the ops that contain an output layer. Width 768 is that of the paper's GOOD."""

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.ops.op import BFLOAT16, Inputs, Op, Outputs
from cdgen.bench.logits import zipf_like
from cdgen.bench.rivals import ALPHA
from cdgen_kernels import SamplingTensors, cross_entropy, make_sampling_tensors, reference

WIDTH = 768
CAPACITY = 256  # length of the candidate lists
SPREAD = 4.0  # standard deviation of the logits; leaves about 10 candidates
CHUNK_ROWS = 768  # rows of logits per chunk that linear_cross_entropy uses by default at this width
TOKENS = 8192  # tokens per training step


def output_layer(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int, width: int = WIDTH
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (hidden [B, D], weight [V, D]) whose logits have standard deviation SPREAD."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(batch, width, device=device, generator=generator)
    weight = torch.randn(vocab_size, width, device=device, generator=generator).mul_(SPREAD / width**0.5)
    return hidden.to(dtype), weight.to(dtype)


# ------------------------------------------------------------------------- select_candidates_linear, gather_logits


def select_candidates_linear_inputs(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int, width: int = WIDTH
) -> Inputs:
    """Return (hidden [B, D], weight [V, D], sampling)."""
    hidden, weight = output_layer(batch, vocab_size, dtype, device, seed, width)
    return hidden, weight, make_sampling_tensors(batch, alpha=ALPHA, device=device)


def select_candidates_linear_reference(
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


def output_layer_bytes(hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> int:
    return hidden.nbytes + weight.nbytes


def output_layer_flops(hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> int:
    return 2 * hidden.shape[0] * weight.numel()


def gather_logits_inputs(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return (hidden [B, D], weight [V, D], token [B, C], count [B])."""
    hidden, weight = output_layer(batch, vocab_size, dtype, device, seed)
    margin = make_sampling_tensors(batch, alpha=ALPHA, device=device).margin
    generator = torch.Generator(device).manual_seed(seed)
    logits = zipf_like(batch, vocab_size, device, generator)
    candidates = reference.select_candidates(logits, margin, None, vocab_size, CAPACITY)
    return hidden, weight, candidates.token, candidates.count


def gather_logits_reference(
    hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor
) -> Outputs:
    return {"score": reference.gather_logits(hidden.double(), weight.double(), token, count)}


def gather_logits_fused(
    hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor
) -> Outputs:
    from cdgen_kernels.triton import linear as triton_linear

    return {"score": triton_linear.gather_logits(hidden, weight, token, count)}


def gather_logits_eager(
    hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    score = torch.einsum("bd,bcd->bc", hidden, weight[token.clamp(min=0).long()]).float()
    return torch.where(token < 0, -torch.inf, score)


def gather_logits_bytes(hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor) -> int:
    return hidden.nbytes + int(count.sum()) * (weight.shape[1] * weight.element_size() + 4 + 4)


# ---------------------------------------------------------------------------------------- linear_cross_entropy


def softmax_gradient_inputs(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return (logits [N, V], target [N])."""
    generator = torch.Generator(device).manual_seed(seed)
    logits = zipf_like(batch, vocab_size, device, generator).to(dtype)
    return logits, torch.randint(vocab_size, (batch,), device=device, generator=generator)


def softmax_gradient_reference(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    logits = logits.double()
    return {"loss": cross_entropy.softmax_gradient(logits, target, -100, True), "gradient": logits}


def softmax_gradient_fused(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    from cdgen_kernels.triton import cross_entropy as triton_cross_entropy

    return {"loss": triton_cross_entropy.softmax_gradient(logits, target, -100, True), "gradient": logits}


def softmax_gradient_eager(logits: torch.Tensor, target: torch.Tensor) -> Outputs:
    wide = logits.float()
    loss = functional.cross_entropy(wide, target, reduction="none")
    gradient = torch.softmax(wide, -1)
    gradient[torch.arange(len(target), device=target.device), target] -= 1
    return {"loss": loss, "gradient": gradient.to(logits.dtype)}


def cross_entropy_inputs(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return (hidden [N, D], weight [V, D], target [N])."""
    hidden, weight = output_layer(batch, vocab_size, dtype, device, seed)
    generator = torch.Generator(device).manual_seed(seed)
    target = torch.randint(vocab_size, (batch,), device=device, generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), target


def gradients(loss: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> Outputs:
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    return {"loss": loss.detach(), "grad_hidden": grad_hidden, "grad_weight": grad_weight}


def cross_entropy_reference(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    """Compute loss and gradients 1024 rows at a time: float64 logits of a whole step do not fit every GPU."""
    wide = hidden.detach().double(), weight.detach().double()
    matrix = wide[1].requires_grad_()
    total_loss, grad_hidden, grad_weight = wide[0].new_zeros(()), [], torch.zeros_like(matrix)
    for hidden_rows, target_rows in zip(wide[0].split(1024), target.split(1024), strict=True):
        hidden_rows.requires_grad_()
        loss = functional.cross_entropy(hidden_rows @ matrix.T, target_rows, reduction="sum") / len(target)
        part = gradients(loss, hidden_rows, matrix)
        total_loss += part["loss"]
        grad_hidden.append(part["grad_hidden"])
        grad_weight += part["grad_weight"]
    return {"loss": total_loss, "grad_hidden": torch.cat(grad_hidden), "grad_weight": grad_weight}


def cross_entropy_fused(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, chunk_rows: int | None = None
) -> Outputs:
    loss = cross_entropy.linear_cross_entropy(hidden, weight, target, chunk_rows=chunk_rows)
    return gradients(loss, hidden, weight)


def cross_entropy_eager(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    return gradients(functional.cross_entropy((hidden @ weight.T).float(), target), hidden, weight)


def cross_entropy_torch(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    return gradients(functional.linear_cross_entropy(hidden, weight, target), hidden, weight)


def cross_entropy_liger(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return gradients(LigerFusedLinearCrossEntropyLoss()(weight, hidden, target), hidden, weight)


def select_candidates_linear_op(name: str, width: int, **fields: Any) -> Op:
    return Op(
        name,
        partial(select_candidates_linear_inputs, width=width),
        select_candidates_linear_fused,
        select_candidates_linear_reference,
        select_candidates_linear_eager,
        streams=("weight_ptrs",),
        bytes=output_layer_bytes,
        flops=output_layer_flops,
        torch_floats=select_candidates_linear_floats,
        **fields,
    )


LINEAR_OPS = [
    select_candidates_linear_op("select_candidates_linear", WIDTH),
    select_candidates_linear_op("select_candidates_linear, width 4096", 4096, compiled=False),
    Op(
        "gather_logits",
        gather_logits_inputs,
        gather_logits_fused,
        gather_logits_reference,
        gather_logits_eager,
        streams=("weight_ptrs",),
        bytes=gather_logits_bytes,
        torch_floats=lambda outputs, *inputs: {"score": gather_logits_eager(*inputs)},
    ),
    Op(
        "softmax_gradient",
        softmax_gradient_inputs,
        softmax_gradient_fused,
        softmax_gradient_reference,
        softmax_gradient_eager,
        streams=("logits_ptr",),
        bytes=lambda logits, target: 2 * logits.nbytes,
        torch_floats=lambda outputs, *inputs: softmax_gradient_eager(*inputs),
        batches=(CHUNK_ROWS,),
    ),
    Op(
        "linear_cross_entropy",
        cross_entropy_inputs,
        cross_entropy_fused,
        cross_entropy_reference,
        cross_entropy_eager,
        streams=("logits_ptr",),
        bytes=lambda hidden, weight, target: 2 * (hidden.nbytes + weight.nbytes),
        flops=lambda hidden, weight, target: 3 * output_layer_flops(hidden, weight),
        torch_floats=lambda outputs, *inputs: cross_entropy_eager(*inputs),
        rivals={"torch fused": cross_entropy_torch, "Liger": cross_entropy_liger},
        dtypes=BFLOAT16,
        batches=(TOKENS,),
        compiled=False,
    ),
]
