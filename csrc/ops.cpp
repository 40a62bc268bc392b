// The sampling ops of cdgen_kernels (ops.py) for CPU tensors, on libtorch's stable ABI. Loading the library registers
// them.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "checks.h"
#include "sample_row.h"

namespace {

using namespace cdgen;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Logits [rows, V'] with unit stride along V', of which the first `columns` of each row are read.
struct Logits {
  const char* data;
  ScalarType dtype;
  int64_t rows, row_bytes;

  Logits(const Tensor& t, int64_t columns) : dtype(t.scalar_type()) {
    CDGEN_CHECK(t.is_cpu() && t.dim() == 2 && (t.size(1) <= 1 || t.stride(1) == 1),
                "logits must be [B, V] on the CPU with unit stride along V");
    CDGEN_CHECK(is_floating(dtype), "logits must be float32, float16 or bfloat16");
    CDGEN_CHECK(0 < columns && columns <= t.size(1) && columns <= std::numeric_limits<int32_t>::max(),
                "vocab_size must be between 1 and the number of logits of each row");
    data = static_cast<const char*>(t.const_data_ptr());
    rows = t.size(0);
    row_bytes = t.stride(0) * static_cast<int64_t>(t.element_size());
  }

  LogitRow row(int64_t r) const { return {data + r * row_bytes, dtype}; }
};

struct Parameters {
  const float *margin, *good_weight, *contrast_strength, *temperature, *top_p;
  const int32_t* top_k;
  const int64_t *seed, *sequence, *position;

  RowParameters row(int64_t r) const {
    return {margin[r], good_weight[r], contrast_strength[r], temperature[r], top_p[r],
            top_k[r],  seed[r],        sequence[r],          position[r]};
  }

  // Whether row r's parameters are in range, apart from its margin. Otherwise its scores could be NaN, which has no
  // place in an order, or all be excluded. Each comparison is false for NaN.
  bool valid(int64_t r) const {
    const auto positive = [](float x) { return x >= 0 && std::isfinite(x); };
    return positive(good_weight[r]) && std::isfinite(contrast_strength[r]) && positive(temperature[r]) &&
           top_p[r] > 0 && top_p[r] <= 1 && top_k[r] >= 0;
  }
};

struct Banned {
  const int64_t* ids = nullptr;
  int64_t columns = 0;

  Banned(const std::optional<Tensor>& t, int64_t rows) {
    if (!t) return;
    CDGEN_CHECK(t->dim() == 2, "banned must be [B, N]");
    columns = t->size(1);
    ids = elements<int64_t>(*t, {rows, columns}, "banned");
  }
};

// The least number of blocks per thread, 64 K logits: reading them takes about ten microseconds.
constexpr int64_t kBlocksPerThread = 256;

// Calls finish(row, scratch) for every row, with the row's block maxima and banned tokens in the scratch. If there are
// fewer rows than threads, all threads read parts of the same row; otherwise each thread finishes a row while it is
// still in the processor's cache.
template <typename Finish>
void for_each_row(const Logits& good, int64_t vocab_size, const Banned& banned, Finish finish) {
  const int64_t blocks = block_count(vocab_size);
  const auto finish_row = [&](int64_t r, Scratch& scratch) {
    scratch.bans.set(banned.ids + r * banned.columns, banned.columns, vocab_size);
    finish(r, scratch);
  };
  if (good.rows >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    const int64_t rows_per_thread = (kBlocksPerThread + blocks - 1) / blocks;
    torch::stable::parallel_for(0, good.rows, rows_per_thread, [&](int64_t begin, int64_t end) {
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
    torch::stable::parallel_for(0, blocks, kBlocksPerThread, [&](int64_t begin, int64_t end) {
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
  CDGEN_CHECK(capacity > 0, "capacity must be at least 1");
  const Logits good(good_logits, vocab_size);
  const Banned banned(banned_ids, good.rows);
  const float* margins = elements<float>(margin, {good.rows}, "margin");
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
    const float best = maxima[r] = allowed_maximum(good.row(r), vocab_size, scratch.bans, scratch.maxima);
    int64_t n = !(margins[r] >= 0) ? kInvalidParameters
                : std::isnan(best) ? kNanGood
                : best == -kInf    ? kNothingPossible
                                   : 0;
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
  return {elements<float>(margin, {rows}, "margin"),
          elements<float>(good_weight, {rows}, "good_weight"),
          elements<float>(contrast_strength, {rows}, "contrast_strength"),
          elements<float>(temperature, {rows}, "temperature"),
          elements<float>(top_p, {rows}, "top_p"),
          elements<int32_t>(top_k, {rows}, "top_k"),
          elements<int64_t>(seed, {rows}, "seed"),
          elements<int64_t>(sequence, {rows}, "sequence"),
          elements<int64_t>(position, {rows}, "position")};
}

// BAD's logits [rows, at least `columns`], if there are any.
std::optional<Logits> bad_logits_of(const std::optional<Tensor>& t, int64_t rows, int64_t columns) {
  if (!t) return std::nullopt;
  const Logits bad(*t, columns);
  CDGEN_CHECK(bad.rows == rows, "bad must have as many rows as good");
  return bad;
}

std::tuple<Tensor, Tensor> contrastive_sample(const Tensor& good_logits, const std::optional<Tensor>& bad_logits,
                                              const Tensor& margin, const Tensor& good_weight,
                                              const Tensor& contrast_strength, const Tensor& temperature,
                                              const Tensor& top_p, const Tensor& top_k, const Tensor& seed,
                                              const Tensor& sequence, const Tensor& position,
                                              const std::optional<Tensor>& banned_ids, int64_t vocab_size,
                                              int64_t outside, double value, bool logprobs) {
  CDGEN_CHECK(outside == kMask || outside == kConstant || outside == kShiftedGood, "outside is not a mode");
  CDGEN_CHECK(std::isfinite(value), "value must be finite");
  const Logits good(good_logits, vocab_size);
  const std::optional<Logits> bad = bad_logits_of(bad_logits, good.rows, vocab_size);
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
    const Drawn drawn = p.margin[r] >= 0 && p.valid(r)
                            ? sample_row(good.row(r), bad_row ? &*bad_row : nullptr, vocab_size, p.row(r),
                                         static_cast<Outside>(outside), value, logprobs, scratch)
                            : Drawn{kInvalidParameters, 0, 0, 0};
    tokens[r] = drawn.token;
    if (logprobs) {
      out[r] = drawn.logprob;
      out[good.rows + r] = drawn.good_logprob;
      out[2 * good.rows + r] = drawn.bad_logprob;
    }
  });
  return {token, logprob};
}

// Returns why no token can be drawn from a list of candidates, or 0. A list made by hand may hold anything.
int64_t list_fault(const int32_t* ids, const float* logits, int64_t count, int64_t capacity, float maximum,
                   int64_t vocab_size) {
  if (count > capacity) return kCandidatesOverflow;
  if (count <= 0) return count >= kInvalidCandidates && count < 0 ? count : kInvalidCandidates;
  if (!(maximum > -kInf)) return kInvalidCandidates;
  int64_t previous = -1;
  for (int64_t i = 0; i < count; previous = ids[i++]) {
    const bool fits = logits[i] == -kInf || std::isinf(logits[i]) == std::isinf(maximum);
    if (ids[i] <= previous || ids[i] >= vocab_size || std::isnan(logits[i]) || !fits) return kInvalidCandidates;
  }
  return 0;
}

// Draws from a list of candidates without faults; one with logit -inf cannot be drawn. `bad` is null or BAD's row,
// which has one logit per candidate if `gathered`.
int64_t sample_list(const int32_t* ids, const float* logits, int64_t count, float maximum, const LogitRow* bad,
                    bool gathered, const RowParameters& p, Candidates& c, float* logprob) {
  c.clear();
  for (int64_t i = 0; i < count; i++) {
    if (logits[i] == -kInf) continue;
    c.add(ids[i], std::isinf(maximum) ? 0.0 : logits[i]);
    if (bad) c.bad.push_back((*bad)[gathered ? i : ids[i]]);
  }
  if (c.token.empty()) return kNothingPossible;
  if (!c.contrast(greatest(c.score), p)) return kNanBad;  // not `maximum`, which may have been edited
  return c.token[draw(c, p, logprob)];
}

std::tuple<Tensor, Tensor> sample_candidates(const Tensor& token, const Tensor& logit, const Tensor& count,
                                             const Tensor& maximum, const std::optional<Tensor>& bad_logits,
                                             const Tensor& margin, const Tensor& good_weight,
                                             const Tensor& contrast_strength, const Tensor& temperature,
                                             const Tensor& top_p, const Tensor& top_k, const Tensor& seed,
                                             const Tensor& sequence, const Tensor& position, int64_t vocab_size,
                                             bool gathered, bool logprobs) {
  CDGEN_CHECK(token.dim() == 2 && token.size(1) > 0, "candidates must be [B, C]");
  const int64_t rows = token.size(0), capacity = token.size(1);
  const auto* tokens = elements<int32_t>(token, {rows, capacity}, "candidates.token");
  const auto* logits = elements<float>(logit, {rows, capacity}, "candidates.logit");
  const auto* counts = elements<int32_t>(count, {rows}, "candidates.count");
  const auto* maxima = elements<float>(maximum, {rows}, "candidates.max");
  const std::optional<Logits> bad = bad_logits_of(bad_logits, rows, gathered ? capacity : vocab_size);
  const Parameters p =
      parameters(margin, good_weight, contrast_strength, temperature, top_p, top_k, seed, sequence, position, rows);
  auto drawn = empty_like(token, {rows}, ScalarType::Long);
  auto logprob = empty_like(token, {logprobs ? rows : 0}, ScalarType::Float);
  auto* drawn_tokens = static_cast<int64_t*>(drawn.mutable_data_ptr());
  auto* drawn_logprobs = static_cast<float*>(logprob.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    Candidates c;
    for (int64_t r = begin; r < end; r++) {
      const int32_t* ids = tokens + r * capacity;
      const float* values = logits + r * capacity;
      if (logprobs) drawn_logprobs[r] = 0;
      drawn_tokens[r] =
          p.valid(r) ? list_fault(ids, values, counts[r], capacity, maxima[r], vocab_size) : kInvalidParameters;
      if (drawn_tokens[r] != 0) continue;
      const RowParameters row = p.row(r);
      std::optional<LogitRow> bad_row;
      if (bad && row.contrast_strength != 0) bad_row = bad->row(r);
      drawn_tokens[r] = sample_list(ids, values, counts[r], maxima[r], bad_row ? &*bad_row : nullptr, gathered, row, c,
                                    logprobs ? drawn_logprobs + r : nullptr);
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
