// Slices of posting lists whose postings stand in groups of equal values.
//
// Values of 16 numbers need no place of their own: a slice holds how many postings have number 0,
// 1, ..., 15 (bytes if the slice has fewer than 256, else uint16), then the local document numbers
// (uint16), group by group, ascending in each. Offsets count words of 16 bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace csrkern {

// Always inlined, so that no file compiled for one instruction set lends its copy to others.
#define CSRKERN_INLINE inline __attribute__((always_inline))

constexpr int kGroups = 16;
constexpr uint64_t kShortSlice = 256;
constexpr int32_t kMostGrouped = 65'472;  // documents of a window: a group's count has 16 bits

// Returns the words of a slice of n postings; an empty one has none.
CSRKERN_INLINE uint64_t words_of_postings(uint64_t n) {
  return n == 0 ? 0 : n + (n < kShortSlice ? kGroups / 2 : kGroups);
}

// The inverse; of other numbers of words, any that words_of_postings() does not map back.
CSRKERN_INLINE uint64_t postings_of_words(uint64_t words) {
  if (words >= kShortSlice + kGroups / 2) return words - kGroups;
  return words <= kGroups / 2 ? 0 : words - kGroups / 2;
}

// A slice of n > 0 postings.
class GroupedSlice {
 public:
  CSRKERN_INLINE GroupedSlice(const uint8_t* slice, uint64_t n)
      : counts_(slice), is_short_(n < kShortSlice) {}

  CSRKERN_INLINE uint32_t count(int number) const {
    if (is_short_) return counts_[number];
    uint16_t count;
    std::memcpy(&count, counts_ + 2 * number, 2);
    return count;
  }
  // Document numbers of all groups.
  CSRKERN_INLINE const uint8_t* ids() const {
    return counts_ + (is_short_ ? kGroups : 2 * kGroups);
  }

 private:
  const uint8_t* counts_;
  bool is_short_;
};

#undef CSRKERN_INLINE

}  // namespace csrkern
