#include "passes.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "vector.h"

// The loops below use integers only, so that compilers can vectorise them without permission to reorder floating-point
// operations.
namespace cdgen {
namespace {

using torch::headeronly::ScalarType;

// Maps the bits of a float to an integer key with the same order, by flipping the magnitude bits of negative numbers.
// The map is its own inverse. Keys of NaNs lie outside the range of the infinities' keys.
template <typename Int>
constexpr Int key(Int bits) {
  return static_cast<Int>(bits ^ ((bits >> (8 * sizeof(Int) - 1)) & std::numeric_limits<Int>::max()));
}

struct Float32 {
  using Int = int32_t;
  static constexpr Int kInfinity = 0x7f800000;
  static float from_bits(Int bits) { return float_from_bits(bits); }
};

struct Float16 {
  using Int = int16_t;
  static constexpr Int kInfinity = 0x7c00;
  static float from_bits(Int bits) { return float_from_half_bits(bits); }
};

struct BFloat16 {
  using Int = int16_t;
  static constexpr Int kInfinity = 0x7f80;
  static float from_bits(Int bits) { return float_from_bfloat16_bits(bits); }
};

template <typename Type>
constexpr typename Type::Int lowest_key() {
  using Int = typename Type::Int;
  return key<Int>(static_cast<Int>(Type::kInfinity | std::numeric_limits<Int>::min()));
}

// Returns the maximum of n logits, or NaN if one of them is NaN, from three reductions of their raw bits. Read as
// signed integers, positive floats are above negative ones, and among negative floats the greatest is the lowest
// integer. Read as unsigned integers, negative NaNs are above everything else.
template <typename Type>
CDGEN_INLINE float extreme(const typename Type::Int* bits, int64_t n) {
  using Int = typename Type::Int;
  using UInt = std::make_unsigned_t<Int>;
  Int low = std::numeric_limits<Int>::max(), high = std::numeric_limits<Int>::min();
  UInt top = 0;
  for (int64_t i = 0; i < n; i++) {
    high = std::max(high, bits[i]);
    low = std::min(low, bits[i]);
    top = std::max(top, static_cast<UInt>(bits[i]));
  }
  const bool has_nan = high > Type::kInfinity || top > static_cast<UInt>(key(lowest_key<Type>()));
  return has_nan ? std::numeric_limits<float>::quiet_NaN() : Type::from_bits(high >= 0 ? high : low);
}

// Writes the maxima of groups first .. last-1 of kSize logits.
template <typename Type, int64_t kSize>
CDGEN_INLINE void maxima_of(const void* row, int64_t vocab_size, int64_t first, int64_t last, float* maxima) {
  const auto* bits = static_cast<const typename Type::Int*>(row);
  for (int64_t group = first; group < last; group++) {
    const int64_t begin = group * kSize;
    maxima[group] = begin + kSize <= vocab_size
                        ? extreme<Type>(bits + begin, kSize)  // the constant length lets the compiler unroll
                        : extreme<Type>(bits + begin, vocab_size - begin);
  }
}

template <typename Type>
float allowed_maximum_of(const void* row, int64_t vocab_size, int64_t block, const Bans& bans) {
  using Int = typename Type::Int;
  const int64_t begin = block * kBlock, n = std::min(kBlock, vocab_size - begin);
  Int allowed[kBlock];
  std::memcpy(allowed, static_cast<const Int*>(row) + begin, n * sizeof(Int));
  bans.for_each(begin, begin + n, [&](int64_t id) { allowed[id - begin] = key(lowest_key<Type>()); });
  return extreme<Type>(allowed, n);
}

template <typename Type>
CDGEN_INLINE int hits_of(const void* row, int64_t vocab_size, int64_t block, int32_t least, int32_t* ids) {
  using Int = typename Type::Int;
  const int64_t begin = block * kBlock, n = std::min(kBlock, vocab_size - begin);
  const Int* bits = static_cast<const Int*>(row) + begin;
  alignas(64) uint8_t reached[kBlock] = {};
  if (n == kBlock) {
    for (int64_t i = 0; i < kBlock; i++) reached[i] = key(bits[i]) >= static_cast<Int>(least);
  } else {
    for (int64_t i = 0; i < n; i++) reached[i] = key(bits[i]) >= static_cast<Int>(least);
  }
  int count = 0;
  for (int64_t word = 0; word < n; word += 8) {
    uint64_t eight;
    std::memcpy(&eight, reached + word, sizeof(eight));
    if (eight == 0) continue;
    for (int64_t i = word; i < word + 8; i++)
      if (reached[i]) ids[count++] = static_cast<int32_t>(begin + i);
  }
  return count;
}

CDGEN_CLONES void maxima_f32(const void* row, int64_t v, int64_t first, int64_t last, float* maxima) {
  maxima_of<Float32, kBlock>(row, v, first, last, maxima);
}
CDGEN_CLONES void maxima_f16(const void* row, int64_t v, int64_t first, int64_t last, float* maxima) {
  maxima_of<Float16, kBlock>(row, v, first, last, maxima);
}
CDGEN_CLONES void maxima_bf16(const void* row, int64_t v, int64_t first, int64_t last, float* maxima) {
  maxima_of<BFloat16, kBlock>(row, v, first, last, maxima);
}
CDGEN_CLONES void pieces_f32(const void* row, int64_t v, float* maxima) {
  maxima_of<Float32, kPiece>(row, v, 0, piece_count(v), maxima);
}
CDGEN_CLONES void pieces_f16(const void* row, int64_t v, float* maxima) {
  maxima_of<Float16, kPiece>(row, v, 0, piece_count(v), maxima);
}
CDGEN_CLONES void pieces_bf16(const void* row, int64_t v, float* maxima) {
  maxima_of<BFloat16, kPiece>(row, v, 0, piece_count(v), maxima);
}
CDGEN_CLONES int hits_f32(const void* row, int64_t v, int64_t block, int32_t least, int32_t* ids) {
  return hits_of<Float32>(row, v, block, least, ids);
}
CDGEN_CLONES int hits_16(const void* row, int64_t v, int64_t block, int32_t least, int32_t* ids) {
  return hits_of<Float16>(row, v, block, least, ids);  // bfloat16 keys are computed and compared the same way
}

// Returns the key of the least value of the dtype that reaches a float32 threshold, by bisection over the keys.
template <typename Type>
int32_t least_key(float threshold) {
  int64_t low = lowest_key<Type>(), high = Type::kInfinity;
  while (low < high) {
    const int64_t middle = (low + high) >> 1;
    if (Type::from_bits(key(static_cast<typename Type::Int>(middle))) >= threshold)
      high = middle;
    else
      low = middle + 1;
  }
  return static_cast<int32_t>(low);
}

}  // namespace

void block_maxima(const LogitRow& row, int64_t vocab_size, int64_t first, int64_t last, float* maxima) {
  const auto maxima_of_dtype = row.dtype == ScalarType::Float  ? maxima_f32
                               : row.dtype == ScalarType::Half ? maxima_f16
                                                               : maxima_bf16;
  maxima_of_dtype(row.data, vocab_size, first, last, maxima);
}

void piece_maxima(const LogitRow& row, int64_t vocab_size, float* maxima) {
  const auto maxima_of_dtype = row.dtype == ScalarType::Float  ? pieces_f32
                               : row.dtype == ScalarType::Half ? pieces_f16
                                                               : pieces_bf16;
  maxima_of_dtype(row.data, vocab_size, maxima);
}

float allowed_block_maximum(const LogitRow& row, int64_t vocab_size, int64_t block, const Bans& bans) {
  const auto maximum_of_dtype = row.dtype == ScalarType::Float  ? allowed_maximum_of<Float32>
                                : row.dtype == ScalarType::Half ? allowed_maximum_of<Float16>
                                                                : allowed_maximum_of<BFloat16>;
  return maximum_of_dtype(row.data, vocab_size, block, bans);
}

int32_t threshold_key(ScalarType dtype, float threshold) {
  return dtype == ScalarType::Float  ? least_key<Float32>(threshold)
         : dtype == ScalarType::Half ? least_key<Float16>(threshold)
                                     : least_key<BFloat16>(threshold);
}

int block_hits(const LogitRow& row, int64_t vocab_size, int64_t block, int32_t least, int32_t* ids) {
  return (row.dtype == ScalarType::Float ? hits_f32 : hits_16)(row.data, vocab_size, block, least, ids);
}

}  // namespace cdgen
