// Two passes over a row of logits: the first reads the whole row and keeps the maximum of every block of 256 logits,
// the second visits only the blocks whose maximum reaches a threshold.
#pragma once
#include <cstdint>

#include "logits.h"

namespace cdgen {

constexpr int64_t kBlock = 256;

inline int64_t block_count(int64_t vocab_size) { return (vocab_size + kBlock - 1) / kBlock; }

// Writes the maxima of blocks first .. last-1 of a row to maxima[first .. last-1]; a block with a NaN has maximum NaN.
void block_maxima(const LogitRow& row, int64_t vocab_size, int64_t first, int64_t last, float* maxima);

// Returns the least key (see passes.cpp) that a logit of the dtype must have to reach `threshold`.
int32_t threshold_key(torch::headeronly::ScalarType dtype, float threshold);

// Writes the ids of a block's logits whose key is at least `least`, in ascending order, and returns their number.
int block_hits(const LogitRow& row, int64_t vocab_size, int64_t block, int32_t least, int32_t* ids);

}  // namespace cdgen
