// From scored candidates to a token: what acts on the short list, whoever made it.
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

// Why a row has no token; the numbers are those of kernels/reference.py.
enum Fault : int64_t { kNanGood = -1, kNothingPossible = -2, kNanBad = -3, kHeadOverflow = -4 };

struct RowParameters {
  float margin;
  double good_weight, contrast_strength, temperature, top_p;
  int64_t top_k, seed, sequence, position;

  // Temperature 0 takes head and scores at temperature 1.
  double divisor() const { return temperature == 0 ? 1.0 : temperature; }
};

// Candidates in the order of their ids; a score of -inf is impossible. Kept between rows for its memory.
struct Candidates {
  std::vector<int32_t> token;
  std::vector<double> score;
  std::vector<int8_t> rank;  // of the contrast: +1 infinitely good, 0 finite, -1 infinitely bad
  std::vector<int64_t> order;

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

  // Turns candidate i's score from GOOD's scaled logit into its contrast with BAD's. Infinite contrasts outrank every
  // finite score, and among equals the finite rest decides, so the two parts are kept apart.
  void contrast(size_t i, double bad, const RowParameters& p) {
    score[i] *= p.good_weight;
    if (p.contrast_strength == 0) return;
    if (std::isinf(bad))
      rank[i] = p.contrast_strength * bad < 0 ? 1 : -1;
    else
      score[i] -= p.contrast_strength * bad;
  }
};

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

// All but the top_k best scores, then all but the nucleus of mass top_p of those, become impossible.
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
  const auto worse = [&](int64_t a, int64_t b) { return better(b, a); };  // the heap's top is the best
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

// Index of argmax(score + Gumbel), the lower id on ties. Most candidates lose by a bound that needs no logarithm.
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

// Index of the drawn candidate; `logprob`, where asked for, under the distribution drawn from. Needs a possible one.
inline int64_t draw(Candidates& c, const RowParameters& p, float* logprob) {
  keep_best_rank(c);
  keep_top(c, p);
  const int64_t winner = p.temperature > 0 ? argmax_noisy(c, p)
                                           : std::max_element(c.score.begin(), c.score.end()) - c.score.begin();
  if (logprob != nullptr) *logprob = static_cast<float>(c.score[winner] - log_sum_exp(c.score));
  return winner;
}

}  // namespace cdgen
