// The layer ops of cdgen_kernels (layers.py), and gather_logits (ops.py), for CPU tensors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "attention.h"
#include "checks.h"
#include "vector.h"

namespace cdgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The elements of a tensor whose last dimension has unit stride. Byte is `const char` for inputs, `char` for outputs.
template <typename Byte>
struct Array {
  Byte* data;
  ScalarType dtype;
  int64_t item_bytes;

  explicit Array(const Tensor& t)
      : data(pointer(t)), dtype(t.scalar_type()), item_bytes(static_cast<int64_t>(t.element_size())) {
    CDGEN_CHECK(t.is_cpu() && is_floating(dtype), "expected float32, float16 or bfloat16 tensors on the CPU");
    const int64_t last = t.dim() - 1;
    CDGEN_CHECK(last >= 0 && (t.size(last) <= 1 || t.stride(last) == 1), "the last dimension must be contiguous");
  }

  Byte* at(int64_t item) const { return data + item * item_bytes; }

 private:
  static Byte* pointer(const Tensor& t) {
    if constexpr (std::is_const_v<Byte>)
      return static_cast<Byte*>(t.const_data_ptr());
    else
      return static_cast<Byte*>(t.mutable_data_ptr());
  }
};

using Input = Array<const char>;
using Output = Array<char>;

// Numbers per thread, which take about 50 microseconds. Waking a thread for fewer does not pay: it takes several
// microseconds, and much longer on a busy machine.
constexpr int64_t kGrain = 1 << 17;

// Returns the least number of rows of `width` numbers per thread.
int64_t grain_rows(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

void check_cache(const Tensor& keys, const Tensor& values, int64_t dim) {
  CDGEN_CHECK(keys.dim() == 4 && keys.size(1) > 0 && keys.size(2) > 0 && dim > 0 && keys.size(3) == dim,
              "the cache must be [pages, K, page_size, d], and none of K, page_size and d may be 0");
  CDGEN_CHECK(has_shape(values, {keys.size(0), keys.size(1), keys.size(2), dim}) &&
                  keys.scalar_type() == values.scalar_type() && keys.is_contiguous() && values.is_contiguous(),
              "keys and values must be contiguous tensors of the same shape and dtype");
}

CDGEN_CLONES void norm_row(ScalarType dtype, int64_t dim, const void* x, const void* residual, const float* weight,
                           double eps, float* a, float* b, void* normed, void* total) {
  const float* row = as_floats(dtype, x, dim, a);
  if (residual) {
    const float* other = as_floats(dtype, residual, dim, b);
    float* into = dtype == ScalarType::Float ? static_cast<float*>(total) : a;
    for (int64_t i = 0; i < dim; i++) into[i] = row[i] + other[i];
    from_floats(dtype, into, dim, total);
    row = as_floats(dtype, total, dim, a);
  }
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dot(row, row, dim)) / dim + eps));
  float* into = dtype == ScalarType::Float ? static_cast<float*>(normed) : b;
  for (int64_t i = 0; i < dim; i++) into[i] = row[i] * scale * weight[i];
  from_floats(dtype, into, dim, normed);
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
                                        double eps) {
  CDGEN_CHECK(x.dim() == 2 && x.size(1) > 0 && x.is_contiguous(), "x must be a contiguous [N, D] with D > 0");
  const int64_t rows = x.size(0), dim = x.size(1);
  const Input in(x), scale(weight);
  CDGEN_CHECK(has_shape(weight, {dim}), "weight must be [D]");
  CDGEN_CHECK(!residual || (has_shape(*residual, {rows, dim}) && residual->is_cpu() &&
                            residual->scalar_type() == in.dtype && residual->is_contiguous()),
              "residual must be contiguous, with the shape and dtype of x");
  auto normed = torch::stable::new_empty(x, {rows, dim});
  auto total = torch::stable::new_empty(x, {residual ? rows : 0, residual ? dim : 0});
  if (!residual) total = torch::stable::new_empty(x, {0});
  const Output out(normed);
  const auto* added = residual ? static_cast<const char*>(residual->const_data_ptr()) : nullptr;
  auto* sums = residual ? static_cast<char*>(total.mutable_data_ptr()) : nullptr;
  std::vector<float> buffer(dim);
  const float* weights = as_floats(scale.dtype, scale.data, dim, buffer.data());
  const int64_t row_bytes = dim * in.item_bytes;
  torch::stable::parallel_for(0, rows, grain_rows(dim), [&](int64_t begin, int64_t end) {
    std::vector<float> a(dim), b(dim);
    for (int64_t r = begin; r < end; r++)
      norm_row(in.dtype, dim, in.data + r * row_bytes, added ? added + r * row_bytes : nullptr, weights, eps, a.data(),
               b.data(), out.data + r * row_bytes, sums ? sums + r * row_bytes : nullptr);
  });
  return {normed, total};
}

// out[i] = silu(gate[i]) * up[i], rounded to the dtype; `a` and `b` have room for n floats
CDGEN_CLONES void gate_row(ScalarType dtype, int64_t n, const void* gate, const void* up, float* a, float* b,
                           void* out) {
  const float *g = as_floats(dtype, gate, n, a), *u = as_floats(dtype, up, n, b);
  float* into = dtype == ScalarType::Float ? static_cast<float*>(out) : a;
  for (int64_t i = 0; i < n; i++) {
    const float e = exp_of_negative(-std::fabs(g[i]));  // the argument is not positive, so exp cannot overflow
    into[i] = g[i] * ((g[i] < 0 ? e : 1.0f) / (1.0f + e)) * u[i];
  }
  from_floats(dtype, into, n, out);
}

Tensor silu_mul(const Tensor& gate_up) {
  CDGEN_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0 && gate_up.is_contiguous(),
              "gate_up must be a contiguous [N, 2 F]");
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  const Input in(gate_up);
  auto gated = torch::stable::new_empty(gate_up, {rows, width});
  const Output out(gated);
  // A unit of work is a row, cut into pieces that stay in the first-level cache.
  const int64_t piece = 2048, cuts = (width + piece - 1) / piece;
  torch::stable::parallel_for(0, rows * cuts, grain_rows(std::min(piece, width)), [&](int64_t begin, int64_t end) {
    std::vector<float> a(piece), b(piece);
    for (int64_t item = begin; item < end; item++) {
      const int64_t row = item / cuts, first = item % cuts * piece, n = std::min(piece, width - first);
      gate_row(in.dtype, n, in.at(2 * row * width + first), in.at((2 * row + 1) * width + first), a.data(), b.data(),
               out.at(row * width + first));
    }
  });
  return gated;
}

CDGEN_CLONES void rotate(const float* x, const float* cos, const float* sin, int64_t half, float* out) {
  for (int64_t i = 0; i < half; i++) {
    const float real = x[i], imaginary = x[i + half];
    out[i] = real * cos[i] - imaginary * sin[i];
    out[i + half] = imaginary * cos[i] + real * sin[i];
  }
}

CDGEN_CLONES void convert(ScalarType from, const void* x, int64_t n, float* buffer, ScalarType to, void* out) {
  from_floats(to, as_floats(from, x, n, buffer), n, out);
}

// The page table, and each token's row of it (negative for unused tokens).
struct PageTable {
  const int32_t *table, *cache_rows;
  int64_t rows, columns, page_size, cache_pages;

  PageTable(const Tensor& page_table, const Tensor& cache_row, const Tensor& keys, int64_t tokens)
      : table(elements<int32_t>(page_table, {page_table.size(0), page_table.size(1)}, "page_table")),
        cache_rows(elements<int32_t>(cache_row, {tokens}, "cache_row")),
        rows(page_table.size(0)),
        columns(page_table.size(1)),
        page_size(keys.size(2)),
        cache_pages(keys.size(0)) {}

  const int32_t* pages_of(int64_t token) const { return table + cache_rows[token] * columns; }

  // Checks that a token's sequence has pages for the positions from `first` to `last`, the token's own position.
  void check(int64_t token, int64_t first, int64_t last) const {
    CDGEN_CHECK(cache_rows[token] < rows, "cache_row: entry ", token, " is ", cache_rows[token],
                ", which is outside the page table of ", rows, " rows");
    CDGEN_CHECK(0 <= last && last < columns * page_size, "position: entry ", token, " is ", last,
                ", which is outside the page table: a row has pages for ", columns * page_size);
    const int32_t* pages = pages_of(token);
    for (int64_t column = first / page_size; column <= last / page_size; column++)
      CDGEN_CHECK(0 <= pages[column] && pages[column] < cache_pages, "page_table: entry (", cache_rows[token], ", ",
                  column, ") is ", pages[column], ", which is out of range: the sequence needs one of the cache's ",
                  cache_pages, " pages there");
  }
};

Tensor rope_and_store(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                      const Tensor& page_table, const Tensor& cache_row, const Tensor& position, Tensor keys,
                      Tensor values) {
  CDGEN_CHECK(q.dim() == 3 && q.size(2) % 2 == 0, "q must be [N, H, d] with an even d");
  CDGEN_CHECK(cos.dim() == 2 && page_table.dim() == 2, "cos must be [P, d / 2] and page_table [S, M]");
  const int64_t tokens = q.size(0), heads = q.size(1), dim = q.size(2), half = dim / 2, position_count = cos.size(0);
  check_cache(keys, values, dim);
  const int64_t kv_heads = keys.size(1), page_size = keys.size(2);
  CDGEN_CHECK(has_shape(k, {tokens, kv_heads, dim}) && has_shape(v, {tokens, kv_heads, dim}),
              "k and v must be [N, K, d] to match q and the cache");
  const Input queries(q), new_keys(k), new_values(v);
  const Output key_store(keys), value_store(values);
  const auto *cosines = elements<float>(cos, {position_count, half}, "cos"),
             *sines = elements<float>(sin, {position_count, half}, "sin");
  const auto* positions = elements<int64_t>(position, {tokens}, "position");
  const PageTable paging(page_table, cache_row, keys, tokens);
  auto rotated = torch::stable::new_empty(q, {tokens, heads, dim});
  const Output out(rotated);
  for (int64_t n = 0; n < tokens; n++) {
    CDGEN_CHECK(0 <= positions[n] && positions[n] < position_count, "position: entry ", n, " is ", positions[n],
                ", which is out of range: cos and sin have ", position_count, " positions");
    if (paging.cache_rows[n] >= 0) paging.check(n, positions[n], positions[n]);
  }
  torch::stable::parallel_for(0, tokens, grain_rows((heads + 2 * kv_heads) * dim), [&](int64_t begin, int64_t end) {
    std::vector<float> a(dim), b(dim);
    for (int64_t n = begin; n < end; n++) {
      const float *c = cosines + positions[n] * half, *s = sines + positions[n] * half;
      for (int64_t h = 0; h < heads; h++) {
        const void* from = queries.at(n * q.stride(0) + h * q.stride(1));
        rotate(as_floats(queries.dtype, from, dim, a.data()), c, s, half, b.data());
        convert(ScalarType::Float, b.data(), dim, b.data(), out.dtype, out.at((n * heads + h) * dim));
      }
      if (paging.cache_rows[n] < 0) continue;
      const int64_t page = paging.pages_of(n)[positions[n] / page_size], offset = positions[n] % page_size;
      for (int64_t h = 0; h < kv_heads; h++) {
        const int64_t to = ((page * kv_heads + h) * page_size + offset) * dim;
        rotate(as_floats(new_keys.dtype, new_keys.at(n * k.stride(0) + h * k.stride(1)), dim, a.data()), c, s, half,
               b.data());
        convert(ScalarType::Float, b.data(), dim, b.data(), key_store.dtype, key_store.at(to));
        convert(new_values.dtype, new_values.at(n * v.stride(0) + h * v.stride(1)), dim, a.data(), value_store.dtype,
                value_store.at(to));
      }
    }
  });
  return rotated;
}

Tensor paged_attention(const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& page_table,
                       const Tensor& cache_row, const Tensor& position, double scale, int64_t window, double dropout,
                       const Tensor& seed, const Tensor& sequence, int64_t layer, bool /* prefill */,
                       const std::optional<Tensor>& /* shared_lengths */) {
  CDGEN_CHECK(q.dim() == 3 && page_table.dim() == 2, "q must be [N, H, d] and page_table [S, M]");
  CDGEN_CHECK(0 <= dropout && dropout < 1 && window >= 0 && 0 <= layer && layer < int64_t{1} << 31,
              "dropout, window or layer is out of range");
  const int64_t tokens = q.size(0), heads = q.size(1), dim = q.size(2);
  check_cache(keys, values, dim);
  const int64_t kv_heads = keys.size(1), page_size = keys.size(2);
  CDGEN_CHECK(heads % kv_heads == 0, "the heads of q must be a multiple of the heads of the cache");
  const Input queries(q), key_store(keys), value_store(values);
  const PagedStore store = {
      key_store.data, value_store.data, key_store.dtype, key_store.item_bytes, kv_heads, page_size, dim};
  const PageTable paging(page_table, cache_row, keys, tokens);
  const auto *positions = elements<int64_t>(position, {tokens}, "position"),
             *sequences = elements<int64_t>(sequence, {tokens}, "sequence");
  const int64_t key = dropout > 0 ? *elements<int64_t>(seed, {1}, "seed") : 0;
  auto result = torch::stable::new_empty(q, {tokens, heads, dim});
  const Output out(result);

  // Sequences differ in length, so threads share the work by the number of keys to read, not by the number of tokens.
  // If there are few tokens, their heads are divided among the threads as well.
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t cuts = tokens >= 2 * threads ? 1 : std::min(store.heads, 2 * threads);
  std::vector<int64_t> work(tokens * cuts + 1);
  for (int64_t n = 0; n < tokens; n++) {
    const bool used = paging.cache_rows[n] >= 0;
    if (used) paging.check(n, window > 0 ? std::max<int64_t>(0, positions[n] - window + 1) : 0, positions[n]);
    const int64_t seen = !used ? 0 : window > 0 ? std::min(window, positions[n] + 1) : positions[n] + 1;
    for (int64_t cut = 0; cut < cuts; cut++) work[n * cuts + cut + 1] = work[n * cuts + cut] + seen + 1;
  }
  const int64_t numbers = work.back() * heads / cuts * dim;  // a key and its value take as long as two of kGrain
  const int64_t parts = std::clamp<int64_t>(2 * numbers / kGrain, 1, threads);
  const auto item_at = [&](int64_t part) {
    return std::lower_bound(work.begin(), work.end() - 1, work.back() * part / parts) - work.begin();
  };
  torch::stable::parallel_for(0, parts, 1, [&](int64_t part, int64_t last_part) {
    AttentionScratch scratch;
    std::vector<float> query(heads * dim), mixed(heads * dim);
    for (int64_t item = item_at(part); item < item_at(last_part); item++) {
      const int64_t n = item / cuts, cut = item % cuts;
      const int64_t begin = store.heads * cut / cuts, end = store.heads * (cut + 1) / cuts, group = heads / store.heads;
      char* to = out.at((n * heads + begin * group) * dim);
      const int64_t count = (end - begin) * group * dim;
      if (paging.cache_rows[n] < 0) {
        std::memset(to, 0, count * out.item_bytes);
        continue;
      }
      for (int64_t h = begin * group; h < end * group; h++)
        convert(queries.dtype, queries.at(n * q.stride(0) + h * q.stride(1)), dim, query.data() + h * dim,
                ScalarType::Float, query.data() + h * dim);
      const int64_t first = window > 0 ? std::max<int64_t>(0, positions[n] - window + 1) : 0, last = positions[n];
      const AttentionToken token = {
          query.data(), paging.pages_of(n), first, last, static_cast<float>(scale), dropout, key,
          sequences[n], last, layer, heads};
      attend(store, token, begin, end, scratch, mixed.data());
      convert(ScalarType::Float, mixed.data() + begin * group * dim, count, nullptr, out.dtype, to);
    }
  });
  return result;
}

CDGEN_CLONES void candidate_logits(ScalarType dtype, const float* hidden, const char* weight, int64_t row_bytes,
                                   int64_t dim, const int32_t* token, int64_t count, float* buffer, float* out) {
  for (int64_t i = 0; i < count; i++)
    out[i] = dot(hidden, as_floats(dtype, weight + token[i] * row_bytes, dim, buffer), dim);
}

Tensor gather_logits(const Tensor& hidden, const Tensor& weight, const Tensor& token, const Tensor& count) {
  CDGEN_CHECK(hidden.dim() == 2 && token.dim() == 2, "hidden must be [B, D] and candidates [B, C]");
  const int64_t rows = hidden.size(0), capacity = token.size(1), dim = hidden.size(1);
  CDGEN_CHECK(weight.dim() == 2 && weight.size(1) == dim && weight.scalar_type() == hidden.scalar_type(),
              "weight must be [V, D] of the dtype of hidden");
  const Input states(hidden), weights(weight);
  const auto* tokens = elements<int32_t>(token, {rows, capacity}, "candidates.token");
  const auto* counts = elements<int32_t>(count, {rows}, "candidates.count");
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = r * capacity; i < r * capacity + std::clamp<int64_t>(counts[r], 0, capacity); i++)
      CDGEN_CHECK(0 <= tokens[i] && tokens[i] < weight.size(0), "candidates.token: row ", r, " lists token ", tokens[i],
                  ", which is out of range: the output layer has ", weight.size(0), " tokens");
  auto scores = torch::stable::new_empty(hidden, {rows, capacity}, ScalarType::Float);
  auto* out = static_cast<float*>(scores.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> state(dim), buffer(dim);
    for (int64_t r = begin; r < end; r++) {
      const int64_t listed = std::clamp<int64_t>(counts[r], 0, capacity);
      convert(states.dtype, states.at(r * hidden.stride(0)), dim, state.data(), ScalarType::Float, state.data());
      candidate_logits(states.dtype, state.data(), weights.data, weight.stride(0) * weights.item_bytes, dim,
                       tokens + r * capacity, listed, buffer.data(), out + r * capacity);
      std::fill(out + r * capacity + listed, out + (r + 1) * capacity, -std::numeric_limits<float>::infinity());
    }
  });
  return scores;
}

STABLE_TORCH_LIBRARY_IMPL(cdgen, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("silu_mul", TORCH_BOX(&silu_mul));
  m.impl("rope_and_store", TORCH_BOX(&rope_and_store));
  m.impl("paged_attention", TORCH_BOX(&paged_attention));
  m.impl("gather_logits", TORCH_BOX(&gather_logits));
}

}  // namespace
}  // namespace cdgen
