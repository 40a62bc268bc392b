"""The decode step as CUDA graphs: recorded for each of a few batch sizes, replayed without Python between kernels."""

import torch

from cdgen_kernels.ops import Rows


class StepGraphs:
    """Calls a step many times, by replaying it.

    Args:
        step: function (ids, position int64 [A], row int32 [A], rows) -> int64 [A], the tokens drawn, of device tensors
            alone. A row below 0 is nobody's.
        largest: batch size at most.
    """

    def __init__(self, step, largest):
        self._step, self._largest, self._graphs = step, largest, {}

    def __call__(self, ids, position, row, rows, count):
        """Tokens int64 [count, A] of `count` steps from the given one on."""
        size = min(self._largest, 1 << (len(ids) - 1).bit_length())  # powers of two: few graphs, and at most half idle
        with torch.cuda.device_of(ids):
            if size not in self._graphs:
                self._graphs[size] = _Graph(self._step, size, rows)
            return self._graphs[size](ids, position, row, rows, count)


class _Graph:
    def __init__(self, step, size, rows):
        device = rows.margin.device
        self.ids, self.position = torch.zeros(2, size, dtype=torch.long, device=device).unbind()
        self.row = torch.full((size,), -1, dtype=torch.int32, device=device)
        self.rows = Rows(*(x[:1].repeat(size) for x in rows))
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # kernels are compiled and libraries begin before anything is recorded
                step(self.ids, self.position, self.row, self.rows)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph):
            self.token = step(self.ids, self.position, self.row, self.rows)
            self.ids.copy_(self.token.clamp(min=0))  # a fault is no token to read
            self.position.add_(1)

    def __call__(self, ids, position, row, rows, count):
        live = len(ids)
        self.row.fill_(-1)
        self.position.zero_()  # of the idle rows too, which would walk out of the tables
        for own, given in (
            (self.ids, ids),
            (self.position, position),
            (self.row, row),
            *zip(self.rows, rows, strict=True),
        ):
            own[:live] = given
        drawn = []
        for _ in range(count):
            self.graph.replay()
            drawn.append(self.token[:live].clone())
        return torch.stack(drawn)
