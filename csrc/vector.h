// Vectors of eight floats in portable C++: the compiler emits the widest instructions of each target, and all targets
// sum in the same order. Helpers are CDGEN_INLINE, since ordinary functions are not inlined into the clones that
// CDGEN_CLONES makes of a function for each CPU.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "logits.h"

// Compiles a function once per listed target; the loader picks the best one that the CPU supports.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define CDGEN_WIDEST "arch=x86-64-v4"
#else  // older GCC has no x86-64-v4
#define CDGEN_WIDEST "arch=skylake-avx512"
#endif
#define CDGEN_CLONES __attribute__((target_clones(CDGEN_WIDEST, "avx2", "default")))
#else
#define CDGEN_CLONES
#endif
#define CDGEN_INLINE __attribute__((always_inline)) inline

namespace cdgen {

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // no function here is called across object files
#endif

constexpr int64_t kLanes = 8;
using Lanes = float __attribute__((vector_size(32)));
using HalfLanes = float __attribute__((vector_size(16)));
using LooseLanes = float __attribute__((vector_size(32), aligned(4), may_alias));

CDGEN_INLINE Lanes load(const float* p) { return *reinterpret_cast<const LooseLanes*>(p); }
CDGEN_INLINE void store(float* p, Lanes x) { *reinterpret_cast<LooseLanes*>(p) = x; }
CDGEN_INLINE float sum(Lanes x) {
  const HalfLanes low = __builtin_shufflevector(x, x, 0, 1, 2, 3), high = __builtin_shufflevector(x, x, 4, 5, 6, 7);
  const HalfLanes four = low + high;
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Returns the sums of eight vectors, each bit-identical to `sum`.
CDGEN_INLINE Lanes sums_of(const Lanes (&x)[kLanes]) {
  // Each step adds halves of all sums left, and vectors are paired so that the results come out in order.
  Lanes half[4], quarter[2];
  for (int64_t j = 0; j < 4; j++)
    half[j] = __builtin_shufflevector(x[j], x[j + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
              __builtin_shufflevector(x[j], x[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  for (int64_t j = 0; j < 2; j++)
    quarter[j] = __builtin_shufflevector(half[2 * j], half[2 * j + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
                 __builtin_shufflevector(half[2 * j], half[2 * j + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  return __builtin_shufflevector(quarter[0], quarter[1], 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(quarter[0], quarter[1], 1, 3, 9, 11, 5, 7, 13, 15);
}

// The type of a stored bfloat16 number.
struct BrainFloat {
  uint16_t bits;
};

CDGEN_INLINE Lanes load(const BrainFloat* p) {
  using Halves = uint16_t __attribute__((vector_size(16)));
  using LooseHalves = uint16_t __attribute__((vector_size(16), aligned(2), may_alias));
  const Halves x = *reinterpret_cast<const LooseHalves*>(p), zero = {};
  // The upper 16 bits of a float are those of the bfloat16 number, and the lower 16 are zeros.
  const auto low = reinterpret_cast<HalfLanes>(__builtin_shufflevector(zero, x, 0, 8, 1, 9, 2, 10, 3, 11));
  const auto high = reinterpret_cast<HalfLanes>(__builtin_shufflevector(zero, x, 4, 12, 5, 13, 6, 14, 7, 15));
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
}

CDGEN_INLINE float to_float(float x) { return x; }
CDGEN_INLINE float to_float(BrainFloat x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Returns a . b over n numbers.
template <typename Number>
CDGEN_INLINE float dot(const float* a, const Number* b, int64_t n) {
  Lanes total = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total += load(a + i) * load(b + i);
  float rest = 0;
  for (; i < n; i++) rest += a[i] * to_float(b[i]);
  return sum(total) + rest;
}

// Returns n numbers of a dtype as floats: `from` itself if they are float32, else `buffer`, filled with them.
CDGEN_INLINE const float* as_floats(torch::headeronly::ScalarType dtype, const void* from, int64_t n, float* buffer) {
  using torch::headeronly::ScalarType;
  if (dtype == ScalarType::Float) return static_cast<const float*>(from);
  const auto* bits = static_cast<const uint16_t*>(from);
  auto* out = reinterpret_cast<uint32_t*>(buffer);
  if (dtype == ScalarType::BFloat16) {
    for (int64_t i = 0; i < n; i++) out[i] = static_cast<uint32_t>(bits[i]) << 16;
    return buffer;
  }
  for (int64_t i = 0; i < n; i++) {
    // A multiplication rebiases the exponent, also of subnormal numbers; infinity and NaN get theirs by a bitwise or.
    const uint32_t magnitude = static_cast<uint32_t>(bits[i] & 0x7fff) << 13;
    const uint32_t special = (bits[i] & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
    const uint32_t sign = static_cast<uint32_t>(bits[i] & 0x8000) << 16;
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;
    uint32_t moved;
    std::memcpy(&moved, &value, sizeof moved);
    out[i] = moved | special | sign;
  }
  return buffer;
}

// Returns the bits of a float rounded to float16, ties to even.
CDGEN_INLINE uint16_t half_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
  if (bits < 0x38800000) {  // subnormal: adding 1/2 rounds to a multiple of 2^-24, ties to even
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13));
}

// Rounds n floats to a dtype, ties to even.
CDGEN_INLINE void from_floats(torch::headeronly::ScalarType dtype, const float* from, int64_t n, void* to) {
  using torch::headeronly::ScalarType;
  if (dtype == ScalarType::Float) {
    if (to != from) std::memcpy(to, from, n * sizeof(float));
    return;
  }
  auto* out = static_cast<uint16_t*>(to);
  if (dtype == ScalarType::BFloat16) {
    const auto* bits = reinterpret_cast<const uint32_t*>(from);
    for (int64_t i = 0; i < n; i++) {
      const uint32_t rounded = (bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16;
      out[i] = static_cast<uint16_t>((bits[i] & 0x7fffffff) > 0x7f800000 ? bits[i] >> 16 | 0x40 : rounded);
    }
    return;
  }
  for (int64_t i = 0; i < n; i++) out[i] = half_bits(from[i]);
}

// Returns exp(x) for x <= 0 with an error of at most 2 units in the last place; 0 below -87.
CDGEN_INLINE float exp_of_negative(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer in the low bits
  const float whole = shifted - 12582912.0f;
  const float r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  // The polynomial of Cephes' expf.
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float fraction = p * r * r + r + 1.0f;
  uint32_t bits, steps;
  std::memcpy(&bits, &fraction, sizeof bits);
  std::memcpy(&steps, &shifted, sizeof steps);
  bits += steps << 23;  // times 2^whole
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return x < -87.0f ? 0.0f : result;
}

// Replaces n numbers, none above `best`, by exp(x - best) in place. Returns the sum of the results.
CDGEN_INLINE float exponentials(float* x, int64_t n, float best) {
  for (int64_t i = 0; i < n; i++) x[i] = exp_of_negative(x[i] - best);
  Lanes total = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total += load(x + i);
  float rest = 0;
  for (; i < n; i++) rest += x[i];
  return sum(total) + rest;
}

}  // namespace cdgen
