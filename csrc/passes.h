// Passes over a row of logits. The first reads the whole row and keeps the maximum of every block of 256 logits; later
// ones visit only the blocks whose maximum reaches a threshold.
#pragma once
#include <cstdint>

#include "bans.h"
#include "logits.h"

namespace cdgen {

constexpr int64_t kBlock = 256;
constexpr int64_t kPiece = 16;  // part of a block

inline int64_t block_count(int64_t vocab_size) { return (vocab_size + kBlock - 1) / kBlock; }
inline int64_t piece_count(int64_t vocab_size) { return (vocab_size + kPiece - 1) / kPiece; }

// Writes the maxima of blocks first .. last-1 of a row to maxima[first .. last-1]; a block with a NaN has maximum NaN.
void block_maxima(const LogitRow& row, int64_t vocab_size, int64_t first, int64_t last, float* maxima);

// Writes the maxima of all pieces of 16 logits.
void piece_maxima(const LogitRow& row, int64_t vocab_size, float* maxima);

// Returns the maximum of a block's allowed logits, -inf if all are banned.
float allowed_block_maximum(const LogitRow& row, int64_t vocab_size, int64_t block, const Bans& bans);

// Returns the least key (see passes.cpp) that a logit of the dtype must have to reach `threshold`.
int32_t threshold_key(torch::headeronly::ScalarType dtype, float threshold);

// Writes the ids of a block's logits whose key is at least `least`, in ascending order, and returns their number.
int block_hits(const LogitRow& row, int64_t vocab_size, int64_t block, int32_t least, int32_t* ids);

}  // namespace cdgen
