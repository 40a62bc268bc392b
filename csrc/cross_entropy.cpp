// The step between the matrix products of linear_cross_entropy: replaces a chunk's logits by their gradient, in place.
// Each row is read from memory once and written once; the passes in between find it in the processor's cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "checks.h"
#include "passes.h"
#include "vector.h"

namespace cdgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kPiece = 512;  // numbers to sum in float32; these sums are then added in float64

CDGEN_CLONES double row_exponentials(float* row, int64_t n, float best) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kPiece)
    total += exponentials(row + begin, std::min(kPiece, n - begin), best);
  return total;
}

CDGEN_CLONES void scale(float* row, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i++) row[i] *= factor;
}

// Returns the row's loss and, if `gradient`, overwrites its logits with softmax minus one-hot. A NaN or +inf among the
// logits makes the loss and the whole gradient NaN.
float row_gradient(float* row, int64_t n, int64_t target, bool gradient, std::vector<float>& maxima) {
  if (target < 0 || target >= n) {
    if (gradient) std::fill(row, row + n, std::numeric_limits<float>::quiet_NaN());
    return std::numeric_limits<float>::quiet_NaN();
  }
  block_maxima({row, ScalarType::Float}, n, 0, static_cast<int64_t>(maxima.size()), maxima.data());
  const float best = *std::max_element(maxima.begin(), maxima.end());
  const double margin = static_cast<double>(best) - row[target];
  const double total = row_exponentials(row, n, best);
  if (gradient) {
    const double target_exponential = row[target];
    scale(row, n, static_cast<float>(1 / total));
    row[target] = static_cast<float>((target_exponential - total) / total);
  }
  return static_cast<float>(std::log(total) + margin);
}

Tensor softmax_gradient(Tensor logits, const Tensor& target, int64_t ignore_index, bool gradient) {
  CDGEN_CHECK(logits.is_cpu() && logits.dim() == 2 && logits.size(1) > 0 && logits.scalar_type() == ScalarType::Float &&
                  (logits.size(1) == 1 || logits.stride(1) == 1),
              "logits must be float32 [N, V] on the CPU with V > 0 and unit stride along V");
  const int64_t rows = logits.size(0), vocab_size = logits.size(1), row_stride = logits.stride(0);
  auto loss = torch::stable::new_empty(logits, {rows});
  auto* losses = static_cast<float*>(loss.mutable_data_ptr());
  auto* data = static_cast<float*>(logits.mutable_data_ptr());
  const auto* targets = elements<int64_t>(target, {rows}, "target");
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, (1 << 14) / vocab_size), [&](int64_t begin, int64_t end) {
    std::vector<float> maxima(block_count(vocab_size));
    for (int64_t r = begin; r < end; r++) {
      float* row = data + r * row_stride;
      if (targets[r] != ignore_index) {
        losses[r] = row_gradient(row, vocab_size, targets[r], gradient, maxima);
        continue;
      }
      losses[r] = 0;
      if (gradient) std::fill(row, row + vocab_size, 0.0f);
    }
  });
  return loss;
}

STABLE_TORCH_LIBRARY_IMPL(cdgen, CPU, m) { m.impl("softmax_gradient", TORCH_BOX(&softmax_gradient)); }

}  // namespace
}  // namespace cdgen
