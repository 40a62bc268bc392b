// Attention of one token over a paged key-value cache.
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
  const float* query;    // [query_heads, dim]
  const int32_t* pages;  // the sequence's row of the page table
  int64_t first, last;   // the visible keys, both ends inclusive
  float scale;
  double dropout;
  int64_t seed, sequence, position, layer, query_heads;
};

struct AttentionScratch {
  std::vector<float> weight, page;
};

// Computes the query heads that share key-value heads begin .. end-1 and writes them to their rows of `out`, float32
// [query_heads, dim].
void attend(const PagedStore& store, const AttentionToken& token, int64_t begin, int64_t end, AttentionScratch& scratch,
            float* out);

}  // namespace cdgen
