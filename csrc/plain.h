// Sampling without contrast: scores rise with GOOD's logits, so that block maxima bound which tokens can be drawn.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>

#include "good_row.h"
#include "mass.h"
#include "race.h"

namespace cdgen {

// Returns whether a row without contrast has so many candidates that passes over the row are cheaper than their list.
// Scores then rise with GOOD's logits, so GOOD's weight must be positive and the best logit finite.
inline bool has_many_candidates(const GoodRow& good, const RowParameters& p, const Scratch& s) {
  int64_t blocks = 0;
  for (float maximum : s.maxima) blocks += maximum >= good.threshold;
  return blocks >= 16 && p.good_weight > 0 && !good.infinite();
}

inline double plain_score(const GoodRow& good, double logit, const RowParameters& p) {
  return p.good_weight * (logit - good.best) / p.divisor();  // as Candidates::contrast computes it
}

inline double mass_of(const GoodRow& good, const RowParameters& p, const Scratch& s, double* levels = nullptr) {
  const double scale = p.good_weight / p.divisor();
  return mass(good.logits, good.vocab_size, s.maxima, s.bans, good.best, scale, good.threshold, levels);
}

// Returns a logit that at least `count` allowed tokens reach: the count-th greatest maximum of the blocks. If there are
// fewer blocks, it is that of the pieces; if there are fewer pieces, too, -inf.
inline float reached_by(const GoodRow& good, int64_t count, Scratch& s) {
  auto& sorted = s.sorted;
  if (count <= static_cast<int64_t>(s.maxima.size())) {
    sorted = s.maxima;
  } else if (count <= piece_count(good.vocab_size)) {
    sorted.resize(piece_count(good.vocab_size));
    piece_maxima(good.logits, good.vocab_size, sorted.data());
    const float none = -std::numeric_limits<float>::infinity();
    s.bans.for_each(0, good.vocab_size, [&](int64_t id) { sorted[id / kPiece] = none; });
  } else {
    return -std::numeric_limits<float>::infinity();
  }
  std::nth_element(sorted.begin(), sorted.begin() + count - 1, sorted.end(), std::greater<float>());
  return sorted[count - 1];
}

// Leaves out the candidates whose score is below that of `logit`. Scores of slightly lower logits may round to the same
// number, and then the lower id wins, so these remain.
inline void raise_threshold(GoodRow& good, double logit) {
  const double below = logit - (good.best - logit) * 0x1p-48;
  const float lowest = std::numeric_limits<float>::lowest();
  const float reached = std::nextafter(static_cast<float>(std::max<double>(below, lowest)), lowest);
  good.threshold = std::max(good.threshold, reached);
}

// Raises the threshold to a level that all tokens of top_p's nucleus reach. Returns the mass of all candidates.
inline double narrow_to_nucleus(GoodRow& good, const RowParameters& p, const Scratch& s) {
  double levels[kLevels], above = 0;
  const double total = mass_of(good, p, s, levels);
  const double wanted = p.top_p * total * (1 + 1e-9);  // more than the rounding errors of both sums
  int64_t level = 0;
  while (level < kLevels && (above += levels[level]) < wanted) level++;
  const double depth = (level + 1) / kLevelsPerUnit * p.divisor() / p.good_weight;
  if (level < kLevels - 1) raise_threshold(good, good.best - depth);
  return total;
}

// Returns the token with the best score.
inline int64_t best_of_row(GoodRow good, const RowParameters& p, const Scratch& s) {
  raise_threshold(good, good.best);
  double best = -kInf;
  int64_t winner = -1;
  for_each_candidate(good.logits, good.vocab_size, good.threshold, s, [&](int32_t id, float logit) {
    const double score = plain_score(good, logit, p);
    if (score > best) best = score, winner = id;
  });
  return winner;
}

// Returns the token with the best noisy score, as argmax_noisy finds it in a list.
inline int64_t winner_of_row(const GoodRow& good, const RowParameters& p, const Scratch& s) {
  const Noise noise(p.seed, p.sequence, p.position);
  // A smaller factor only loosens the bounds, since no score is above 0.
  const double scale = std::min<double>(p.good_weight / p.divisor(), std::numeric_limits<float>::max());
  const Race race{noise, good.best, static_cast<float>(scale)};
  double best = -kInf;
  int64_t winner = -1;
  int32_t ids[kBlock];
  float bounds[kBlock];
  for (int64_t block = 0; block < static_cast<int64_t>(s.maxima.size()); block++) {
    if (!(s.maxima[block] >= good.threshold)) continue;
    if (plain_score(good, s.maxima[block], p) + Noise::kGreatestGumbel < best) continue;
    const float least = static_cast<float>(best);
    const int count = possible_winners(good.logits, good.vocab_size, block, race, least, ids, bounds);
    for (int i = 0; i < count; i++) {
      const float logit = good.logits[ids[i]];
      if (bounds[i] < best || !(logit >= good.threshold) || logit == -kInf || s.bans.contains(ids[i])) continue;
      const double noisy = plain_score(good, logit, p) + Noise::gumbel(noise.word_of(ids[i]));
      if (noisy > best) best = noisy, winner = ids[i];
    }
  }
  return winner;
}

// Draws a token from a row that has many candidates. If `logprob` is not null, it receives the log-probability under
// the distribution drawn from.
inline int64_t draw_plain(GoodRow good, const RowParameters& p, float* logprob, Scratch& s) {
  const bool by_count = p.top_k > 0 && p.top_k < good.vocab_size, uncut = !by_count && p.top_p >= 1;
  if (uncut || (p.temperature == 0 && logprob == nullptr)) {
    const int64_t winner = p.temperature > 0 ? winner_of_row(good, p, s) : best_of_row(good, p, s);
    if (logprob != nullptr)
      *logprob = static_cast<float>(plain_score(good, good.logits[winner], p) - std::log(mass_of(good, p, s)));
    return winner;
  }
  double total = 0;
  if (by_count)
    raise_threshold(good, reached_by(good, p.top_k, s));
  else
    total = narrow_to_nucleus(good, p, s);
  s.candidates.clear();
  for_each_candidate(good.logits, good.vocab_size, good.threshold, s,
                     [&](int32_t id, float logit) { s.candidates.add(id, plain_score(good, logit, p)); });
  return s.candidates.token[draw(s.candidates, p, logprob, total)];
}

}  // namespace cdgen
