#include "attention.h"

#include <algorithm>

#include "noise.h"
#include "vector.h"

namespace cdgen {
namespace {

using torch::headeronly::ScalarType;

constexpr uint32_t kGolden = 0x9E3779B9;  // separates the dropout keys of layers and heads (reference/layers.py)
constexpr int64_t kAhead = 2;             // blocks between a read and the prefetch of its memory

// The visible keys of one page, or their values, for one key-value head: an array [count, dim].
struct Block {
  const char* data;
  const char* ahead;  // the block that is read kAhead blocks later
  int64_t head, first, count;  // `first` is the index of its first key among the visible ones
};

// Calls visit(block) for every page of keys or values that is visible and, within a page, for heads begin .. end-1.
template <typename Visit>
CDGEN_INLINE void for_each_block(const PagedStore& store, const char* data, const AttentionToken& token, int64_t begin,
                                 int64_t end, Visit visit) {
  const int64_t heads = end - begin, row_bytes = store.dim * store.item_bytes;
  const int64_t last_page = token.last / store.page_size;
  const auto at = [&](int64_t page, int64_t head) __attribute__((always_inline)) {
    return data + (token.pages[page] * store.heads + head) * store.page_size * row_bytes;
  };
  for (int64_t key = token.first; key <= token.last;) {
    const int64_t page = key / store.page_size, offset = key % store.page_size;
    const int64_t count = std::min(store.page_size - offset, token.last + 1 - key);
    int64_t page_ahead = page + kAhead / heads, head_ahead = begin + kAhead % heads;
    for (int64_t head = begin; head < end; head++) {
      const char* now = at(page, head) + offset * row_bytes;
      const char* ahead = page_ahead <= last_page ? at(page_ahead, head_ahead) : now;
      visit(Block{now, ahead, head, key - token.first, count});
      if (++head_ahead == end) head_ahead = begin, page_ahead++;
    }
    key += count;
  }
}

// Prefetches into the second-level cache. The first level cannot have enough reads in flight.
CDGEN_INLINE void prefetch(const char* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 2);
}

// score[i] = scale * query . keys[i]. Also prefetches `count` rows of row_bytes bytes from `ahead`, if it is not null.
template <typename Number>
CDGEN_INLINE void attention_scores(const float* query, const Number* keys, int64_t count, int64_t dim, float scale,
                                   const char* ahead, int64_t row_bytes, float* score) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    if (ahead) prefetch(ahead + i * row_bytes, kLanes * row_bytes);
    const Number* rows = keys + i * dim;
    Lanes total[kLanes] = {};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
      const Lanes x = load(query + d);
      for (int64_t j = 0; j < kLanes; j++) total[j] += x * load(rows + j * dim + d);
    }
    float rest[kLanes] = {};
    for (; d < dim; d++)
      for (int64_t j = 0; j < kLanes; j++) rest[j] += query[d] * to_float(rows[j * dim + d]);
    store(score + i, scale * (sums_of(total) + load(rest)));
  }
  if (ahead) prefetch(ahead + i * row_bytes, (count - i) * row_bytes);
  for (; i < count; i++) {
    const Number* row = keys + i * dim;
    Lanes total = {};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) total += load(query + d) * load(row + d);
    float rest = 0;
    for (; d < dim; d++) rest += query[d] * to_float(row[d]);
    score[i] = scale * (sum(total) + rest);
  }
}

// out[dim] += sum of weight[i] * values[i]. Also prefetches as attention_scores does.
template <typename Number>
CDGEN_INLINE void add_values(const float* weight, const Number* values, int64_t count, int64_t dim, const char* ahead,
                             int64_t row_bytes, float* out) {
  constexpr int64_t wide = 8 * kLanes;
  int64_t d = 0;
  for (; d + wide <= dim; d += wide) {
    Lanes total[8];
    for (int j = 0; j < 8; j++) total[j] = load(out + d + j * kLanes);
    const Number* row = values + d;
    for (int64_t i = 0; i < count; i++, row += dim) {
      if (ahead && d == 0) prefetch(ahead + i * row_bytes, row_bytes);
      for (int j = 0; j < 8; j++) total[j] += weight[i] * load(row + j * kLanes);
    }
    for (int j = 0; j < 8; j++) store(out + d + j * kLanes, total[j]);
  }
  if (ahead && dim < wide) prefetch(ahead, count * row_bytes);
  for (; d + kLanes <= dim; d += kLanes) {
    Lanes total = load(out + d);
    for (int64_t i = 0; i < count; i++) total += weight[i] * load(values + i * dim + d);
    store(out + d, total);
  }
  for (; d < dim; d++) {
    float total = out[d];
    for (int64_t i = 0; i < count; i++) total += weight[i] * to_float(values[i * dim + d]);
    out[d] = total;
  }
}

// Turns scores into weights that sum to 1, in place.
CDGEN_INLINE void softmax(float* score, int64_t count) {
  float best = score[0];
  int64_t i = 0;
  if (count >= kLanes) {
    Lanes most = load(score);
    for (; i + kLanes <= count; i += kLanes) most = load(score + i) > most ? load(score + i) : most;
    for (int64_t j = 0; j < kLanes; j++) best = most[j] > best ? most[j] : best;
  }
  for (; i < count; i++) best = score[i] > best ? score[i] : best;
  const float scale = 1.0f / exponentials(score, count, best);
  for (i = 0; i < count; i++) score[i] *= scale;
}

// Zeroes the dropped weights and divides the others by 1 - dropout.
void drop(const AttentionToken& token, int64_t head, int64_t count, float* weight) {
  const auto step = static_cast<uint32_t>(1 + token.layer * token.query_heads + head) * kGolden;
  const auto seed = static_cast<uint64_t>(token.seed);
  const uint64_t key = (seed & 0xffffffff) | static_cast<uint64_t>(static_cast<uint32_t>(seed >> 32) + step) << 32;
  Noise noise(static_cast<int64_t>(key), token.sequence, token.position);
  const auto threshold = static_cast<int64_t>(token.dropout * 0x1p32);
  const auto kept = static_cast<float>(1 / (1 - token.dropout));
  for (int64_t i = 0; i < count; i++) weight[i] = noise.word(token.first + i) < threshold ? 0.0f : weight[i] * kept;
}

// Calls apply(query head, numbers, weights, block, memory to prefetch) for each query head of each block of keys or
// values. float16 blocks are converted to float32 once: a conversion per query head takes longer than reading float32.
template <typename Apply>
CDGEN_INLINE void for_each_query(const PagedStore& store, const char* data, const AttentionToken& token, int64_t begin,
                                 int64_t end, float* weight, float* page, Apply apply) {
  const int64_t group = token.query_heads / store.heads, count = token.last + 1 - token.first;
  for_each_block(store, data, token, begin, end, [&](const Block& block) __attribute__((always_inline)) {
    const char* ahead = block.ahead;
    const float* floats = nullptr;
    if (store.dtype != ScalarType::BFloat16)
      floats = as_floats(store.dtype, block.data, block.count * store.dim, page);
    for (int64_t q = block.head * group; q < (block.head + 1) * group; q++, ahead = nullptr) {
      float* own = weight + (q - begin * group) * count + block.first;
      if (floats)
        apply(q, floats, own, block, ahead);
      else
        apply(q, reinterpret_cast<const BrainFloat*>(block.data), own, block, ahead);
    }
  });
}

CDGEN_CLONES void score_all(const PagedStore& store, const AttentionToken& token, int64_t begin, int64_t end,
                            float* page, float* weight) {
  const auto apply = [&](int64_t q, const auto* keys, float* own, const Block& block, const char* ahead)
                         __attribute__((always_inline)) {
    attention_scores(token.query + q * store.dim, keys, block.count, store.dim, token.scale, ahead,
                     store.dim * store.item_bytes, own);
  };
  for_each_query(store, store.keys, token, begin, end, weight, page, apply);
}

CDGEN_CLONES void softmax_rows(int64_t rows, int64_t count, float* weight) {
  for (int64_t row = 0; row < rows; row++) softmax(weight + row * count, count);
}

CDGEN_CLONES void mix_all(const PagedStore& store, const AttentionToken& token, int64_t begin, int64_t end,
                          float* weight, float* page, float* out) {
  const auto apply = [&](int64_t q, const auto* values, float* own, const Block& block, const char* ahead)
                         __attribute__((always_inline)) {
    add_values(own, values, block.count, store.dim, ahead, store.dim * store.item_bytes, out + q * store.dim);
  };
  for_each_query(store, store.values, token, begin, end, weight, page, apply);
}

}  // namespace

void attend(const PagedStore& store, const AttentionToken& token, int64_t begin, int64_t end, AttentionScratch& scratch,
            float* out) {
  const int64_t group = token.query_heads / store.heads, count = token.last + 1 - token.first;
  const int64_t rows = (end - begin) * group;
  scratch.weight.resize(rows * count);
  scratch.page.resize(store.page_size * store.dim);
  float *weight = scratch.weight.data(), *page = scratch.page.data();
  score_all(store, token, begin, end, page, weight);
  softmax_rows(rows, count, weight);
  if (token.dropout > 0)
    for (int64_t row = 0; row < rows; row++) drop(token, begin * group + row, count, weight + row * count);
  std::fill(out + begin * group * store.dim, out + end * group * store.dim, 0.0f);
  mix_all(store, token, begin, end, weight, page, out);
}

}  // namespace cdgen
