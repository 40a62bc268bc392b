// The ops of kernels/layers.py, and gather_logits of kernels/ops.py, for CPU tensors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "attention.h"
#include "vector.h"

namespace cdgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor whose last dimension has unit stride.
struct Array {
  char* data;
  ScalarType dtype;
  int64_t item_bytes;

  explicit Array(const Tensor& t)
      : data(static_cast<char*>(const_cast<void*>(t.const_data_ptr()))),
        dtype(t.scalar_type()),
        item_bytes(static_cast<int64_t>(t.element_size())) {
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                    "expected float32, float16 or bfloat16");
    const int64_t last = t.dim() - 1;
    STD_TORCH_CHECK(t.size(last) <= 1 || t.stride(last) == 1, "the last dimension must be contiguous");
  }

  char* at(int64_t item) const { return data + item * item_bytes; }
};

template <typename T>
const T* numbers(const Tensor& t) {
  STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == (sizeof(T) == 4 ? ScalarType::Int : ScalarType::Long),
                  "expected contiguous int64, or int32 for rows and page tables");
  return static_cast<const T*>(t.const_data_ptr());
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
  const int64_t rows = x.size(0), dim = x.size(1);
  STD_TORCH_CHECK(x.is_contiguous() && (!residual || residual->is_contiguous()), "x and residual must be contiguous");
  const Array in(x), scale(weight);
  auto normed = torch::stable::new_empty(x, {rows, dim});
  auto total = torch::stable::new_empty(x, {residual ? rows : 0, residual ? dim : 0});
  if (!residual) total = torch::stable::new_empty(x, {0});
  const Array out(normed);
  const auto* added = residual ? static_cast<const char*>(residual->const_data_ptr()) : nullptr;
  auto* sums = residual ? static_cast<char*>(total.mutable_data_ptr()) : nullptr;
  std::vector<float> buffer(dim);
  const float* weights = as_floats(scale.dtype, scale.data, dim, buffer.data());
  const int64_t row_bytes = dim * in.item_bytes;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, (1 << 14) / dim), [&](int64_t begin, int64_t end) {
    std::vector<float> a(dim), b(dim);
    for (int64_t r = begin; r < end; r++)
      norm_row(in.dtype, dim, in.data + r * row_bytes, added ? added + r * row_bytes : nullptr, weights, eps, a.data(),
               b.data(), out.data + r * row_bytes, sums ? sums + r * row_bytes : nullptr);
  });
  return {normed, total};
}

CDGEN_CLONES void turn(const float* x, const float* cos, const float* sin, int64_t half, float* out) {
  for (int64_t i = 0; i < half; i++) {
    const float real = x[i], imaginary = x[i + half];
    out[i] = real * cos[i] - imaginary * sin[i];
    out[i + half] = imaginary * cos[i] + real * sin[i];
  }
}

CDGEN_CLONES void convert(ScalarType from, const void* x, int64_t n, float* buffer, ScalarType to, void* out) {
  from_floats(to, as_floats(from, x, n, buffer), n, out);
}

Tensor rope_and_store(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                      const Tensor& position, const Tensor& slot, Tensor keys, Tensor values) {
  const int64_t tokens = q.size(0), heads = q.size(1), dim = q.size(2), kv_heads = k.size(1), half = dim / 2;
  const int64_t page_size = keys.size(2), places = keys.size(0) * page_size, positions = cos.size(0);
  STD_TORCH_CHECK(keys.is_contiguous() && values.is_contiguous(), "the cache must be contiguous");
  const Array queries(q), new_keys(k), new_values(v), key_store(keys), value_store(values);
  const auto *cosines = static_cast<const float*>(cos.const_data_ptr()), *sines = static_cast<const float*>(sin.const_data_ptr());
  const auto *at = numbers<int64_t>(position), *slots = numbers<int64_t>(slot);
  auto turned = torch::stable::new_empty(q, {tokens, heads, dim});
  const Array out(turned);
  for (int64_t n = 0; n < tokens; n++) {
    STD_TORCH_CHECK(0 <= at[n] && at[n] < positions, "a position is out of range");
    STD_TORCH_CHECK(slots[n] < places, "a slot is out of range");
  }
  torch::stable::parallel_for(0, tokens, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> a(dim), b(dim);
    for (int64_t n = begin; n < end; n++) {
      const float *c = cosines + at[n] * half, *s = sines + at[n] * half;
      for (int64_t h = 0; h < heads; h++) {
        const void* from = queries.at(n * q.stride(0) + h * q.stride(1));
        turn(as_floats(queries.dtype, from, dim, a.data()), c, s, half, b.data());
        convert(ScalarType::Float, b.data(), dim, b.data(), out.dtype, out.at((n * heads + h) * dim));
      }
      if (slots[n] < 0) continue;
      for (int64_t h = 0; h < kv_heads; h++) {
        const int64_t to = ((slots[n] / page_size * kv_heads + h) * page_size + slots[n] % page_size) * dim;
        turn(as_floats(new_keys.dtype, new_keys.at(n * k.stride(0) + h * k.stride(1)), dim, a.data()), c, s, half, b.data());
        convert(ScalarType::Float, b.data(), dim, b.data(), key_store.dtype, key_store.at(to));
        convert(new_values.dtype, new_values.at(n * v.stride(0) + h * v.stride(1)), dim, a.data(), value_store.dtype,
                value_store.at(to));
      }
    }
  });
  return turned;
}

Tensor paged_attention(const Tensor& q, const Tensor& keys, const Tensor& values, const Tensor& page_table,
                       const Tensor& row, const Tensor& position, double scale, int64_t window, double dropout,
                       const Tensor& seed, const Tensor& sequence, int64_t layer) {
  const int64_t tokens = q.size(0), heads = q.size(1), dim = q.size(2), columns = page_table.size(1);
  STD_TORCH_CHECK(keys.is_contiguous() && values.is_contiguous(), "the cache must be contiguous");
  const Array queries(q), key_store(keys), value_store(values);
  const PagedStore store = {key_store.data, value_store.data, key_store.dtype, key_store.item_bytes,
                            keys.size(1),   keys.size(2),     dim};
  const auto *table = numbers<int32_t>(page_table), *rows = numbers<int32_t>(row);
  const auto *at = numbers<int64_t>(position), *sequences = numbers<int64_t>(sequence);
  const int64_t key = dropout > 0 ? *numbers<int64_t>(seed) : 0;
  auto result = torch::stable::new_empty(q, {tokens, heads, dim});
  const Array out(result);

  // Texts differ in length, so the work is cut where the keys to read are equal in number, not the tokens. Few tokens
  // are cut by head as well.
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t cuts = tokens >= 2 * threads ? 1 : std::min(store.heads, 2 * threads);
  std::vector<int64_t> work(tokens * cuts + 1);
  for (int64_t n = 0; n < tokens; n++) {
    if (rows[n] >= 0) {
      STD_TORCH_CHECK(rows[n] < page_table.size(0) && 0 <= at[n] && at[n] < columns * store.page_size,
                      "a row or position is outside the page table");
      const int32_t* pages = table + rows[n] * columns;
      const int64_t first = window > 0 ? std::max<int64_t>(0, at[n] - window + 1) : 0;
      for (int64_t page = first / store.page_size; page <= at[n] / store.page_size; page++)
        STD_TORCH_CHECK(0 <= pages[page] && pages[page] < keys.size(0), "a text has no page where it has keys");
    }
    const int64_t seen = rows[n] < 0 ? 0 : window > 0 ? std::min(window, at[n] + 1) : at[n] + 1;
    for (int64_t cut = 0; cut < cuts; cut++) work[n * cuts + cut + 1] = work[n * cuts + cut] + seen + 1;
  }
  const auto item_at = [&](int64_t part) {
    return std::lower_bound(work.begin(), work.end() - 1, work.back() * part / threads) - work.begin();
  };
  torch::stable::parallel_for(0, threads, 1, [&](int64_t part, int64_t last_part) {
    AttentionScratch scratch;
    std::vector<float> query(heads * dim), mixed(heads * dim);
    for (int64_t item = item_at(part); item < item_at(last_part); item++) {
      const int64_t n = item / cuts, cut = item % cuts;
      const int64_t begin = store.heads * cut / cuts, end = store.heads * (cut + 1) / cuts, group = heads / store.heads;
      char* to = out.at((n * heads + begin * group) * dim);
      const int64_t count = (end - begin) * group * dim;
      if (rows[n] < 0) {
        std::memset(to, 0, count * out.item_bytes);
        continue;
      }
      for (int64_t h = begin * group; h < end * group; h++)
        convert(queries.dtype, queries.at(n * q.stride(0) + h * q.stride(1)), dim, query.data() + h * dim,
                ScalarType::Float, query.data() + h * dim);
      const int64_t first = window > 0 ? std::max<int64_t>(0, at[n] - window + 1) : 0;
      const AttentionToken token = {query.data(), table + rows[n] * columns, first, at[n],  static_cast<float>(scale),
                                    dropout,      key,  sequences[n],        at[n], layer, heads};
      attend(store, token, begin, end, scratch, mixed.data());
      convert(ScalarType::Float, mixed.data() + begin * group * dim, count, nullptr, out.dtype, to);
    }
  });
  return result;
}

CDGEN_CLONES void scores_of(ScalarType dtype, const float* hidden, const char* weight, int64_t row_bytes, int64_t dim,
                            const int32_t* token, int64_t count, float* buffer, float* out) {
  for (int64_t i = 0; i < count; i++)
    out[i] = dot(hidden, as_floats(dtype, weight + token[i] * row_bytes, dim, buffer), dim);
}

Tensor gather_logits(const Tensor& hidden, const Tensor& weight, const Tensor& token, const Tensor& count) {
  const int64_t rows = token.size(0), capacity = token.size(1), dim = hidden.size(1);
  const Array states(hidden), weights(weight);
  const auto *tokens = numbers<int32_t>(token), *counts = numbers<int32_t>(count);
  auto scores = torch::stable::new_empty(hidden, {rows, capacity}, ScalarType::Float);
  auto* out = static_cast<float*>(scores.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> state(dim), buffer(dim);
    for (int64_t r = begin; r < end; r++) {
      const int64_t listed = std::clamp<int64_t>(counts[r], 0, capacity);
      for (int64_t i = 0; i < listed; i++)
        STD_TORCH_CHECK(0 <= tokens[r * capacity + i] && tokens[r * capacity + i] < weight.size(0), "a token is out of range");
      convert(states.dtype, states.at(r * hidden.stride(0)), dim, state.data(), ScalarType::Float, state.data());
      scores_of(states.dtype, state.data(), weights.data, weight.stride(0) * weights.item_bytes, dim, tokens + r * capacity,
                listed, buffer.data(), out + r * capacity);
      std::fill(out + r * capacity + listed, out + (r + 1) * capacity, -std::numeric_limits<float>::infinity());
    }
  });
  return scores;
}

STABLE_TORCH_LIBRARY_IMPL(cdgen, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("rope_and_store", TORCH_BOX(&rope_and_store));
  m.impl("paged_attention", TORCH_BOX(&paged_attention));
  m.impl("gather_logits", TORCH_BOX(&gather_logits));
}

}  // namespace
}  // namespace cdgen
