"""Small Triton kernels on which the PTX interpreter is tested. Together they use the features of a kernel library."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

# ---- one program, elementwise functions


@triton.jit
def arithmetic(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    r = a * b + a - b / 3.0
    tl.store(out + i, tl.where(a > b, tl.clamp(r, -1.0, 2.0), tl.maximum(r, tl.minimum(a, b))))


@triton.jit
def exponentials(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    positive = tl.abs(a) + 0.001
    tl.store(out + i, tl.exp(a) + tl.exp2(a))
    tl.store(out + N + i, tl.log(positive) + tl.log2(positive))
    tl.store(out + 2 * N + i, tl.sqrt(positive) + tl.rsqrt(positive))
    tl.store(out + 3 * N + i, tl.sigmoid(a))
    tl.store(out + 4 * N + i, tl.sin(a) + tl.cos(a))
    tl.store(out + 5 * N + i, tl.erf(a))
    tl.store(out + 6 * N + i, tl.floor(a * 4) + tl.ceil(a * 3))
    tl.store(out + 7 * N + i, libdevice.tanh(a) + libdevice.log1p(positive))


@triton.jit
def approximate_log(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    low = tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [a], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(out + i, low)


@triton.jit
def integers(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, a // b)
    tl.store(out + N + i, a % b)
    tl.store(out + 2 * N + i, (a << 3) ^ (a >> 2) | (b & ~a))
    tl.store(out + 3 * N + i, tl.minimum(a, b) * 7 - tl.maximum(a, b) + (a // 13) * (b % 10))
    tl.store(out + 4 * N + i, tl.abs(a))


@triton.jit
def high_product(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.umulhi(tl.load(x + i), tl.load(y + i)))


@triton.jit
def convert(x, to_f64, to_f32, to_f16, to_bf16, to_i64, to_i32, to_i16, to_i8, to_u8, N: tl.constexpr):
    """Every store converts to the type of its pointer."""
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(to_f64 + i, v)
    tl.store(to_f32 + i, v)
    tl.store(to_f16 + i, v)
    tl.store(to_bf16 + i, v)
    tl.store(to_i64 + i, v)
    tl.store(to_i32 + i, v)
    tl.store(to_i16 + i, v)
    tl.store(to_i8 + i, v)
    tl.store(to_u8 + i, v)


@triton.jit
def narrow_arithmetic(x, y, out, N: tl.constexpr):
    """Compute in the inputs' own type, bf16 or f16."""
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, tl.where(a < b, a * b, a - b))


@triton.jit
def random_numbers(seed, out_float, out_int, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_float + i, tl.rand(seed, i))
    tl.store(out_int + i, tl.randint(seed, i))


# ---- rows


@triton.jit
def softmax(x, out, x_stride, out_stride, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * x_stride + i, mask=i < n, other=float("-inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(out + row * out_stride + i, e / tl.sum(e, 0), mask=i < n)


@triton.jit
def scale_rows(x, out, stride, n, BLOCK: tl.constexpr):
    """Double each row, block by block, with a mask on the last block."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        v = tl.load(x + row * stride + i, mask=i < n, eviction_policy="evict_first")
        tl.store(out + row * n + i, 2.0 * v, mask=i < n, cache_modifier=".cs")


@triton.jit
def row_sum(x, out, stride, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(x + row * stride + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(total, 0))


@triton.jit
def row_maximum_twice(x, blocks, out, n, BLOCK: tl.constexpr):
    """Store block maxima to global scratch memory, pass a barrier, and read them in other warps."""
    row = tl.program_id(0).to(tl.int64)
    count = 0
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(blocks + row * 64 + count, tl.max(tl.load(x + row * n + i, mask=i < n, other=float("-inf")), 0))
        count += 1
    tl.debug_barrier()
    j = tl.arange(0, 64)
    tl.store(out + row, tl.max(tl.load(blocks + row * 64 + j, mask=j < count, other=float("-inf")), 0))


# ---- reductions, scans, sorting


@triton.jit
def reductions(x, out, N: tl.constexpr):
    a = tl.load(x + tl.arange(0, N))
    tl.store(out, tl.sum(a, 0))
    tl.store(out + 1, tl.max(a, 0))
    tl.store(out + 2, tl.min(a, 0))
    tl.store(out + 3, tl.argmax(a, 0).to(tl.float32))
    tl.store(out + 4, tl.argmin(a, 0).to(tl.float32))


@triton.jit
def integer_reductions(x, out, N: tl.constexpr):
    a = tl.load(x + tl.arange(0, N))
    tl.store(out, tl.sum(a, 0))
    tl.store(out + 1, tl.max(a, 0))
    tl.store(out + 2, tl.min(a, 0))
    tl.store(out + 3, tl.xor_sum(a, 0))


@triton.jit
def axes(x, rows, columns, M: tl.constexpr, N: tl.constexpr):
    i, j = tl.arange(0, M), tl.arange(0, N)
    a = tl.load(x + i[:, None] * N + j[None, :])
    tl.store(rows + i, tl.max(a, 1))
    tl.store(columns + j, tl.sum(a, 0))


@triton.jit
def _better(value, index, other_value, other_index):
    keep = (value > other_value) | ((value == other_value) & (index < other_index))
    return tl.where(keep, value, other_value), tl.where(keep, index, other_index)


@triton.jit
def best_pair(x, value, index, N: tl.constexpr):
    i = tl.arange(0, N)
    v, at = tl.reduce((tl.load(x + i), i), 0, _better)
    tl.store(value, v)
    tl.store(index, at)


@triton.jit
def _affine(a, b, c, d):
    return a * c, b * c + d


@triton.jit
def scans(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    tl.store(out + i, tl.cumsum(a, 0))
    tl.store(out + N + i, tl.cumsum(a, 0, reverse=True))
    _slope, offset = tl.associative_scan((a * 0 + 0.5, a), 0, _affine)
    tl.store(out + 2 * N + i, offset)


@triton.jit
def order(x, sorted_out, top_out, N: tl.constexpr, K: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    tl.store(sorted_out + i, tl.sort(a))
    tl.store(top_out + tl.arange(0, K), tl.topk(a, K))


@triton.jit
def gather(x, index, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.gather(tl.load(x + i), tl.load(index + i), 0))


@triton.jit
def histogram(x, out, N: tl.constexpr, BINS: tl.constexpr):
    tl.store(out + tl.arange(0, BINS), tl.histogram(tl.load(x + tl.arange(0, N)), BINS))


# ---- atomics


@triton.jit
def atomics(x, cells, N: tl.constexpr, CELLS: tl.constexpr):
    i = tl.arange(0, N)
    a, to = tl.load(x + i), i % CELLS
    tl.atomic_add(cells + to, a)
    tl.atomic_max(cells + CELLS + to, a)
    tl.atomic_min(cells + 2 * CELLS + to, a)
    tl.atomic_and(cells + 3 * CELLS + to, a)
    tl.atomic_or(cells + 4 * CELLS + to, a)
    tl.atomic_xor(cells + 5 * CELLS + to, a)


@triton.jit
def add_atomically(x, cells, N: tl.constexpr, CELLS: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.atomic_add(cells + i % CELLS, tl.load(x + i))


@triton.jit
def extreme_atomically(x, cells, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    tl.atomic_max(cells + i * 0, a)
    tl.atomic_min(cells + 1 + i * 0, a)


@triton.jit
def compact(x, threshold, counter, kept, n, BLOCK: tl.constexpr, CAPACITY: tl.constexpr):
    """Store the indices of the elements above a threshold, in any order, at positions from an atomic counter."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        keep = tl.load(x + row * n + i, mask=i < n, other=float("-inf")) > threshold
        one = tl.full([BLOCK], 1, tl.int32)
        place = tl.atomic_add(counter + row + tl.zeros([BLOCK], tl.int32), one, mask=keep, sem="relaxed", scope="cta")
        tl.store(kept + row * CAPACITY + place, i, mask=keep & (place < CAPACITY))


@triton.jit
def last_one_sums(x, partial, ticket, out, N: tl.constexpr, PROGRAMS: tl.constexpr):
    """Store a partial sum per program; the program that draws the last ticket adds them up."""
    p = tl.program_id(0)
    tl.store(partial + p, tl.sum(tl.load(x + p * N + tl.arange(0, N)), 0))
    tl.debug_barrier()
    if tl.atomic_add(ticket, 1) == PROGRAMS - 1:
        tl.store(out, tl.sum(tl.load(partial + tl.arange(0, PROGRAMS)), 0))


@triton.jit
def swap(cells, seen):
    """Compare, swap and exchange in one program."""
    tl.store(seen, tl.atomic_cas(cells, 5, 9))
    tl.store(seen + 1, tl.atomic_cas(cells + 1, 5, 9))
    tl.store(seen + 2, tl.atomic_xchg(cells + 2, 11))


# ---- control flow


@triton.jit
def sum_until(x, limit, out, taken, n):
    """Add elements until the sum reaches a limit: a loop whose length depends on the data."""
    row = tl.program_id(0)
    total = 0.0
    i = 0
    while (i < n) & (total < limit):
        total += tl.load(x + row * n + i)
        i += 1
    tl.store(out + row, total)
    tl.store(taken + row, i)


@triton.jit
def skip_some(x, flags, out, N: tl.constexpr):
    """Return early if the program's flag is zero; otherwise take one of two branches."""
    row = tl.program_id(0)
    i = tl.arange(0, N)
    flag = tl.load(flags + row)
    if flag == 0:
        return
    v = tl.load(x + row * N + i)
    if flag > 1:  # noqa: SIM108, a branch is the point
        v = v / tl.sum(v, 0)
    else:
        v = v - tl.max(v, 0)
    tl.store(out + row * N + i, v)


@triton.jit
def grid_axes(out):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = (z * tl.num_programs(1) + y) * tl.num_programs(0) + x
    tl.store(out + place, x + 10 * y + 100 * z)


# ---- matrix products


@triton.jit
def product(a, b, out, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, K, BK):
        left = tl.load(a + i[:, None] * K + (start + k)[None, :])
        right = tl.load(b + (start + k)[:, None] * N + j[None, :])
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(out + i[:, None] * N + j[None, :], total)


# ---- kernels with faults


@triton.jit
def neighbours_overwrite(x, out, N: tl.constexpr):
    """Store to ranges that overlap between programs."""
    i = tl.program_id(0) * (N // 2) + tl.arange(0, N)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def reads_its_neighbour(x, N: tl.constexpr):
    """Update in place, although each program reads what the next one overwrites."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(x + i, tl.load(x + i) + tl.load(x + i + N))


@triton.jit
def endless(flag):
    while tl.load(flag, volatile=True) == 0:
        pass
