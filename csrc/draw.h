// Draws a token from a list of scored candidates, regardless of how the list was made.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "noise.h"

namespace cdgen {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Why a row has no token. The values are those of kernels/cdgen_kernels/codes.py.
enum Fault : int64_t { kNanGood = -1, kNothingPossible = -2, kNanBad = -3, kCandidatesOverflow = -4 };

struct RowParameters {
  float margin;
  double good_weight, contrast_strength, temperature, top_p;
  int64_t top_k, seed, sequence, position;

  // At temperature 0, candidates and scores are those of temperature 1.
  double divisor() const { return temperature == 0 ? 1.0 : temperature; }
};

// Candidates in ascending order of their ids; one with score -inf is never drawn. An instance serves many rows, so that
// its memory is allocated once.
struct Candidates {
  std::vector<int32_t> token;
  std::vector<double> score;
  std::vector<int8_t> rank;    // +1: contrast of +inf, 0: finite, -1: contrast of -inf
  std::vector<int64_t> order;  // scratch of keep_top

  void clear() {
    token.clear();
    score.clear();
    rank.clear();
  }

  void add(int32_t id, double value) {
    token.push_back(id);
    score.push_back(value);
    rank.push_back(0);
  }

  // Turns candidate i's score from GOOD's scaled logit into its contrast with BAD's. Any infinite contrast outranks all
  // finite scores, and the finite part decides among equal ranks, so the two parts are stored separately.
  void contrast(size_t i, double bad, const RowParameters& p) {
    score[i] *= p.good_weight;
    if (p.contrast_strength == 0) return;
    if (std::isinf(bad))
      rank[i] = p.contrast_strength * bad < 0 ? 1 : -1;
    else
      score[i] -= p.contrast_strength * bad;
  }
};

// Excludes all candidates below the best rank.
inline void keep_best_rank(Candidates& c) {
  int best = std::numeric_limits<int8_t>::min(), worst = std::numeric_limits<int8_t>::max();
  for (size_t i = 0; i < c.rank.size(); i++) {
    if (c.score[i] == -kInf) continue;
    best = std::max<int>(best, c.rank[i]);
    worst = std::min<int>(worst, c.rank[i]);
  }
  if (best == worst) return;
  for (size_t i = 0; i < c.rank.size(); i++)
    if (c.rank[i] != best) c.score[i] = -kInf;
}

// Top-k, then top-p: excludes all but the top_k best scores, then all but the nucleus of mass top_p among those.
inline void keep_top(Candidates& c, const RowParameters& p) {
  const int64_t n = static_cast<int64_t>(c.token.size());
  const bool by_count = p.top_k > 0 && p.top_k < n;
  if (!by_count && p.top_p >= 1) return;
  auto& order = c.order;
  order.resize(n);
  std::iota(order.begin(), order.end(), 0);
  const auto better = [&](int64_t a, int64_t b) { return c.score[a] != c.score[b] ? c.score[a] > c.score[b] : a < b; };
  if (by_count) {
    std::nth_element(order.begin(), order.begin() + p.top_k - 1, order.end(), better);
    for (int64_t i = p.top_k; i < n; i++) c.score[order[i]] = -kInf;
    order.resize(p.top_k);
  }
  if (p.top_p >= 1) return;
  const auto worse = [&](int64_t a, int64_t b) { return better(b, a); };  // puts the best at the top of the heap
  std::make_heap(order.begin(), order.end(), worse);
  const double best = c.score[order.front()];
  double total = 0, before = 0;
  for (int64_t i : order) total += std::exp(c.score[i] - best);
  auto end = order.end();
  while (end != order.begin() && before < p.top_p * total) {
    before += std::exp(c.score[order.front()] - best);
    std::pop_heap(order.begin(), end--, worse);
  }
  for (auto i = order.begin(); i != end; i++) c.score[*i] = -kInf;
}

inline double log_sum_exp(const std::vector<double>& x) {
  const double best = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double value : x) sum += std::exp(value - best);
  return best + std::log(sum);
}

// Returns the index of argmax(score + Gumbel noise); ties go to the lower id. Most candidates are ruled out by a bound
// on their noise that needs no logarithm.
inline int64_t argmax_noisy(const Candidates& c, const RowParameters& p) {
  Noise noise(p.seed, p.sequence, p.position);
  double best = -kInf;
  int64_t winner = -1;
  for (size_t i = 0; i < c.token.size(); i++) {
    if (c.score[i] == -kInf) continue;
    const uint32_t word = noise.word(c.token[i]);
    if (c.score[i] + Noise::gumbel_bound(word) < best) continue;
    const double noisy = c.score[i] + Noise::gumbel(word);
    if (noisy > best) best = noisy, winner = static_cast<int64_t>(i);
  }
  return winner;
}

// Returns the index of the drawn candidate. If `logprob` is not null, it receives the log-probability under the
// distribution drawn from. At least one score must be above -inf.
inline int64_t draw(Candidates& c, const RowParameters& p, float* logprob) {
  keep_best_rank(c);
  keep_top(c, p);
  const int64_t winner =
      p.temperature > 0 ? argmax_noisy(c, p) : std::max_element(c.score.begin(), c.score.end()) - c.score.begin();
  if (logprob != nullptr) *logprob = static_cast<float>(c.score[winner] - log_sum_exp(c.score));
  return winner;
}

}  // namespace cdgen
