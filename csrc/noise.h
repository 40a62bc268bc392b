// Random numbers as a function of (seed, sequence, position, token): Philox 4x32-10 (Salmon et al. 2011).
#pragma once
#include <array>
#include <cmath>
#include <cstdint>

#include "vector.h"

namespace cdgen {

class Noise {
 public:
  Noise(int64_t seed, int64_t sequence, int64_t position)
      : seed_(static_cast<uint64_t>(seed)),
        sequence_(static_cast<uint64_t>(sequence)),
        position_(static_cast<uint32_t>(position)) {}

  // Returns the 32-bit word of a token. Four tokens share a Philox block, so calls in the order of ids are fastest.
  uint32_t word(int64_t token) {
    if (token >> 2 != block_) {
      block_ = token >> 2;
      philox<1>(static_cast<uint32_t>(block_), words_.data());
    }
    return words_[token & 3];
  }

  // Writes the words of the 4 kCount tokens of consecutive Philox blocks, in the order of the tokens. Compilers turn
  // the loops over blocks into vectors.
  template <int kCount>
  CDGEN_INLINE void philox(uint32_t first, uint32_t* words) const {
    uint32_t c0[kCount], c1[kCount], c2[kCount], c3[kCount];
    for (int i = 0; i < kCount; i++) {
      c0[i] = first + static_cast<uint32_t>(i);
      c1[i] = position_;
      c2[i] = static_cast<uint32_t>(sequence_);
      c3[i] = static_cast<uint32_t>(sequence_ >> 32);
    }
    uint32_t k0 = static_cast<uint32_t>(seed_), k1 = static_cast<uint32_t>(seed_ >> 32);
    for (int round = 0; round < 10; round++) {
      for (int i = 0; i < kCount; i++) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c0[i], p1 = uint64_t{0xCD9E8D57} * c2[i];
        c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
        c1[i] = static_cast<uint32_t>(p1);
        c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
        c3[i] = static_cast<uint32_t>(p0);
      }
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    for (int i = 0; i < kCount; i++) {
      words[4 * i] = c0[i];
      words[4 * i + 1] = c1[i];
      words[4 * i + 2] = c2[i];
      words[4 * i + 3] = c3[i];
    }
  }

  // Returns the 32-bit word of a single token.
  uint32_t word_of(int64_t token) const {
    uint32_t words[4];
    philox<1>(static_cast<uint32_t>(token >> 2), words);
    return words[token & 3];
  }

  static constexpr double kGreatestGumbel = 22.9;  // gumbel(0) = 33 ln 2 = 22.87

  // Returns -log(-log1p(-v)) with v = (word + 1/2) / 2^32. The winner is decided by large Gumbel values, and these come
  // from small v, for which all 32 bits of the word count.
  static double gumbel(uint32_t word) { return -std::log(-std::log1p(-(word + 0.5) * 0x1p-32)); }

  // Returns an upper bound of gumbel(word) without a logarithm: -log1p(-v) >= v >= the power of two below v.
  static double gumbel_bound(uint32_t word) {
    const int log2_of_v = 63 - __builtin_clzll(2 * uint64_t{word} + 1) - 33;
    return -log2_of_v * 0.69314718055994531;
  }

 private:
  uint64_t seed_, sequence_;
  uint32_t position_;
  int64_t block_ = -1;
  std::array<uint32_t, 4> words_{};
};

}  // namespace cdgen
