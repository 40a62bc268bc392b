// Samples a token from one row of logits, given the block maxima of the first pass (passes.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "draw.h"
#include "logits.h"
#include "passes.h"

namespace cdgen {

// The score of tokens outside the candidates. The values are those of kernels/cdgen_kernels/codes.py.
enum Outside : int64_t { kMask = 0, kConstant = 1, kShiftedGood = 2 };

struct Scratch {
  std::vector<float> maxima;    // maximum of each block of GOOD's row
  std::vector<int64_t> banned;  // sorted ids within the vocabulary
  Candidates candidates;

  bool is_banned(int64_t token) const {
    return !banned.empty() && std::binary_search(banned.begin(), banned.end(), token);
  }

  void set_banned(const int64_t* ids, int64_t count, int64_t vocab_size) {
    banned.clear();
    for (int64_t i = 0; i < count; i++)
      if (ids[i] >= 0 && ids[i] < vocab_size) banned.push_back(ids[i]);
    std::sort(banned.begin(), banned.end());
  }
};

// Log softmax of a row at a temperature, without the tokens banned by `bans`. Logits of +inf share all the mass. A row
// with a NaN, or with nothing above -inf, is undefined and its results are NaN.
class LogSoftmax {
 public:
  LogSoftmax(const LogitRow& row, int64_t vocab_size, double temperature, const Scratch* bans = nullptr)
      : temperature_(temperature) {
    const auto allowed = [&](int64_t i) { return bans == nullptr || !bans->is_banned(i); };
    double sum = 0;
    bool has_nan = false;
    for (int64_t i = 0; i < vocab_size; i++) {
      if (!allowed(i)) continue;
      best_ = std::max(best_, static_cast<double>(row[i]));
      has_nan |= std::isnan(row[i]);
    }
    at_infinity_ = best_ == kInf;
    if (at_infinity_) best_ = 0;
    for (int64_t i = 0; i < vocab_size; i++)
      if (allowed(i)) sum += std::exp((effective(row[i]) - best_) / temperature);
    log_sum_ = has_nan ? std::numeric_limits<double>::quiet_NaN() : std::log(sum);
  }

  bool undefined() const { return std::isnan(log_sum_); }

  // Returns the logit itself, or its limit if the row reaches +inf: 0 at +inf, -inf elsewhere.
  double effective(double logit) const { return !at_infinity_ ? logit : logit == kInf ? 0 : -kInf; }

  // Expects an effective logit. The maximum is subtracted first: next to a large one, the sum would be lost.
  double operator()(double logit) const { return (logit - best_) / temperature_ - log_sum_; }

 private:
  double temperature_, best_ = -kInf, log_sum_;
  bool at_infinity_;
};

// Recomputes the maxima of blocks with banned tokens. Returns the row's maximum, or NaN if a block's maximum is NaN.
inline float allowed_maximum(const LogitRow& good, int64_t vocab_size, Scratch& s) {
  float best = -std::numeric_limits<float>::infinity();
  for (float maximum : s.maxima) {
    if (std::isnan(maximum)) return maximum;
    best = std::max(best, maximum);
  }
  if (s.banned.empty()) return best;
  for (int64_t token : s.banned) {
    const int64_t block = token / kBlock;
    float& maximum = s.maxima[block] = -std::numeric_limits<float>::infinity();
    for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, vocab_size); i++)
      if (!s.is_banned(i)) maximum = std::max(maximum, good[i]);
  }
  return *std::max_element(s.maxima.begin(), s.maxima.end());
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
      if (!s.is_banned(ids[i])) visit(ids[i], good[ids[i]]);
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
    return logits[i] > -kInf && (!infinite() || logits[i] == best) && !s.is_banned(i);
  }
};

// Fills the scratch's candidates with the row's candidates and their scores. `bad` is null if there is no contrast;
// with `bad_log`, its effective logits are used. Returns the logits that scores are relative to, or nothing if a logit
// of BAD is NaN.
inline std::optional<Reference> score_candidates(const GoodRow& good, const LogitRow* bad, const LogSoftmax* bad_log,
                                                 const RowParameters& p, Scratch& s) {
  Candidates& c = s.candidates;
  c.clear();
  for_each_candidate(good.logits, good.vocab_size, good.threshold, s, [&](int32_t i, float logit) {
    if (bad) bad->prefetch(i);  // the reads are scattered: request them all before waiting for the first
    c.add(i, good.infinite() ? 0.0 : logit);
  });
  if (bad) {
    c.bad.resize(c.token.size());
    for (size_t i = 0; i < c.bad.size(); i++) c.bad[i] = (*bad)[c.token[i]];
    if (bad_log)
      for (double& value : c.bad) value = bad_log->effective(value);
  }
  return c.contrast(good.infinite() ? 0.0 : good.best, p);
}

// Adds the other possible tokens to the scored candidates; `tail(i)` is the score of token i.
template <typename Tail>
inline void add_tail(const GoodRow& good, Scratch& s, Tail tail) {
  Candidates inside;
  std::swap(inside, s.candidates);
  size_t next = 0;
  for (int64_t i = 0; i < good.vocab_size; i++) {  // merge in ascending order of the ids
    if (next < inside.token.size() && inside.token[next] == i) {
      s.candidates.add(inside.token[next], inside.score[next]);
      if (!inside.rank.empty()) {
        s.candidates.rank.resize(s.candidates.token.size());
        s.candidates.rank.back() = inside.rank[next];
      }
      next++;
    } else if (good.possible(i, s)) {
      s.candidates.add(static_cast<int32_t>(i), tail(i));
    }
  }
  if (!inside.rank.empty()) s.candidates.rank.resize(s.candidates.token.size());
}

// Scores candidates by their log-probabilities and the other tokens by a constant. Returns false if BAD's normaliser is
// undefined.
inline bool score_with_constant(const GoodRow& good, const LogitRow* bad, const RowParameters& p, double constant,
                                Scratch& s) {
  const LogSoftmax good_log(good.logits, good.vocab_size, p.divisor(), &s);
  std::optional<LogSoftmax> bad_log;
  if (bad) bad_log.emplace(*bad, good.vocab_size, p.divisor());
  if (bad_log && bad_log->undefined()) return false;
  const Reference reference = *score_candidates(good, bad, bad_log ? &*bad_log : nullptr, p, s);
  const double uniform = -std::log(static_cast<double>(good.vocab_size));
  const double bad_logprob = bad_log ? (*bad_log)(reference.bad) : uniform;
  const double reference_score = p.good_weight * good_log(reference.good) - p.contrast_strength * bad_logprob;
  add_tail(good, s, [&](int64_t) { return constant - reference_score; });
  return true;
}

// Adds the tokens outside the candidates, with GOOD's logits shifted so that the best of them has the candidates' worst
// score.
inline void add_shifted_tail(const GoodRow& good, const RowParameters& p, Scratch& s) {
  float best_outside = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < good.vocab_size; i++)
    if (good.logits[i] < good.threshold && good.possible(i, s)) best_outside = std::max(best_outside, good.logits[i]);
  if (best_outside == -kInf) return;
  const auto& scores = s.candidates.score;
  const double worst = *std::min_element(scores.begin(), scores.end()), below = best_outside;
  add_tail(good, s, [&](int64_t i) { return worst + (good.logits[i] - below) / p.divisor(); });
}

struct Drawn {
  int64_t token;
  float logprob, good_logprob, bad_logprob;
};

// Expects the scratch's `maxima` and `banned` to be set. If `bad` is null, BAD is the uniform distribution. If a logit
// that is not needed to draw is NaN, log-probabilities that depend on it are NaN.
inline Drawn sample_row(const LogitRow& logits, const LogitRow* bad, int64_t vocab_size, const RowParameters& p,
                        Outside outside, double constant, bool logprobs, Scratch& s) {
  const float best = allowed_maximum(logits, vocab_size, s);
  if (std::isnan(best)) return {kNanGood, 0, 0, 0};
  if (best == -kInf) return {kNothingPossible, 0, 0, 0};
  const GoodRow good{logits, vocab_size, best, candidate_threshold(best, p.margin)};
  const LogitRow* contrasted = p.contrast_strength != 0 ? bad : nullptr;
  const bool sound = outside == kConstant ? score_with_constant(good, contrasted, p, constant, s)
                                          : score_candidates(good, contrasted, nullptr, p, s).has_value();
  if (!sound) return {kNanBad, 0, 0, 0};
  if (outside == kShiftedGood) add_shifted_tail(good, p, s);

  Drawn drawn{};
  drawn.token = s.candidates.token[draw(s.candidates, p, logprobs ? &drawn.logprob : nullptr)];
  if (logprobs) {
    const auto logprob = [&](const LogitRow& row) {
      const LogSoftmax log_softmax(row, vocab_size, 1.0);
      return static_cast<float>(log_softmax(log_softmax.effective(row[drawn.token])));
    };
    drawn.good_logprob = logprob(logits);
    drawn.bad_logprob = bad ? logprob(*bad) : -std::log(static_cast<float>(vocab_size));
  }
  return drawn;
}

}  // namespace cdgen
