// Plain sampling needs noise for every token of a row, but few tokens can win. A bound without a logarithm rules out
// the others, a block of tokens at a time.
#pragma once
#include <cstdint>

#include "noise.h"
#include "passes.h"

namespace cdgen {

// Bounds of the noisy scores of a row, scale * (logit - best_logit) + Gumbel noise; `best_logit` is finite.
struct Race {
  const Noise& noise;
  float best_logit, scale;
};

// Finds the tokens of a block whose noisy score may reach `least`, banned ones included: writes their ids in ascending
// order and upper bounds of their noisy scores, and returns their number.
int possible_winners(const LogitRow& row, int64_t vocab_size, int64_t block, const Race& race, float least,
                     int32_t* ids, float* bounds);

}  // namespace cdgen
