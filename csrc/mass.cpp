#include "mass.h"

#include <algorithm>
#include <limits>

#include "vector.h"

namespace cdgen {
namespace {

// Blocks with lower scores add less to the sum, which is at least 1, than its rounding error.
constexpr double kNegligible = -60;

using DoubleLanes = double __attribute__((vector_size(64), may_alias));

// Returns exp(x) for -700 <= x <= 0 with a relative error of 1e-14.
CDGEN_INLINE double double_exp_of_negative(double x) {
  const double shifted = x * 1.4426950408889634 + 0x1.8p52;  // adding 1.5 * 2^52 rounds to an integer in the low bits
  const double whole = shifted - 0x1.8p52;
  const double r = (x - whole * 0x1.62e42feep-1) - whole * 0x1.a39ef35793c76p-33;  // ln 2 in two parts
  double p = 1.0 / 39916800;  // the Taylor series to r^11 / 11!; |r| <= ln(2) / 2
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t bits, steps;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&steps, &shifted, sizeof steps);
  bits += steps << 52;  // times 2^whole
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// Writes the terms of a block's sum: 1e-304, which vanishes in the sum, for logits below the threshold.
CDGEN_CLONES void terms_of_block(const float* logits, double best, double scale, double threshold, double* terms) {
  for (int64_t i = 0; i < kBlock; i++) {
    const double logit = logits[i], score = scale * (logit - best);
    terms[i] = (logit >= threshold) & (score > -700.0) ? score : -700.0;
  }
  // In a loop of its own, since compilers do not vectorise arithmetic that they have moved into a branch.
  for (int64_t i = 0; i < kBlock; i++) terms[i] = double_exp_of_negative(terms[i]);
}

CDGEN_CLONES double sum_of_block(const double* terms) {
  DoubleLanes total = {};
  for (int64_t i = 0; i < kBlock; i += 8) total += *reinterpret_cast<const DoubleLanes*>(terms + i);
  double sum = 0;
  for (int lane = 0; lane < 8; lane++) sum += total[lane];
  return sum;
}

CDGEN_CLONES void levels_of_block(const float* logits, double best, double scale, int32_t* level) {
  for (int64_t i = 0; i < kBlock; i++) {
    const double depth = kLevelsPerUnit * scale * (best - static_cast<double>(logits[i]));
    level[i] = static_cast<int32_t>(depth < kLevels - 1 ? depth : kLevels - 1);
  }
}

CDGEN_CLONES const float* block_as_floats(const LogitRow& row, int64_t first, int64_t n, float* buffer) {
  const bool wide = row.dtype == torch::headeronly::ScalarType::Float;
  return as_floats(row.dtype, static_cast<const char*>(row.data) + first * (wide ? 4 : 2), n, buffer);
}

}  // namespace

double mass(const LogitRow& row, int64_t vocab_size, const std::vector<float>& maxima, const Bans& bans,
            double best, double scale, float threshold, double* levels) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  threshold = std::max(threshold, std::numeric_limits<float>::lowest());
  alignas(64) float buffer[kBlock];
  alignas(64) double terms[kBlock];
  int32_t level[kBlock];
  double parts[4][kLevels] = {};  // consecutive additions to one sum would wait for each other
  double total = 0;
  for (int64_t first = 0; first < vocab_size; first += kBlock) {
    const float maximum = maxima[first / kBlock];
    if (!(maximum >= threshold) || scale * (maximum - best) < kNegligible) continue;
    const int64_t n = std::min(kBlock, vocab_size - first);
    const float* logits = block_as_floats(row, first, n, buffer);
    if (n < kBlock || bans.any(first, first + n)) {
      if (logits != buffer) std::copy(logits, logits + n, buffer);
      std::fill(buffer + n, buffer + kBlock, kNone);
      bans.for_each(first, first + n, [&](int64_t id) { buffer[id - first] = kNone; });
      logits = buffer;
    }
    terms_of_block(logits, best, scale, threshold, terms);
    total += sum_of_block(terms);
    if (levels == nullptr) continue;
    levels_of_block(logits, best, scale, level);
    for (int64_t i = 0; i < kBlock; i++) parts[i & 3][level[i]] += terms[i];
  }
  if (levels != nullptr)
    for (int64_t l = 0; l < kLevels; l++) levels[l] = (parts[0][l] + parts[1][l]) + (parts[2][l] + parts[3][l]);
  return total;
}

}  // namespace cdgen
