// The sampling ops of cdgen_kernels (ops.py) for CPU tensors, on libtorch's stable ABI. Loading the library registers
// them.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "sample_row.h"

namespace {

using namespace cdgen;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Logits [B, V'] with unit stride along V'.
struct Logits {
  const char* data;
  ScalarType dtype;
  int64_t rows, row_bytes;

  explicit Logits(const Tensor& t)
      : data(static_cast<const char*>(t.const_data_ptr())),
        dtype(t.scalar_type()),
        rows(t.size(0)),
        row_bytes(t.stride(0) * static_cast<int64_t>(t.element_size())) {
    STD_TORCH_CHECK(t.dim() == 2 && (t.size(1) <= 1 || t.stride(1) == 1),
                    "logits must be [B, V] with unit stride along V");
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                    "logits must be float32, float16 or bfloat16");
  }

  LogitRow row(int64_t r) const { return {data + r * row_bytes, dtype}; }
};

template <typename T>
const T* per_row(const Tensor& t, int64_t rows) {
  const auto dtype = std::is_same_v<T, float> ? ScalarType::Float : sizeof(T) == 4 ? ScalarType::Int : ScalarType::Long;
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == rows && (rows <= 1 || t.stride(0) == 1) && t.scalar_type() == dtype,
                  "per-row arguments must be contiguous tensors [B] of the dtypes that make_sampling_tensors returns");
  return static_cast<const T*>(t.const_data_ptr());
}

struct Parameters {
  const float *margin, *good_weight, *contrast_strength, *temperature, *top_p;
  const int32_t* top_k;
  const int64_t *seed, *sequence, *position;

  RowParameters row(int64_t r) const {
    return {margin[r], good_weight[r], contrast_strength[r], temperature[r], top_p[r],
            top_k[r],  seed[r],        sequence[r],          position[r]};
  }
};

struct Banned {
  const int64_t* ids = nullptr;
  int64_t columns = 0;

  Banned(const std::optional<Tensor>& t, int64_t rows) {
    if (!t) return;
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == rows && t->is_contiguous() && t->scalar_type() == ScalarType::Long,
                    "banned must be a contiguous int64 tensor [B, N]");
    ids = static_cast<const int64_t*>(t->const_data_ptr());
    columns = t->size(1);
  }
};

// Calls finish(row, scratch) for every row, with the row's block maxima and banned tokens in the scratch. If there are
// fewer rows than threads, all threads read parts of the same row; otherwise each thread finishes a row while it is
// still in the processor's cache.
template <typename Finish>
void for_each_row(const Logits& good, int64_t vocab_size, const Banned& banned, Finish finish) {
  const int64_t blocks = block_count(vocab_size);
  const auto finish_row = [&](int64_t r, Scratch& scratch) {
    scratch.set_banned(banned.ids + r * banned.columns, banned.columns, vocab_size);
    finish(r, scratch);
  };
  if (good.rows >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    torch::stable::parallel_for(0, good.rows, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      scratch.maxima.resize(blocks);
      for (int64_t r = begin; r < end; r++) {
        block_maxima(good.row(r), vocab_size, 0, blocks, scratch.maxima.data());
        finish_row(r, scratch);
      }
    });
    return;
  }
  for (int64_t r = 0; r < good.rows; r++) {
    Scratch scratch;
    scratch.maxima.resize(blocks);
    torch::stable::parallel_for(0, blocks, 64, [&](int64_t begin, int64_t end) {
      block_maxima(good.row(r), vocab_size, begin, end, scratch.maxima.data());
    });
    finish_row(r, scratch);
  }
}

Tensor empty_like(const Tensor& t, std::initializer_list<int64_t> size, ScalarType dtype) {
  return torch::stable::new_empty(t, size, dtype);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> select_candidates(const Tensor& good_logits, const Tensor& margin,
                                                             const std::optional<Tensor>& banned_ids,
                                                             int64_t vocab_size, int64_t capacity) {
  const Logits good(good_logits);
  const Banned banned(banned_ids, good.rows);
  const float* margins = per_row<float>(margin, good.rows);
  auto token = empty_like(good_logits, {good.rows, capacity}, ScalarType::Int);
  auto logit = empty_like(good_logits, {good.rows, capacity}, ScalarType::Float);
  auto count = empty_like(good_logits, {good.rows}, ScalarType::Int);
  auto maximum = empty_like(good_logits, {good.rows}, ScalarType::Float);
  auto* tokens = static_cast<int32_t*>(token.mutable_data_ptr());
  auto* logits = static_cast<float*>(logit.mutable_data_ptr());
  auto* counts = static_cast<int32_t*>(count.mutable_data_ptr());
  auto* maxima = static_cast<float*>(maximum.mutable_data_ptr());
  for_each_row(good, vocab_size, banned, [&](int64_t r, Scratch& scratch) {
    int32_t* ids = tokens + r * capacity;
    float* values = logits + r * capacity;
    const float best = maxima[r] = allowed_maximum(good.row(r), vocab_size, scratch);
    int64_t n = std::isnan(best) ? kNanGood : best == -kInf ? kNothingPossible : 0;
    if (n == 0) {
      for_each_candidate(good.row(r), vocab_size, candidate_threshold(best, margins[r]), scratch,
                         [&](int32_t id, float value) {
                           if (n < capacity) ids[n] = id, values[n] = value;
                           n++;
                         });
    }
    counts[r] = static_cast<int32_t>(n);
    const int64_t listed = std::clamp<int64_t>(n, 0, capacity);
    std::fill(ids + listed, ids + capacity, -1);
    std::fill(values + listed, values + capacity, -std::numeric_limits<float>::infinity());
  });
  return {token, logit, count, maximum};
}

Parameters parameters(const Tensor& margin, const Tensor& good_weight, const Tensor& contrast_strength,
                      const Tensor& temperature, const Tensor& top_p, const Tensor& top_k, const Tensor& seed,
                      const Tensor& sequence, const Tensor& position, int64_t rows) {
  return {per_row<float>(margin, rows),      per_row<float>(good_weight, rows), per_row<float>(contrast_strength, rows),
          per_row<float>(temperature, rows), per_row<float>(top_p, rows),       per_row<int32_t>(top_k, rows),
          per_row<int64_t>(seed, rows),      per_row<int64_t>(sequence, rows),  per_row<int64_t>(position, rows)};
}

std::optional<Logits> optional_logits(const std::optional<Tensor>& t) {
  return t ? std::optional<Logits>(Logits(*t)) : std::nullopt;
}

std::tuple<Tensor, Tensor> contrastive_sample(const Tensor& good_logits, const std::optional<Tensor>& bad_logits,
                                              const Tensor& margin, const Tensor& good_weight,
                                              const Tensor& contrast_strength, const Tensor& temperature,
                                              const Tensor& top_p, const Tensor& top_k, const Tensor& seed,
                                              const Tensor& sequence, const Tensor& position,
                                              const std::optional<Tensor>& banned_ids, int64_t vocab_size,
                                              int64_t outside, double value, bool logprobs) {
  const Logits good(good_logits);
  const std::optional<Logits> bad = optional_logits(bad_logits);
  const Banned banned(banned_ids, good.rows);
  const Parameters p = parameters(margin, good_weight, contrast_strength, temperature, top_p, top_k, seed, sequence,
                                  position, good.rows);
  auto token = empty_like(good_logits, {good.rows}, ScalarType::Long);
  auto* tokens = static_cast<int64_t*>(token.mutable_data_ptr());
  // Log-probabilities under the distribution drawn from, under GOOD and under BAD.
  auto logprob = empty_like(good_logits, {3, logprobs ? good.rows : 0}, ScalarType::Float);
  auto* out = static_cast<float*>(logprob.mutable_data_ptr());
  for_each_row(good, vocab_size, banned, [&](int64_t r, Scratch& scratch) {
    std::optional<LogitRow> bad_row;
    if (bad) bad_row = bad->row(r);
    const Drawn drawn = sample_row(good.row(r), bad_row ? &*bad_row : nullptr, vocab_size, p.row(r),
                                   static_cast<Outside>(outside), value, logprobs, scratch);
    tokens[r] = drawn.token;
    if (logprobs) {
      out[r] = drawn.logprob;
      out[good.rows + r] = drawn.good_logprob;
      out[2 * good.rows + r] = drawn.bad_logprob;
    }
  });
  return {token, logprob};
}

std::tuple<Tensor, Tensor> sample_candidates(const Tensor& token, const Tensor& logit, const Tensor& count,
                                             const Tensor& maximum, const std::optional<Tensor>& bad_logits,
                                             const Tensor& margin, const Tensor& good_weight,
                                             const Tensor& contrast_strength, const Tensor& temperature,
                                             const Tensor& top_p, const Tensor& top_k, const Tensor& seed,
                                             const Tensor& sequence, const Tensor& position, int64_t vocab_size,
                                             bool gathered, bool logprobs) {
  const int64_t rows = token.size(0), capacity = token.size(1);
  STD_TORCH_CHECK(token.is_contiguous() && logit.is_contiguous(), "candidates must be contiguous");
  const std::optional<Logits> bad = optional_logits(bad_logits);
  const Parameters p =
      parameters(margin, good_weight, contrast_strength, temperature, top_p, top_k, seed, sequence, position, rows);
  const auto* tokens = static_cast<const int32_t*>(token.const_data_ptr());
  const auto* logits = static_cast<const float*>(logit.const_data_ptr());
  const auto* counts = per_row<int32_t>(count, rows);
  const auto* maxima = per_row<float>(maximum, rows);
  auto drawn = empty_like(token, {rows}, ScalarType::Long);
  auto logprob = empty_like(token, {logprobs ? rows : 0}, ScalarType::Float);
  auto* drawn_tokens = static_cast<int64_t*>(drawn.mutable_data_ptr());
  auto* drawn_logprobs = static_cast<float*>(logprob.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    Candidates c;
    for (int64_t r = begin; r < end; r++) {
      const RowParameters row = p.row(r);
      drawn_tokens[r] = counts[r] > capacity ? kCandidatesOverflow : counts[r];
      if (counts[r] <= 0 || counts[r] > capacity) continue;
      const bool contrast = bad && row.contrast_strength != 0;
      bool sound = true;
      c.clear();
      for (int64_t i = r * capacity; i < r * capacity + counts[r]; i++) {
        c.add(tokens[i], std::isinf(maxima[r]) ? 0.0 : logits[i] / row.divisor());
        const int64_t column = gathered ? i - r * capacity : tokens[i];
        const double bad_logit = contrast ? bad->row(r)[column] / row.divisor() : 0.0;
        sound &= !std::isnan(bad_logit);
        c.contrast(c.token.size() - 1, bad_logit, row);
      }
      drawn_tokens[r] = sound ? c.token[draw(c, row, logprobs ? drawn_logprobs + r : nullptr)] : kNanBad;
    }
  });
  return {drawn, logprob};
}

STABLE_TORCH_LIBRARY_IMPL(cdgen, CPU, m) {
  m.impl("select_candidates", TORCH_BOX(&select_candidates));
  m.impl("contrastive_sample", TORCH_BOX(&contrastive_sample));
  m.impl("sample_candidates", TORCH_BOX(&sample_candidates));
}

}  // namespace

// Importing the module loads the library, which registers the ops; the module itself is empty.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
