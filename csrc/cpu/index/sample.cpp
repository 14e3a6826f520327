#include "index/sample.hpp"

namespace csrkern {
namespace {

// A larger sample saves less on the way than it costs.
constexpr int64_t kLeastStride = 10, kDocuments = 10'000;
constexpr int32_t kWindow = 8192;

}  // namespace

Sample::Sample(const IndexView& whole, const ForwardIndex& forward, int num_threads)
    : stride_(std::max(kLeastStride, whole.n_docs / kDocuments)), n_docs_(whole.n_docs) {
  OwnedRows rows;
  rows.starts.push_back(0);
  for (int64_t number = 0; number * stride_ < n_docs_; ++number) {
    append_row(forward, whole.terms, document(number), rows);
  }
  const auto n = static_cast<int64_t>(rows.starts.size()) - 1;
  const SparseRows docs{
      n, whole.dim, 0, rows.starts.data(), rows.values.data(), rows.latents.data()};
  built_ = build_index(docs, kWindow, 0, whole.type, false, num_threads, whole.exponent);
  IndexView view{n,
                 whole.dim,
                 kWindow,
                 (n + kWindow - 1) / kWindow,
                 static_cast<int64_t>(built_.terms.size()),
                 whole.type,
                 built_.terms.data(),
                 built_.offsets.data(),
                 built_.postings.data(),
                 built_.checksums.data(),
                 nullptr};
  view.exponent = whole.exponent;
  index_ = std::make_unique<Index>(view, true);
}

int64_t Sample::bytes() const {
  return static_cast<int64_t>(built_.postings.bytes() + built_.offsets.size() * sizeof(uint64_t) +
                              built_.terms.size() * sizeof(int32_t)) +
         index_->forward_bytes() + index_->dense_bytes();
}

}  // namespace csrkern
