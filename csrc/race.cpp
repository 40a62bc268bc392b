#include "race.h"

#include <algorithm>
#include <limits>

#include "vector.h"

namespace cdgen {
namespace {

// Covers all rounding of the float32 arithmetic below for scores above -1000; lower scores never win.
constexpr float kSlack = 1e-3f;

// Returns an upper bound of Noise::gumbel(word): -log(-log1p(-v)) <= -log(v), and the bits of a float, read as a number
// with 23 binary digits after the point, are at most its binary logarithm plus 127.
CDGEN_INLINE float gumbel_bound(uint32_t word) {
  const float half = static_cast<float>(static_cast<int32_t>(word >> 1));  // v >= half / 2^31
  int32_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return (158.0f - static_cast<float>(bits) * 0x1p-23f) * 0.69314718f;
}

CDGEN_INLINE int winners_of(const float* logits, int64_t first, int64_t n, const Race& race, float least, int32_t* ids,
                            float* bounds) {
  alignas(64) uint32_t words[kBlock];
  alignas(64) float reach[kBlock];
  race.noise.philox<kBlock / 4>(static_cast<uint32_t>(first >> 2), words);
  const float best_logit = race.best_logit, scale = race.scale;
  uint32_t any = 0;
  for (int64_t i = 0; i < kBlock; i++) {
    reach[i] = (logits[i] - best_logit) * scale + (gumbel_bound(words[i]) + kSlack);
    any |= !(reach[i] < least);  // true for NaN, which comes from infinity * 0
  }
  if (any == 0) return 0;
  int count = 0;
  for (int64_t i = 0; i < n; i++) {
    if (reach[i] < least) continue;
    ids[count] = static_cast<int32_t>(first + i);
    bounds[count++] = reach[i];
  }
  return count;
}

CDGEN_CLONES int winners(const LogitRow& row, int64_t vocab_size, int64_t block, const Race& race, float least,
                         int32_t* ids, float* bounds) {
  const int64_t first = block * kBlock, n = std::min(kBlock, vocab_size - first);
  const bool wide = row.dtype == torch::headeronly::ScalarType::Float;
  const char* from = static_cast<const char*>(row.data) + first * (wide ? 4 : 2);
  alignas(64) float buffer[kBlock];
  if (n == kBlock)
    return winners_of(as_floats(row.dtype, from, kBlock, buffer), first, kBlock, race, least, ids, bounds);
  const float* logits = as_floats(row.dtype, from, n, buffer);
  if (logits != buffer) std::copy(logits, logits + n, buffer);
  std::fill(buffer + n, buffer + kBlock, -std::numeric_limits<float>::infinity());
  return winners_of(buffer, first, n, race, least, ids, bounds);
}

}  // namespace

int possible_winners(const LogitRow& row, int64_t vocab_size, int64_t block, const Race& race, float least,
                     int32_t* ids, float* bounds) {
  return winners(row, vocab_size, block, race, least, ids, bounds);
}

}  // namespace cdgen
