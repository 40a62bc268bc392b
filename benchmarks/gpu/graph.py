"""Check the public ops in CUDA graphs: one op alone, and the chain of ops of a decode step."""

from collections.abc import Callable

import torch

from benchmarks.gpu.check import Checked
from benchmarks.ops import layers as layer_ops
from benchmarks.ops.linear import output_layer
from benchmarks.ops.sampling import sampling_inputs
from cdgen_kernels import (
    SamplingTensors,
    add_rms_norm,
    codes,
    contrastive_sample,
    gather_logits,
    make_sampling_tensors,
    paged_attention,
    reference,
    rope_and_store,
    sample_candidates,
    select_candidates_linear,
)

REPLAYS = 8
HEADS, HEAD_DIM = 12, layer_ops.HEAD_DIM
WIDTH = HEADS * HEAD_DIM

Step = Callable[[], torch.Tensor]


def capture(step: Step, device: torch.device) -> Step:
    """Return a function that replays `step` from a CUDA graph and returns its result; on the CPU, return `step`."""
    if device.type == "cpu":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles the kernels, which is impossible during a capture
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return result.clone()

    return replay


def check_sample(device: torch.device) -> Checked:
    """Check that replays at different positions draw the reference's tokens."""
    batch, vocab_size = (3, 500) if device.type == "cpu" else (128, 32_000)
    good, bad, sampling = sampling_inputs()(batch, vocab_size, torch.bfloat16, device, 0)
    replay = capture(lambda: contrastive_sample(good, bad, sampling).token, device)
    checked, seen = Checked("contrastive_sample in a CUDA graph"), []
    for position in range(REPLAYS):
        sampling.position.fill_(position)
        seen.append(replay())
        expected = reference.contrastive_sample(good, bad, sampling, None, vocab_size, codes.MASK, 0.0, False).token
        checked.rows += batch
        checked.mismatches += int((seen[-1] != expected).sum())
    if all(x.equal(seen[0]) for x in seen):  # the position was captured as a constant
        checked.mismatches = checked.rows
    return checked


def check_chain(device: torch.device) -> Checked:
    """Check that replays of a decode step draw the same tokens at every position as the same ops without a graph."""
    batch, vocab_size, length = (3, 500, 40) if device.type == "cpu" else (128, 32_000, 220)
    step, sampling, position = decode_step(batch, vocab_size, length, device)
    checked = Checked("the ops of a decode step in a CUDA graph")
    replay = capture(step, device)

    def tokens(call: Step) -> list[torch.Tensor]:
        drawn = []
        for index in range(length - REPLAYS, length):
            position.fill_(index)
            sampling.position.fill_(index + 1)
            drawn.append(call())
        return drawn

    for eager, replayed in zip(tokens(step), tokens(replay), strict=True):
        checked.rows += batch
        checked.mismatches += int((eager != replayed).sum()) + int((eager < 0).sum())
    return checked


def decode_step(
    batch: int, vocab_size: int, length: int, device: torch.device
) -> tuple[Step, SamplingTensors, torch.Tensor]:
    """Return (step, sampling, position).

    `step` computes one layer of two models and draws tokens. Its inputs are the same at every position.
    """
    dtype = torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)
    x, residual, weight = layer_ops.norm_inputs(batch, WIDTH, dtype, device, 0)
    project = layer_ops.random_tensor(generator, dtype, 3 * WIDTH, WIDTH) / WIDTH**0.5
    inputs = layer_ops.cache_inputs(batch, length, dtype, device, 0, HEADS, HEADS, HEAD_DIM)
    keys, values, table, cache_row, position = inputs[1:6]
    angle = torch.rand(length, HEAD_DIM // 2, generator=generator, device=device) * 6
    cos, sin = angle.cos(), angle.sin()
    outputs = [output_layer(1, vocab_size, dtype, device, seed)[1] for seed in range(2)]
    sampling = make_sampling_tensors(batch, alpha=0.1, seed=3, device=device)

    def step() -> torch.Tensor:
        normed, total = add_rms_norm(x, residual, weight, layer_ops.EPS)
        q, k, v = (normed @ project.T).view(batch, 3, HEADS, HEAD_DIM).unbind(1)
        q = rope_and_store(q, k, v, cos, sin, table, cache_row, position, keys, values)
        mixed = paged_attention(q, keys, values, table, cache_row, position, scale=HEAD_DIM**-0.5)
        hidden = add_rms_norm(mixed.flatten(1), total, weight, layer_ops.EPS)[0]
        candidates = select_candidates_linear(hidden, outputs[0], sampling, capacity=256)
        scores = gather_logits(hidden, outputs[1], candidates)
        return sample_candidates(candidates, scores, sampling, gathered=True, vocab_size=vocab_size).token

    return step, sampling, position


CHECKS = {"contrastive_sample in a graph": check_sample, "ops of a decode step in a graph": check_chain}
