#include "attention.h"

#include "noise.h"
#include "vector.h"

namespace cdgen {
namespace {

constexpr uint32_t kGolden = 0x9E3779B9;  // separates the dropout keys of layers and heads (reference/layers.py)

// The visible keys of one page. Their values for one key-value head are an array [count, dim].
struct Block {
  int64_t page, offset, count;
};

CDGEN_INLINE const float* block_data(const PagedStore& store, const char* data, const Block& block, int64_t head,
                                     float* buffer) {
  const int64_t at = ((block.page * store.heads + head) * store.page_size + block.offset) * store.dim;
  return as_floats(store.dtype, data + at * store.item_bytes, block.count * store.dim, buffer);
}

// Calls visit(block, index of its first key among the visible ones) for every page with visible keys.
template <typename Visit>
CDGEN_INLINE void for_each_block(const PagedStore& store, const AttentionToken& token, Visit visit) {
  for (int64_t key = token.first; key <= token.last;) {
    const int64_t offset = key % store.page_size;
    const int64_t room = store.page_size - offset, left = token.last + 1 - key;
    const Block block = {token.pages[key / store.page_size], offset, room < left ? room : left};
    visit(block, key - token.first);
    key += block.count;
  }
}

// score[i] = scale * query . keys[i]
CDGEN_INLINE void attention_scores(const float* query, const float* keys, int64_t count, int64_t dim, float scale,
                                   int64_t ahead, float* score) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int64_t at = 0; at < 4 * dim; at += 16) __builtin_prefetch(keys + i * dim + ahead + at);
    dot4(query, keys + i * dim, dim, score + i);
    for (int64_t j = i; j < i + 4; j++) score[j] *= scale;
  }
  for (; i < count; i++) score[i] = scale * dot(query, keys + i * dim, dim);
}

// out[dim] += sum of weight[i] * values[i]
CDGEN_INLINE void add_values(const float* weight, const float* values, int64_t count, int64_t dim, int64_t ahead,
                             float* out) {
  int64_t d = 0;
  for (; d + 8 * kLanes <= dim; d += 8 * kLanes) {
    Lanes total[8];
    for (int j = 0; j < 8; j++) total[j] = load(out + d + j * kLanes);
    const float* row = values + d;
    for (int64_t i = 0; i < count; i++, row += dim) {
      for (int j = 0; j < 8; j += 2) __builtin_prefetch(row + ahead + j * kLanes);
      const float w = weight[i];
      for (int j = 0; j < 8; j++) total[j] += w * load(row + j * kLanes);
    }
    for (int j = 0; j < 8; j++) store(out + d + j * kLanes, total[j]);
  }
  for (; d + kLanes <= dim; d += kLanes) {
    Lanes total = load(out + d);
    for (int64_t i = 0; i < count; i++) total += weight[i] * load(values + i * dim + d);
    store(out + d, total);
  }
  for (; d < dim; d++) {
    float total = out[d];
    for (int64_t i = 0; i < count; i++) total += weight[i] * values[i * dim + d];
    out[d] = total;
  }
}

// Turns scores into weights that sum to 1, in place.
CDGEN_INLINE void softmax(float* score, int64_t count) {
  float best = score[0];
  for (int64_t i = 1; i < count; i++) best = score[i] > best ? score[i] : best;
  const float scale = 1.0f / exponentials(score, count, best);
  for (int64_t i = 0; i < count; i++) score[i] *= scale;
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

CDGEN_CLONES void score_all(const PagedStore& store, const AttentionToken& token, int64_t begin, int64_t end,
                            float* page, float* weight) {
  const int64_t group = token.query_heads / store.heads, count = token.last + 1 - token.first;
  for_each_block(store, token, [&](const Block& block, int64_t at) __attribute__((always_inline)) {
    for (int64_t head = begin; head < end; head++) {
      const float* keys = block_data(store, store.keys, block, head, page);
      for (int64_t q = head * group; q < (head + 1) * group; q++) {
        const float* query = token.query + q * store.dim;
        float* score = weight + (q - begin * group) * count + at;
        // Prefetch two heads ahead. A constant dimension lets the compiler unroll the loops.
        const int64_t ahead = 2 * store.page_size * store.dim;
        if (store.dim == 64)
          attention_scores(query, keys, block.count, 64, token.scale, ahead, score);
        else
          attention_scores(query, keys, block.count, store.dim, token.scale, ahead, score);
      }
    }
  });
}

CDGEN_CLONES void softmax_rows(int64_t rows, int64_t count, float* weight) {
  for (int64_t row = 0; row < rows; row++) softmax(weight + row * count, count);
}

CDGEN_CLONES void mix_all(const PagedStore& store, const AttentionToken& token, int64_t begin, int64_t end,
                          const float* weight, float* page, float* out) {
  const int64_t group = token.query_heads / store.heads, count = token.last + 1 - token.first;
  for_each_block(store, token, [&](const Block& block, int64_t at) __attribute__((always_inline)) {
    for (int64_t head = begin; head < end; head++) {
      const float* values = block_data(store, store.values, block, head, page);
      for (int64_t q = head * group; q < (head + 1) * group; q++)
        add_values(weight + (q - begin * group) * count + at, values, block.count, store.dim,
                   2 * store.page_size * store.dim, out + q * store.dim);
    }
  });
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
  for (int64_t i = begin * group * store.dim; i < end * group * store.dim; i++) out[i] = 0;
  mix_all(store, token, begin, end, weight, page, out);
}

}  // namespace cdgen
