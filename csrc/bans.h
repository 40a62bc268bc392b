// The banned tokens of a row as a set of bits, one word for every 64 tokens.
#pragma once
#include <cstdint>
#include <vector>

namespace cdgen {

class Bans {
 public:
  // Replaces the set by those of `count` ids that lie within the vocabulary.
  void set(const int64_t* ids, int64_t count, int64_t vocab_size) {
    empty_ = true;
    for (int64_t i = 0; i < count; i++) {
      const uint64_t id = static_cast<uint64_t>(ids[i]);  // negative ids are padding
      if (id >= static_cast<uint64_t>(vocab_size)) continue;
      if (empty_) words_.assign((vocab_size + 63) / 64, 0);
      empty_ = false;
      words_[id >> 6] |= uint64_t{1} << (id & 63);
    }
  }

  bool empty() const { return empty_; }
  bool contains(int64_t token) const { return !empty_ && (words_[token >> 6] >> (token & 63) & 1) != 0; }

  // Returns whether a token from `first` to `last` - 1 is banned; `first` is a multiple of 64.
  bool any(int64_t first, int64_t last) const {
    uint64_t found = 0;
    if (!empty_)
      for (int64_t from = first; from < last; from += 64) found |= words_[from >> 6];
    return found != 0;
  }

  // Calls visit(id) for every banned token from `first` to `last` - 1, in ascending order; `first` is a multiple of 64.
  template <typename Visit>
  void for_each(int64_t first, int64_t last, Visit visit) const {
    if (empty_) return;
    for (int64_t from = first; from < last; from += 64)
      for (uint64_t word = words_[from >> 6]; word != 0; word &= word - 1) visit(from + __builtin_ctzll(word));
  }

 private:
  std::vector<uint64_t> words_;
  bool empty_ = true;
};

}  // namespace cdgen
