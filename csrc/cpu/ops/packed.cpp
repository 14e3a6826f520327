#include "csrkern/packed.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "csrkern/parallel.hpp"

namespace csrkern {
namespace {

constexpr int64_t kScaleBits = 8, kRowsAtOnce = 1024;
// So many entries take longer to sort than to count for each how many are below it.
constexpr int64_t kSortedByCounting = 128;
// 2^(-i / 8)
constexpr float kEighths[8] = {1.0f,        0.917004043f, 0.840896415f, 0.771105413f,
                               0.70710678f, 0.648419777f, 0.594603558f, 0.545253866f};

float scale_of(float largest, int byte) {
  float power = 1.0f;
  for (int i = 0; i < byte / 8; ++i) power *= 0.5f;
  return largest * (kEighths[byte % 8] * power);
}

// The bits of a row in words, with one extra word, so that reading past a field is safe.
class Bits {
 public:
  explicit Bits(int64_t row_bytes) : bytes_(row_bytes), words_((row_bytes + 7) / 8 + 1) {}

  void clear() { std::fill(words_.begin(), words_.end(), 0); }
  void load(const uint8_t* row) { std::memcpy(words_.data(), row, bytes_); }
  void store(uint8_t* row) const { std::memcpy(row, words_.data(), bytes_); }

  // A field of at most 32 bits; the bits it goes to must be 0.
  void put(int64_t at, int bits, uint64_t field) {
    const int shift = at & 63;
    words_[at >> 6] |= field << shift;
    if (shift + bits > 64) words_[(at >> 6) + 1] |= field >> (64 - shift);
  }

  // n fields of `bits` bits, one after the other from `at` on; the bits after them must be 0.
  template <class Field>
  void put_all(int64_t at, int bits, int64_t n, const Field& field_of) {
    int64_t word = at >> 6;
    int filled = at & 63;
    uint64_t open = words_[word];
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t field = field_of(i);
      open |= field << filled;
      filled += bits;
      if (filled < 64) continue;
      filled -= 64;
      words_[word++] = open;
      open = field >> (bits - filled);
    }
    words_[word] |= open;
  }

  uint64_t get(int64_t at, int bits) const {
    const int shift = at & 63;
    uint64_t field = words_[at >> 6] >> shift;
    if (shift + bits > 64) field |= words_[(at >> 6) + 1] << (64 - shift);
    return field & ((uint64_t{1} << bits) - 1);
  }

  // Returns the position of the next one at or after `at`, or `end`.
  int64_t next_one(int64_t at, int64_t end) const {
    uint64_t word = words_[at >> 6] & (~uint64_t{0} << (at & 63));
    while (word == 0) {
      at = ((at >> 6) + 1) << 6;
      if (at >= end) return end;
      word = words_[at >> 6];
    }
    return std::min<int64_t>(((at >> 6) << 6) + __builtin_ctzll(word), end);
  }

 private:
  int64_t bytes_;
  std::vector<uint64_t> words_;
};

int64_t unary_bits(const PackedForm& form) { return form.k + ((form.dim - 1) >> form.low_bits); }

struct Entry {
  int32_t latent;
  int level;
};

// Packs and unpacks one row at a time; the scratch memory of a thread.
class Row {
 public:
  Row(const PackedForm& form, float largest)
      : form_(form),
        low_(kScaleBits + unary_bits(form)),
        levels_(low_ + form.k * form.low_bits),
        bits_(form.row_bytes),
        latents_(form.k),
        entries_(form.k),
        unsorted_(form.k),
        starts_((size_t{1} << form.value_bits) + 1) {
    for (int byte = 0; byte < 256; ++byte) scales_[byte] = scale_of(largest, byte);
  }

  // Returns whether these are the values and latents of a code.
  bool pack(const float* values, const int32_t* indices, uint8_t* row) {
    const float top = (1 << form_.value_bits) - 1;
    const float strongest = *std::max_element(values, values + form_.k);
    const auto below = [](float scale, float value) { return scale < value; };
    const float* above =
        std::lower_bound(std::rbegin(scales_), std::rend(scales_), strongest, below)
            .base();  // one after the smallest scale that is not below it
    const int byte = std::max<int>(static_cast<int>(above - scales_) - 1, 0);
    int64_t n = 0;
    for (int64_t s = 0; s < form_.k; ++s) {
      if (values[s] == 0) continue;
      if (values[s] < 0 || indices[s] < 0 || indices[s] >= form_.dim) return false;
      const float level = values[s] / scales_[byte] * top + 0.5f;
      latents_[n] = indices[s];
      entries_[n++] = {indices[s], static_cast<int>(std::min(std::max(level, 1.0f), top))};
    }
    if (!sort(n)) return false;
    const Entry padding{n == 0 ? 0 : entries_[n - 1].latent, 0};
    std::fill(entries_.begin() + n, entries_.end(), padding);
    bits_.clear();
    bits_.put(0, kScaleBits, byte);
    for (int64_t s = 0; s < form_.k; ++s) {
      bits_.put(kScaleBits + (entries_[s].latent >> form_.low_bits) + s, 1, 1);
    }
    const uint64_t low = (uint64_t{1} << form_.low_bits) - 1;
    bits_.put_all(low_, form_.low_bits, form_.k,
                  [&](int64_t s) { return static_cast<uint64_t>(entries_[s].latent) & low; });
    bits_.put_all(levels_, form_.value_bits, form_.k,
                  [&](int64_t s) { return static_cast<uint64_t>(entries_[s].level); });
    bits_.store(row);
    return true;
  }

  // Returns whether `pack` can have written the row.
  bool unpack(const uint8_t* row, float* values, int32_t* indices) {
    bits_.load(row);
    std::fill(starts_.begin(), starts_.end(), 0);
    const float scale = scales_[bits_.get(0, kScaleBits)];
    const int top = (1 << form_.value_bits) - 1;
    int64_t at = kScaleBits, n = 0;
    for (int64_t s = 0; s < form_.k; ++s) {
      at = bits_.next_one(at, low_);
      if (at == low_) return false;
      const int64_t high = at++ - kScaleBits - s;
      const int64_t latent =
          (high << form_.low_bits) | bits_.get(low_ + s * form_.low_bits, form_.low_bits);
      const int level =
          static_cast<int>(bits_.get(levels_ + s * form_.value_bits, form_.value_bits));
      if (latent >= form_.dim) return false;
      if (level == 0) continue;
      if (n < s || (n > 0 && latent <= entries_[n - 1].latent)) return false;
      entries_[n++] = {static_cast<int32_t>(latent), level};
      ++starts_[top - level + 1];
    }
    for (int i = 0; i < top; ++i) starts_[i + 1] += starts_[i];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t place = starts_[top - entries_[i].level]++;
      values[place] = scale * static_cast<float>(entries_[i].level) / static_cast<float>(top);
      indices[place] = entries_[i].latent;
    }
    std::fill(values + n, values + form_.k, 0.0f);
    std::fill(indices + n, indices + form_.k, 0);
    return true;
  }

 private:
  // Sorts the first n entries by latent. Returns false if one repeats.
  bool sort(int64_t n) {
    if (n <= kSortedByCounting) {
      std::copy_n(entries_.begin(), n, unsorted_.begin());
      std::fill_n(entries_.begin(), n, Entry{-1, 0});  // stays where a latent repeats
      for (int64_t i = 0; i < n; ++i) {
        int32_t below = 0;
        for (int64_t j = 0; j < n; ++j) below += latents_[j] < latents_[i];
        entries_[below] = unsorted_[i];
      }
    } else {
      std::sort(entries_.begin(), entries_.begin() + n,
                [](const Entry& a, const Entry& b) { return a.latent < b.latent; });
    }
    int32_t last = -1;
    for (int64_t i = 0; i < n; last = entries_[i++].latent) {
      if (entries_[i].latent <= last) return false;
    }
    return true;
  }

  const PackedForm& form_;
  const int64_t low_, levels_;  // where these fields begin
  Bits bits_;
  std::vector<int32_t> latents_;
  std::vector<Entry> entries_, unsorted_;
  std::vector<int64_t> starts_;  // of levels, the highest first
  float scales_[256];
};

// Returns the first of n rows for which done(row, i) is false, or n.
template <typename Done>
int64_t each_row(int64_t n, const PackedForm& form, float largest, int num_threads,
                 const Done& done) {
  std::atomic<int64_t> bad{n};
  parallel_for(n, kRowsAtOnce, num_threads, [&](int64_t begin, int64_t end, int) {
    Row row(form, largest);
    for (int64_t i = begin; i < end; ++i) {
      if (done(row, i)) continue;
      int64_t first = bad.load();
      while (i < first && !bad.compare_exchange_weak(first, i)) {
      }
      return;
    }
  });
  return bad;
}

}  // namespace

PackedForm packed_form(int64_t k, int64_t dim, int value_bits) {
  PackedForm form{k, dim, value_bits, 0, 0};
  const auto bits = [&](int low) { return k * (low + 1) + ((dim - 1) >> low); };
  while (bits(form.low_bits + 1) < bits(form.low_bits)) ++form.low_bits;
  form.row_bytes = (kScaleBits + bits(form.low_bits) + k * value_bits + 7) / 8;
  return form;
}

int64_t pack(const Codes& codes, const PackedForm& form, float largest, uint8_t* rows,
             int num_threads) {
  return each_row(codes.n, form, largest, num_threads, [&](Row& row, int64_t i) {
    return row.pack(codes.values + i * form.k, codes.indices + i * form.k,
                    rows + i * form.row_bytes);
  });
}

int64_t unpack(const uint8_t* rows, int64_t n, const PackedForm& form, float largest, float* values,
               int32_t* indices, int num_threads) {
  return each_row(n, form, largest, num_threads, [&](Row& row, int64_t i) {
    return row.unpack(rows + i * form.row_bytes, values + i * form.k, indices + i * form.k);
  });
}

}  // namespace csrkern
