#include "index/fine_cells.hpp"

#include <algorithm>

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
    for (int64_t i = starts_[p]; i < starts_[p + 1]; ++i) docs->push_back(first + numbers_[i]);
  }
  const int64_t bytes = view.fine_bytes;
  codes->resize(docs->size() * bytes);
  uint8_t* to = codes->data();
  for (const int64_t doc : *docs) {
    const uint8_t* from = view.fine + doc * bytes;
    to = std::copy(from, from + bytes, to);
  }
}

}  // namespace csrkern
