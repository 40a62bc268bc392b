// A row of float32, float16 or bfloat16 logits, read as floats one at a time.
#pragma once
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

namespace cdgen {

inline float float_from_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float float_from_half_bits(int16_t bits) {
  return torch::headeronly::detail::fp16_ieee_to_fp32_value(static_cast<uint16_t>(bits));
}

inline float float_from_bfloat16_bits(int16_t bits) {
  return float_from_bits(static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(bits)) << 16));
}

struct LogitRow {
  const void* data;
  torch::headeronly::ScalarType dtype;

  void prefetch(int64_t i) const {
    __builtin_prefetch(static_cast<const char*>(data) + i * (dtype == torch::headeronly::ScalarType::Float ? 4 : 2));
  }

  float operator[](int64_t i) const {
    switch (dtype) {
      case torch::headeronly::ScalarType::Float:
        return static_cast<const float*>(data)[i];
      case torch::headeronly::ScalarType::Half:
        return float_from_half_bits(static_cast<const int16_t*>(data)[i]);
      default:
        return float_from_bfloat16_bits(static_cast<const int16_t*>(data)[i]);
    }
  }
};

}  // namespace cdgen
