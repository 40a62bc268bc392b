// Reads every byte once and does nothing else worth the name: the time below which no sampler can be.
#include <stddef.h>
#include <stdint.h>

uint64_t plain_read(const uint64_t* words, int64_t count) {
  uint64_t all = 0;
#pragma omp parallel for reduction(^ : all) schedule(static)
  for (int64_t i = 0; i < count; i++) all ^= words[i];
  return all;
}
