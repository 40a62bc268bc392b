// GOOD's row of logits and its candidates, given the block maxima of the first pass (passes.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "bans.h"
#include "draw.h"
#include "logits.h"
#include "passes.h"

namespace cdgen {

// An instance serves many rows, so that its memory is allocated once.
struct Scratch {
  std::vector<float> maxima;  // maximum of each block of GOOD's row
  std::vector<float> sorted;  // scratch of reached_by (plain.h)
  Bans bans;
  Candidates candidates;
};

// Recomputes the maxima of blocks with banned tokens. Returns the row's maximum, or NaN if a block's maximum is NaN.
inline float allowed_maximum(const LogitRow& row, int64_t vocab_size, const Bans& bans, std::vector<float>& maxima) {
  float best = -std::numeric_limits<float>::infinity();
  for (float maximum : maxima) {
    if (std::isnan(maximum)) return maximum;
    best = std::max(best, maximum);
  }
  if (bans.empty()) return best;
  for (int64_t block = 0; block < static_cast<int64_t>(maxima.size()); block++)
    if (bans.any(block * kBlock, std::min((block + 1) * kBlock, vocab_size)))
      maxima[block] = allowed_block_maximum(row, vocab_size, block, bans);
  return *std::max_element(maxima.begin(), maxima.end());
}

// A single float32 subtraction, as in every implementation, so that all of them select the same candidates.
inline float candidate_threshold(float best, float margin) { return std::isinf(best) ? best : best - margin; }

// Calls visit(id, logit) for every candidate, in ascending order of the ids.
template <typename Visit>
inline void for_each_candidate(const LogitRow& good, int64_t vocab_size, float threshold, const Scratch& s,
                               Visit visit) {
  const float lowest = std::numeric_limits<float>::lowest();  // a token with logit -inf is never a candidate
  const int32_t least = threshold_key(good.dtype, std::max(threshold, lowest));
  int32_t ids[kBlock];
  for (int64_t block = 0; block < static_cast<int64_t>(s.maxima.size()); block++) {
    if (!(s.maxima[block] >= threshold)) continue;
    const int hits = block_hits(good, vocab_size, block, least, ids);
    for (int i = 0; i < hits; i++)
      if (!s.bans.contains(ids[i])) visit(ids[i], good[ids[i]]);
  }
}

// GOOD's row with the maximum and the candidate threshold that the first pass found.
struct GoodRow {
  LogitRow logits;
  int64_t vocab_size;
  float best, threshold;

  // With a maximum of +inf only the tokens at +inf are possible, and all of them score 0.
  bool infinite() const { return std::isinf(best); }
  bool possible(int64_t i, const Scratch& s) const {
    return logits[i] > -kInf && (!infinite() || logits[i] == best) && !s.bans.contains(i);
  }
};

}  // namespace cdgen
