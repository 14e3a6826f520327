// The strongest postings of each list, from which fast searches make their shortlists.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "csrkern/index.hpp"

namespace csrkern {

// An index of the same documents and terms whose lists hold one posting for every kDocuments
// documents at most: those of the largest values, equal ones by lower document. A latent that many
// documents have tells them apart where its value is large. Its windows are small: with few
// postings, passing over the scores of all documents takes a sixth of a search.
class StrongLists {
 public:
  static constexpr int64_t kDocuments = 25;
  static constexpr int32_t kWindow = 8192;  // documents at most

  // `whole` has been checked, and its lists are not in groups.
  StrongLists(const IndexView& whole, int num_threads);

  const Index& index() const { return *index_; }
  int64_t bytes() const {
    return static_cast<int64_t>(postings_.bytes() + offsets_.size() * sizeof(uint64_t)) +
           index_->forward_bytes();
  }

 private:
  std::vector<uint64_t> offsets_;
  Buffer postings_;
  std::unique_ptr<Index> index_;
};

}  // namespace csrkern
