// The sum of the probabilities of a row's tokens, up to a factor.
#pragma once
#include <cstdint>
#include <vector>

#include "bans.h"
#include "passes.h"

namespace cdgen {

constexpr int64_t kLevels = 64;
constexpr double kLevelsPerUnit = 2;

// Returns the sum of exp(score), score = scale * (logit - best), over the logits of a row that are not banned, reach
// `threshold` and lie above -inf, with a relative error of at most 1e-13. `maxima` are those of the blocks without
// banned tokens; the greatest of them is `best`, which is finite; `scale` >= 0. If `levels` is not null, levels[l]
// receives the sum over the scores from -l / kLevelsPerUnit down to -(l + 1) / kLevelsPerUnit, the last one the rest.
double mass(const LogitRow& row, int64_t vocab_size, const std::vector<float>& maxima, const Bans& bans,
            double best, double scale, float threshold, double* levels = nullptr);

}  // namespace cdgen
