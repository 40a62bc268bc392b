// Attention of one token over a paged cache of keys and values.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace cdgen {

struct PagedStore {
  const char *keys, *values;  // [pages, heads, page_size, dim]
  torch::headeronly::ScalarType dtype;
  int64_t item_bytes, heads, page_size, dim;
};

struct AttentionToken {
  const float* query;  // [heads of queries, dim]
  const int32_t* pages;  // of its text
  int64_t first, last;  // keys seen, both ends
  float scale;
  double dropout;
  int64_t seed, sequence, position, layer, query_heads;
};

struct AttentionScratch {
  std::vector<float> weight, page;
};

// Writes the result of the query heads that share the cache's heads begin to end, floats [query_heads, dim].
void attend(const PagedStore& store, const AttentionToken& token, int64_t begin, int64_t end, AttentionScratch& scratch,
            float* out);

}  // namespace cdgen
