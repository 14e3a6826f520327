#include "index/fine_cells.hpp"

#include <algorithm>
#include <cstring>

namespace csrkern {
namespace {

constexpr int64_t kWindow = 65'536;  // documents, so that a number takes two bytes

}  // namespace

FineCells::FineCells(const IndexView& view) : numbers_(view.n_docs) {
  const int64_t windows = (view.n_docs + kWindow - 1) / kWindow;
  const auto part = [&](int64_t doc) {
    return doc / kWindow * kWords + view.fine[doc * view.fine_bytes];
  };
  starts_.assign(windows * kWords + 1, 0);
  for (int64_t doc = 0; doc < view.n_docs; ++doc) ++starts_[part(doc) + 1];
  for (size_t p = 1; p < starts_.size(); ++p) starts_[p] += starts_[p - 1];
  std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
  for (int64_t doc = 0; doc < view.n_docs; ++doc) {
    numbers_[next[part(doc)]++] = static_cast<uint16_t>(doc % kWindow);
  }
}

void FineCells::read(const IndexView& view, int64_t word, std::vector<int64_t>* docs,
                     std::vector<uint8_t>* codes) const {
  docs->clear();
  for (size_t p = word; p + 1 < starts_.size(); p += kWords) {
    const int64_t first = static_cast<int64_t>(p) / kWords * kWindow;
    const int64_t held = docs->size(), more = starts_[p + 1] - starts_[p];
    docs->resize(held + more);
    for (int64_t i = 0; i < more; ++i) (*docs)[held + i] = first + numbers_[starts_[p] + i];
  }
  // Whole steps are faster to copy. What is written too much is overwritten, or cut off; what is
  // read too much is still of the codes.
  constexpr int64_t kCopied = 16;
  const int64_t bytes = view.fine_bytes, all = view.n_docs * bytes;
  codes->resize(docs->size() * bytes + kCopied);
  uint8_t* to = codes->data();
  for (const int64_t doc : *docs) {
    const int64_t from = doc * bytes;
    for (int64_t b = 0; b < bytes; b += kCopied) {
      if (from + b + kCopied <= all) {
        std::memcpy(to + b, view.fine + from + b, kCopied);
      } else {
        std::copy(view.fine + from + b, view.fine + from + bytes, to + b);
      }
    }
    to += bytes;
  }
  codes->resize(docs->size() * bytes);
}

}  // namespace csrkern
