// Draws a token from a list of scored candidates, regardless of how the list was made.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "noise.h"

namespace cdgen {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Why a row has no token. The values are those of kernels/cdgen_kernels/codes.py.
enum Fault : int64_t {
  kNanGood = -1,
  kNothingPossible = -2,
  kNanBad = -3,
  kCandidatesOverflow = -4,
  kInvalidParameters = -5,
  kInvalidCandidates = -6,
};

struct RowParameters {
  float margin;
  double good_weight, contrast_strength, temperature, top_p;
  int64_t top_k, seed, sequence, position;

  // At temperature 0, candidates and scores are those of temperature 1.
  double divisor() const { return temperature == 0 ? 1.0 : temperature; }
};

// Both models' logits of the candidate that the scores of a row are relative to.
struct Reference {
  double good, bad;
};

// Candidates in ascending order of their ids; one with score -inf is never drawn. An instance serves many rows, so that
// its memory is allocated once.
struct Candidates {
  std::vector<int32_t> token;
  std::vector<double> score;   // GOOD's logit until `contrast` is called
  std::vector<double> bad;     // BAD's logit until then; empty if there is no contrast
  std::vector<int8_t> rank;    // +1: contrast of +inf, 0: finite, -1: contrast of -inf; empty if all are finite
  std::vector<int64_t> order;  // scratch of keep_top

  void clear() {
    token.clear();
    score.clear();
    bad.clear();
    rank.clear();
  }

  void add(int32_t id, double value) {
    token.push_back(id);
    score.push_back(value);
  }

  // Moves infinite contrasts from BAD's logits to the ranks. Returns false if a logit of BAD is NaN.
  bool rank_infinities(double contrast_strength) {
    bool finite = true;
    for (double value : bad) finite &= std::isfinite(value);
    if (finite) return true;
    rank.assign(bad.size(), 0);
    for (size_t i = 0; i < bad.size(); i++) {
      if (std::isnan(bad[i])) return false;
      if (!std::isinf(bad[i])) continue;
      rank[i] = contrast_strength * bad[i] < 0 ? 1 : -1;
      bad[i] = 0;
    }
    return true;
  }

  // Turns logits into scores, up to a constant: the contrast with BAD's logits, if there are any, over the temperature.
  // `best` is GOOD's greatest logit. Scores are computed from differences to the logits of the candidate with the best
  // score, so that no offset, however large, costs precision. Any infinite contrast outranks all finite scores, and the
  // finite part decides among equal ranks, so the two parts are stored separately. Returns the logits that scores are
  // relative to, or nothing if a logit of BAD is NaN.
  std::optional<Reference> contrast(double best, const RowParameters& p) {
    const double good_weight = p.good_weight, contrast_strength = p.contrast_strength, divisor = p.divisor();
    if (bad.empty()) {
      for (double& value : score) value = good_weight * (value - best) / divisor;
      return Reference{best, 0};
    }
    if (!rank_infinities(contrast_strength)) return std::nullopt;
    const int8_t best_rank = rank.empty() ? 0 : *std::max_element(rank.begin(), rank.end());
    size_t winner = 0;
    double highest = -kInf;
    for (size_t i = 0; i < bad.size(); i++) {
      if (!rank.empty() && rank[i] != best_rank) continue;
      const double rough = good_weight * score[i] - contrast_strength * bad[i];
      if (rough > highest) winner = i, highest = rough;
    }
    const Reference reference{score[winner], bad[winner]};
    for (size_t i = 0; i < bad.size(); i++) {
      const double difference = contrast_strength * (bad[i] - reference.bad);
      score[i] = (good_weight * (score[i] - reference.good) - difference) / divisor;
    }
    return reference;
  }
};

// Returns the greatest of some numbers. Four independent maxima hide the latency of a comparison.
inline double greatest(const std::vector<double>& x) {
  double lanes[4] = {-kInf, -kInf, -kInf, -kInf};
  size_t i = 0;
  for (; i + 4 <= x.size(); i += 4)
    for (size_t lane = 0; lane < 4; lane++) lanes[lane] = std::max(lanes[lane], x[i + lane]);
  for (; i < x.size(); i++) lanes[0] = std::max(lanes[0], x[i]);
  return std::max(std::max(lanes[0], lanes[1]), std::max(lanes[2], lanes[3]));
}

// Excludes all candidates below the best rank. Expects finite scores.
inline void keep_best_rank(Candidates& c) {
  if (c.rank.empty()) return;
  const int8_t best = *std::max_element(c.rank.begin(), c.rank.end());
  for (size_t i = 0; i < c.rank.size(); i++)
    if (c.rank[i] != best) c.score[i] = -kInf;
}

// Top-k, then top-p: excludes all but the top_k best scores, then all but the nucleus of mass top_p among those. If the
// list holds only the best of the candidates, `mass` is the sum of exp(score - best score) over all of them, else 0.
inline void keep_top(Candidates& c, const RowParameters& p, double mass) {
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
  double best = -kInf, total = mass, above = 0;
  for (int64_t i : order) best = std::max(best, c.score[i]);
  const auto sum = [&](auto first, auto last) {
    double result = 0;
    for (auto i = first; i != last; ++i) result += std::exp(c.score[*i] - best);
    return result;
  };
  if (mass == 0) total = sum(order.begin(), order.end());
  // Bisection: the nucleus ends between `first` and `last`, and `above` is the mass of the scores before `first`.
  auto first = order.begin(), last = order.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, better);
    const double half = sum(first, middle);
    if (above + half < p.top_p * total)
      above += half, first = middle;
    else
      last = middle;
  }
  for (auto i = last; i != order.end(); ++i) c.score[*i] = -kInf;
}

// Returns the index of argmax(score - top + Gumbel noise), where `top` is the greatest score; ties go to the lower id.
// Most candidates are ruled out by a bound on their noise that needs no logarithm.
inline int64_t argmax_noisy(const Candidates& c, double top, const RowParameters& p) {
  Noise noise(p.seed, p.sequence, p.position);
  double best = -kInf;
  int64_t winner = -1;
  for (size_t i = 0; i < c.token.size(); i++) {
    if (c.score[i] == -kInf) continue;
    const uint32_t word = noise.word(c.token[i]);
    const double score = c.score[i] - top;
    if (score + Noise::gumbel_bound(word) < best) continue;
    const double noisy = score + Noise::gumbel(word);
    if (noisy > best) best = noisy, winner = static_cast<int64_t>(i);
  }
  return winner;
}

// Returns the index of the drawn candidate. If `logprob` is not null, it receives the log-probability under the
// distribution drawn from. At least one score must be above -inf. `mass` is that of keep_top.
inline int64_t draw(Candidates& c, const RowParameters& p, float* logprob, double mass = 0) {
  keep_best_rank(c);
  const double top = greatest(c.score);
  keep_top(c, p, mass);
  const int64_t winner =
      p.temperature > 0 ? argmax_noisy(c, top, p) : std::max_element(c.score.begin(), c.score.end()) - c.score.begin();
  if (logprob != nullptr) {
    double sum = 0;
    for (double score : c.score) sum += std::exp(score - top);
    *logprob = static_cast<float>(c.score[winner] - top - std::log(sum));
  }
  return winner;
}

}  // namespace cdgen
