// Two looks, one read: the first streams a row once and keeps the maximum of every block of 256 logits, the second
// visits only the blocks whose maximum reaches a threshold.
#pragma once
#include <cstdint>

#include "logits.h"

namespace cdgen {

constexpr int64_t kBlock = 256;

inline int64_t block_count(int64_t vocab_size) { return (vocab_size + kBlock - 1) / kBlock; }

// Writes the maxima of blocks first .. last-1 of a row to maxima[first .. last-1]; NaN for a block that holds a NaN.
void block_maxima(const LogitRow& row, int64_t vocab_size, int64_t first, int64_t last, float* maxima);

// The logits of a dtype that reach `threshold` are those whose key (see passes.cpp) is at least this number.
int32_t threshold_key(torch::headeronly::ScalarType dtype, float threshold);

// Writes the ids, in order, of those logits of a block whose key reaches `least`; gives their number, 256 at most.
int block_hits(const LogitRow& row, int64_t vocab_size, int64_t block, int32_t least, int32_t* ids);

}  // namespace cdgen
