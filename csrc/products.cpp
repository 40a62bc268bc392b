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
  const float* data;  // [count, dim]; if the weights are bfloat16, in the order of `widen`
  int64_t count, dim, stride;
};

// The weights [count, dim] of a layer and its bias [count], or null.
struct Layer {
  const char *weight, *bias;
  ScalarType dtype;
  int64_t count, stride, item_bytes;
};

// `widen` reads weights as vectors of floats: one of eight floats, or two of sixteen bfloat16 numbers, first those at
// even places, then those at odd places. That takes a shift and a mask instead of shuffles: a bfloat16 number is the
// upper half of a float, and two of them fill a 32-bit word.
template <typename Number>
constexpr int64_t kVectors = sizeof(float) / sizeof(Number);

CDGEN_INLINE void widen(const float* p, Lanes* out) { out[0] = load(p); }
CDGEN_INLINE void widen(const BrainFloat* p, Lanes* out) {
  using Words = uint32_t __attribute__((vector_size(32)));
  using LooseWords = uint32_t __attribute__((vector_size(32), aligned(2), may_alias));
  const Words pairs = *reinterpret_cast<const LooseWords*>(p);
  out[0] = reinterpret_cast<Lanes>(pairs << 16);
  out[1] = reinterpret_cast<Lanes>(pairs & 0xffff0000u);
}

// Computes x[r] . weight[j] for kRows rows of x, whose numbers are in the order of `widen`, and kOutputs rows of
// weights. The results of two rows of x are kLanes apart. The order of a sum depends on its length alone. If `ahead`,
// the next kOutputs rows of weights are prefetched into the second-level cache; the first cannot have enough reads in
// flight.
template <int kRows, int kOutputs, typename Number>
CDGEN_INLINE void dots(const float* x, int64_t x_stride, const Number* weight, int64_t stride, int64_t dim, bool ahead,
                       float* value) {
  constexpr int64_t line = 64 / sizeof(Number), vectors = kVectors<Number>, step = vectors * kLanes;
  Lanes total[kRows][kOutputs] = {};
  const auto add = [&](int64_t d) __attribute__((always_inline)) {
    for (int64_t j = 0; j < kOutputs; j++) {
      Lanes w[vectors];
      widen(weight + j * stride + d, w);
      for (int r = 0; r < kRows; r++)
        for (int64_t v = 0; v < vectors; v++) total[r][j] += load(x + r * x_stride + d + v * kLanes) * w[v];
    }
  };
  int64_t d = 0;
  for (; d + line <= dim; d += line) {
    if (ahead)
      for (int64_t j = kOutputs; j < 2 * kOutputs; j++) __builtin_prefetch(weight + j * stride + d, 0, 2);
    for (int64_t i = 0; i < line; i += step) add(d + i);
  }
  for (; d + step <= dim; d += step) add(d);
  for (int r = 0; r < kRows; r++) {
    float rest[kOutputs] = {};
    for (int64_t i = d; i < dim; i++)
      for (int64_t j = 0; j < kOutputs; j++) rest[j] += x[r * x_stride + i] * to_float(weight[j * stride + i]);
    if constexpr (kOutputs == kLanes)
      store(value + r * kLanes, sums_of(total[r]) + load(rest));
    else
      for (int64_t j = 0; j < kOutputs; j++) value[r * kLanes + j] = sum(total[r][j]) + rest[j];
  }
}

// Computes what `dots` computes, for `count` rows of weights, at most kLanes.
template <int kRows, typename Number>
CDGEN_INLINE void some_dots(const float* x, int64_t x_stride, const Number* weight, int64_t stride, int64_t dim,
                            int64_t count, bool ahead, float* value) {
  if (count == kLanes) return dots<kRows, kLanes>(x, x_stride, weight, stride, dim, ahead, value);
  for (int64_t j = 0; j < count; j++)
    dots<kRows, 1>(x, x_stride, weight + j * stride, stride, dim, false, value + j);
}

// Computes outputs begin .. end-1 of a layer. `out` is the place of the first row's output 0; rows are out_bytes apart.
template <typename Number>
CDGEN_INLINE void outputs_of(const Rows& x, const Layer& layer, int64_t begin, int64_t end, char* out,
                             int64_t out_bytes) {
  for (int64_t n = begin; n < end; n += kLanes) {
    const auto* weight = reinterpret_cast<const Number*>(layer.weight) + n * layer.stride;
    const int64_t count = std::min(kLanes, end - n);
    float bias[kLanes], value[2 * kLanes];
    const float* added = layer.bias ? as_floats(layer.dtype, layer.bias + n * layer.item_bytes, count, bias) : nullptr;
    for (int64_t first = 0; first < x.count; first += 2) {  // more sums than those of two rows do not fit in registers
      const float* row = x.data + first * x.stride;
      const int64_t rows = std::min<int64_t>(2, x.count - first);
      const bool ahead = first == 0 && n + 2 * kLanes <= end;
      if (rows == 2)
        some_dots<2>(row, x.stride, weight, layer.stride, x.dim, count, ahead, value);
      else
        some_dots<1>(row, x.stride, weight, layer.stride, x.dim, count, ahead, value);
      for (int64_t r = 0; r < rows; r++) {
        for (int64_t j = 0; added && j < count; j++) value[r * kLanes + j] += added[j];
        from_floats(layer.dtype, value + r * kLanes, count, out + (first + r) * out_bytes + n * layer.item_bytes);
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

// Writes a row of x as floats, in the order of `widen`.
CDGEN_CLONES void widen_row(const BrainFloat* from, int64_t dim, float* to) {
  constexpr int64_t vectors = kVectors<BrainFloat>;
  int64_t d = 0;
  for (; d + vectors * kLanes <= dim; d += vectors * kLanes) {
    Lanes w[vectors];
    widen(from + d, w);
    for (int64_t v = 0; v < vectors; v++) store(to + d + v * kLanes, w[v]);
  }
  for (; d < dim; d++) to[d] = to_float(from[d]);
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
      widen_row(reinterpret_cast<const BrainFloat*>(data + r * x.stride(0) * item_bytes), dim,
                converted.data() + r * dim);
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
