// Samples a token from one row of logits, given the block maxima of the first pass (passes.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "good_row.h"
#include "plain.h"

namespace cdgen {

// The score of tokens outside the candidates. The values are those of kernels/cdgen_kernels/codes.py.
enum Outside : int64_t { kMask = 0, kConstant = 1, kShiftedGood = 2 };

// Log softmax of a row at a temperature, without banned tokens. Logits of +inf share all the mass. A row with a NaN, or
// with nothing above -inf, is undefined and its results are NaN.
class LogSoftmax {
 public:
  LogSoftmax(const LogitRow& row, int64_t vocab_size, double temperature, const Bans& bans = Bans())
      : temperature_(temperature) {
    std::vector<float> maxima(block_count(vocab_size));
    block_maxima(row, vocab_size, 0, maxima.size(), maxima.data());
    best_ = allowed_maximum(row, vocab_size, bans, maxima);
    at_infinity_ = best_ == kInf;
    double sum = 0;
    if (at_infinity_) {
      best_ = 0;
      for (int64_t i = 0; i < vocab_size; i++) sum += row[i] == kInf && !bans.contains(i);
    } else if (std::isfinite(best_)) {
      sum = mass(row, vocab_size, maxima, bans, best_, 1 / temperature, std::numeric_limits<float>::lowest());
    }
    log_sum_ = sum > 0 ? std::log(sum) : std::numeric_limits<double>::quiet_NaN();
  }

  bool undefined() const { return std::isnan(log_sum_); }

  // Returns the logit itself, or its limit if the row reaches +inf: 0 at +inf, -inf elsewhere.
  double effective(double logit) const { return !at_infinity_ ? logit : logit == kInf ? 0 : -kInf; }

  // Expects an effective logit. The maximum is subtracted first: next to a large one, the sum would be lost.
  double operator()(double logit) const { return (logit - best_) / temperature_ - log_sum_; }

 private:
  double temperature_, best_, log_sum_;
  bool at_infinity_;
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
  const LogSoftmax good_log(good.logits, good.vocab_size, p.divisor(), s.bans);
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

// Expects the scratch's `maxima` and `bans` to be set. If `bad` is null, BAD is the uniform distribution. If a logit
// that is not needed to draw is NaN, log-probabilities that depend on it are NaN.
inline Drawn sample_row(const LogitRow& logits, const LogitRow* bad, int64_t vocab_size, const RowParameters& p,
                        Outside outside, double constant, bool logprobs, Scratch& s) {
  const float best = allowed_maximum(logits, vocab_size, s.bans, s.maxima);
  if (std::isnan(best)) return {kNanGood, 0, 0, 0};
  if (best == -kInf) return {kNothingPossible, 0, 0, 0};
  const GoodRow good{logits, vocab_size, best, candidate_threshold(best, p.margin)};
  const LogitRow* contrasted = p.contrast_strength != 0 ? bad : nullptr;
  Drawn drawn{};
  if (outside == kMask && contrasted == nullptr && has_many_candidates(good, p, s)) {
    drawn.token = draw_plain(good, p, logprobs ? &drawn.logprob : nullptr, s);
  } else {
    const bool sound = outside == kConstant ? score_with_constant(good, contrasted, p, constant, s)
                                            : score_candidates(good, contrasted, nullptr, p, s).has_value();
    if (!sound) return {kNanBad, 0, 0, 0};
    if (outside == kShiftedGood) add_shifted_tail(good, p, s);
    drawn.token = s.candidates.token[draw(s.candidates, p, logprobs ? &drawn.logprob : nullptr)];
  }
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
