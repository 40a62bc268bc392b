// Products of a few rows with the weights of linear layers (linear_rows in specs.py), for CPU tensors. Their time is
// that of reading the weights, which are read from memory once.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "vector.h"

namespace cdgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 17;  // weights per thread, which take about 30 microseconds

struct Rows {
  const float* data;  // [count, dim]
  int64_t count, dim, stride;
};

// The weights [count, dim] of a layer and its bias [count], or null.
struct Layer {
  const char *weight, *bias;
  ScalarType dtype;
  int64_t count, stride, item_bytes;
};

// value[r][j] = x[r] . weight[j] for eight rows of weights. The order of a sum depends on its length alone. If `ahead`,
// the next eight rows of weights are prefetched into the second-level cache; the first cannot have enough reads in
// flight.
template <int kRows, typename Number>
CDGEN_INLINE void eight_dots(const float* x, int64_t x_stride, const Number* weight, int64_t stride, int64_t dim,
                             bool ahead, float (*value)[kLanes]) {
  constexpr int64_t line = 64 / sizeof(Number);
  Lanes total[kRows][kLanes] = {};
  const auto add = [&](int64_t d) __attribute__((always_inline)) {
    for (int64_t j = 0; j < kLanes; j++) {
      const Lanes w = load(weight + j * stride + d);
      for (int r = 0; r < kRows; r++) total[r][j] += load(x + r * x_stride + d) * w;
    }
  };
  int64_t d = 0;
  for (; d + line <= dim; d += line) {
    if (ahead)
      for (int64_t j = kLanes; j < 2 * kLanes; j++) __builtin_prefetch(weight + j * stride + d, 0, 2);
    for (int64_t i = 0; i < line; i += kLanes) add(d + i);
  }
  for (; d + kLanes <= dim; d += kLanes) add(d);
  for (int r = 0; r < kRows; r++) {
    float rest[kLanes] = {};
    for (int64_t i = d; i < dim; i++)
      for (int64_t j = 0; j < kLanes; j++) rest[j] += x[r * x_stride + i] * to_float(weight[j * stride + i]);
    store(value[r], sums_of(total[r]) + load(rest));
  }
}

// Computes outputs begin .. end-1 of a layer. `out` is the place of the first row's output 0; rows are out_bytes apart.
template <typename Number>
CDGEN_INLINE void outputs_of(const Rows& x, const Layer& layer, int64_t begin, int64_t end, char* out,
                             int64_t out_bytes) {
  for (int64_t n = begin; n < end; n += kLanes) {
    const auto* weight = reinterpret_cast<const Number*>(layer.weight) + n * layer.stride;
    const int64_t count = std::min(kLanes, end - n);
    float bias[kLanes], value[2][kLanes];
    const float* added = layer.bias ? as_floats(layer.dtype, layer.bias + n * layer.item_bytes, count, bias) : nullptr;
    for (int64_t first = 0; first < x.count; first += 2) {  // more sums than those of two rows do not fit in registers
      const float* row = x.data + first * x.stride;
      const int64_t rows = std::min<int64_t>(2, x.count - first);
      const bool ahead = first == 0 && n + 2 * kLanes <= end;
      if (count < kLanes)
        for (int64_t r = 0; r < rows; r++)
          for (int64_t j = 0; j < count; j++)
            value[r][j] = dot(row + r * x.stride, weight + j * layer.stride, x.dim);
      else if (rows == 2)
        eight_dots<2>(row, x.stride, weight, layer.stride, x.dim, ahead, value);
      else
        eight_dots<1>(row, x.stride, weight, layer.stride, x.dim, ahead, value);
      for (int64_t r = 0; r < rows; r++) {
        for (int64_t j = 0; added && j < count; j++) value[r][j] += added[j];
        from_floats(layer.dtype, value[r], count, out + (first + r) * out_bytes + n * layer.item_bytes);
      }
    }
  }
}

CDGEN_CLONES void layer_outputs(const Rows& x, const Layer& layer, int64_t begin, int64_t end, char* out,
                                int64_t out_bytes) {
  if (layer.dtype == ScalarType::Float)
    outputs_of<float>(x, layer, begin, end, out, out_bytes);
  else
    outputs_of<BrainFloat>(x, layer, begin, end, out, out_bytes);
}

Layer layer_of(const Tensor& weight, const Tensor* bias, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  CDGEN_CHECK(weight.is_cpu() && weight.scalar_type() == dtype && weight.dim() == 2 && weight.size(1) == x.size(1) &&
                  (weight.size(1) <= 1 || weight.stride(1) == 1),
              "weights must be [N, D] on the CPU with the dtype of x and contiguous rows");
  CDGEN_CHECK(!bias || (bias->is_cpu() && bias->scalar_type() == dtype && has_shape(*bias, {weight.size(0)}) &&
                        bias->is_contiguous()),
              "biases must be contiguous [N] on the CPU with the dtype of x");
  const auto* bias_data = bias ? static_cast<const char*>(bias->const_data_ptr()) : nullptr;
  const auto* data = static_cast<const char*>(weight.const_data_ptr());
  return {data, bias_data, dtype, weight.size(0), weight.stride(0), static_cast<int64_t>(x.element_size())};
}

Tensor linear_rows(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  const ScalarType dtype = x.scalar_type();
  CDGEN_CHECK(x.is_cpu() && x.dim() == 2 && (dtype == ScalarType::Float || dtype == ScalarType::BFloat16) &&
                  (x.size(1) <= 1 || x.stride(1) == 1),
              "x must be float32 or bfloat16 [M, D] on the CPU with contiguous rows");
  CDGEN_CHECK(biases.empty() || biases.size() == weights.size(), "biases: expected one for each weight, or none");
  std::vector<Layer> layers;
  int64_t outputs = 0;
  for (size_t i = 0; i < weights.size(); i++) {
    layers.push_back(layer_of(weights[i], biases.empty() ? nullptr : &biases[i], x));
    outputs += layers.back().count;
  }
  const auto item_bytes = static_cast<int64_t>(x.element_size());
  const int64_t count = x.size(0), dim = x.size(1);
  const auto* data = static_cast<const char*>(x.const_data_ptr());
  Rows rows = {reinterpret_cast<const float*>(data), count, dim, x.stride(0)};
  std::vector<float> converted;
  if (dtype != ScalarType::Float) {
    converted.resize(count * dim);
    for (int64_t r = 0; r < count; r++)
      as_floats(dtype, data + r * x.stride(0) * item_bytes, dim, converted.data() + r * dim);
    rows.data = converted.data(), rows.stride = dim;
  }
  auto result = torch::stable::new_empty(x, {count, outputs});
  auto* out = static_cast<char*>(result.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, dim));
  torch::stable::parallel_for(0, outputs, grain, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // the column of the layer's output 0
    for (const Layer& layer : layers) {
      const int64_t from = std::max<int64_t>(begin - first, 0), to = std::min(end - first, layer.count);
      layer_outputs(rows, layer, from, to, out + first * item_bytes, outputs * item_bytes);
      first += layer.count;
    }
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(cdgen, CPU, m) { m.impl("linear_rows", TORCH_BOX(&linear_rows)); }

}  // namespace
}  // namespace cdgen
