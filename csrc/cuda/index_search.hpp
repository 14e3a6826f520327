// Scores of one query in one block of documents, and the hits among them.
//
// Sums of impacts in int32, which are never too small, choose the documents that are scored
// exactly. A document is chosen when its sum passes the query's threshold. Other thread blocks
// raise the threshold; an older, lower one lets more documents pass and loses none.
#pragma once

#include "index_keys.hpp"

namespace csrkern::cuda {

// Documents, and entries of the query, that are scored at once.
constexpr uint32_t kDocs = 64;
constexpr uint32_t kEntries = 32;
constexpr uint32_t kPitch = kEntries + 1;  // no two rows in one bank
// Terms in the table of a gather scan at once, and slots of that table.
constexpr uint32_t kTerms = 256;
constexpr uint32_t kSlots = 512;
// Buckets of sums: as many for each power of two as there are powers.
constexpr uint32_t kOctaves = 32;
constexpr uint32_t kBuckets = kOctaves * kOctaves;

// Returns the bucket of a sum above 0: its exponent and the next five bits.
CSRKERN_DEVICE uint32_t bucket_of(uint32_t sum) {
  const uint32_t exact = sum >> 24 == 0 ? sum : sum & ~255u;  // in 24 bits
  return (bits_of(static_cast<float>(exact)) >> 18) - 127 * kOctaves;
}

// Returns the least sum of a bucket.
CSRKERN_DEVICE uint32_t least_of_bucket(uint32_t bucket) {
  return static_cast<uint32_t>(float_of((bucket + 127 * kOctaves) << 18));
}

template <int kBits>
struct SearchBlocks {
  static constexpr const char* kName = "search_blocks";
  static constexpr int kThreads = 512;
  // As many as fit in the shared memory of an H100; two fit on sm_80.
  static constexpr int kPerProcessor = 3;
  static constexpr uint32_t kWarps = kThreads / 32;

  IndexArrays index;
  Batch batch;
  uint32_t first_block;
  uint32_t n_blocks;
  uint32_t lanes_per_row;  // of a gather scan, a power of two up to 32
  float gather_above;      // gather if there are more postings than this times the entries
  const uint8_t* allowed;  // as SearchRequest::allowed
  int64_t allowed_stride;
  uint64_t* work;  // [4] as Work, or null: not counted

  struct Shared {
    TopKeys top;
    uint32_t threshold;
    uint32_t postings;
    uint32_t n_long;  // lists that all warps walk together
    uint32_t n_candidates;
    uint32_t published;  // where in the query's keys
    uint16_t candidates[kTile];
    float sums[kDocs];
    union {
      float products[kDocs * kPitch];
      struct {
        double scales[kSlots];
        int32_t latents[kSlots];
      } table;
    };
  };

  static size_t shared_bytes(uint32_t block, uint32_t top_k) {
    return sizeof(Shared) + sizeof(uint64_t) * key_capacity(top_k) + sizeof(uint32_t) * block;
  }

  // All queries of a block of documents follow each other, so that its lists are read from memory
  // once and then from the L2 cache.
  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    One one{*this, threads, *threads.shared<Shared>()};
    one.keys = threads.shared<uint64_t>(sizeof(Shared));
    one.sums =
        threads.shared<uint32_t>(sizeof(Shared) + sizeof(uint64_t) * key_capacity(batch.top_k));
    threads.phase([&](uint32_t t) {
      for (uint32_t i = t; i < index.block; i += kThreads) one.sums[i] = 0;
      if (t == 0) one.shared.postings = one.shared.n_long = 0;
    });
    const uint32_t n_items = batch.n_queries * n_blocks;
    for (uint32_t item = threads.index(); item < n_items; item += threads.grid()) {
      one.q = item % batch.n_queries;
      one.search(first_block + item / batch.n_queries);
    }
  }

 private:
  // One query in one block of documents at a time.
  struct One {
    const SearchBlocks& job;
    ThreadBlock& threads;
    Shared& shared;
    uint64_t* keys = nullptr;
    uint32_t* sums = nullptr;  // [index.block], 0 between searches
    uint32_t q = 0;
    uint32_t number = 0;  // of the block of documents
    uint32_t first_doc = 0;
    uint32_t n_docs = 0;
    uint32_t n_long = 0;
    QueryFacts facts{};
    const Entry* entries = nullptr;
    const uint32_t* weights = nullptr;

    CSRKERN_DEVICE void search(uint32_t number_of_block) {
      number = number_of_block;
      first_doc = number * job.index.block;
      n_docs = job.index.n_docs - first_doc;
      if (n_docs > job.index.block) n_docs = job.index.block;
      facts = job.batch.facts[q];
      if (facts.n_entries == 0) return;
      entries = job.batch.entries + static_cast<uint64_t>(q) * job.batch.slots;
      weights = job.batch.weights + static_cast<uint64_t>(q) * job.batch.slots;

      threads.phase([&](uint32_t t) {
        if (t == 0) {
          shared.top = {0, fresh(job.batch.bars + q)};
          shared.threshold = threshold_of(facts, float_of(shared.top.bar));
          shared.n_candidates = 0;
        }
        for (uint32_t i = t; i < facts.n_entries; i += kThreads) {
          const uint32_t* list = list_of(job.index, number, entries[i].latent);
          if (list[1] != list[0]) atomic_add(&shared.postings, list[1] - list[0]);
          if (list[1] - list[0] > kThreads) atomic_add(&shared.n_long, 1u);
        }
      });
      n_long = shared.n_long;
      const uint32_t postings = threads.uniform(shared.postings);
      if (postings == 0) return;
      const uint32_t* starts = job.index.starts;
      const uint32_t n_entries = starts[first_doc + n_docs] - starts[first_doc];
      const bool gather = static_cast<float>(postings) > job.gather_above * n_entries;
      if (gather) {
        gather_scan();
      } else {
        threads.phase([&](uint32_t t) {
          const uint32_t threshold = shared.threshold;
          each_posting(t, [&](uint32_t doc, uint32_t impact, uint32_t weight) {
            add(doc, high_product(impact, weight) + 1, threshold);
          });
        });
      }
      const bool many = threads.uniform(shared.n_candidates) > kTile;
      if (many) {
        search_sums();
      } else {
        score_candidates();
      }
      publish();
      // Postings are read again to clear their sums, unless clearing all sums is less work: four
      // per instruction, without reads.
      const bool clear_all = gather || many || postings > job.index.block / 8;
      threads.phase([&](uint32_t t) {
        if (t == 0) {
          shared.postings = shared.n_long = 0;
          if (job.work != nullptr) count_work(gather, postings, n_entries);
        }
        if (clear_all) {
          for (uint32_t i = t; i < n_docs; i += kThreads) sums[i] = 0;
        } else {
          each_posting(t, [&](uint32_t doc, uint32_t, uint32_t) { put_same(&sums[doc], 0); });
        }
      });
    }

    // Calls body(document, impact in the upper bits, weight) for this thread's share of the query's
    // lists: one warp for each list, all warps for each long list.
    template <class Body>
    CSRKERN_DEVICE void each_posting(uint32_t t, const Body& body) const {
      for (uint32_t i = t / 32; i < facts.n_entries; i += kWarps) {
        const uint32_t* list = list_of(job.index, number, entries[i].latent);
        if (list[1] - list[0] > kThreads) continue;
        for (uint32_t p = list[0] + t % 32; p < list[1]; p += 32) posting(p, weights[i], body);
      }
      if (n_long == 0) return;  // the loop below would cost more than the one above
      for (uint32_t i = 0; i < facts.n_entries; ++i) {
        const uint32_t* list = list_of(job.index, number, entries[i].latent);
        if (list[1] - list[0] <= kThreads) continue;
        for (uint32_t p = list[0] + t; p < list[1]; p += kThreads) posting(p, weights[i], body);
      }
    }

    template <class Body>
    CSRKERN_DEVICE void posting(uint32_t p, uint32_t weight, const Body& body) const {
      if constexpr (kBits == 16) {
        const uint32_t word = job.index.words[p];
        body(word & 0xffff, word & 0xffff0000, weight);
      } else {
        body(job.index.numbers[p], static_cast<uint32_t>(job.index.impacts[p]) << 24, weight);
      }
    }

    // A document passes the threshold only once, since sums grow.
    CSRKERN_DEVICE void add(uint32_t doc, uint32_t amount, uint32_t threshold) {
      const uint32_t before = atomic_add(&sums[doc], amount);
      if (before < threshold && before + amount >= threshold) choose(doc);
    }

    CSRKERN_DEVICE bool may_find(uint32_t doc) const {
      return job.allowed == nullptr || job.allowed[q * job.allowed_stride + first_doc + doc] != 0;
    }

    CSRKERN_DEVICE void choose(uint32_t doc) {
      if (!may_find(doc)) return;
      const uint32_t slot = atomic_add(&shared.n_candidates, 1u);
      if (slot < kTile) shared.candidates[slot] = static_cast<uint16_t>(doc);
    }

    // Reads the documents instead of the lists and looks up their latents among the query's.
    CSRKERN_DEVICE void gather_scan() {
      for (uint32_t begin = 0; begin < facts.n_entries; begin += kTerms) {
        const uint32_t end = facts.n_entries - begin < kTerms ? facts.n_entries : begin + kTerms;
        threads.phase([&](uint32_t t) {
          for (uint32_t i = t; i < kSlots; i += kThreads) shared.table.latents[i] = -1;
        });
        threads.phase([&](uint32_t t) {
          for (uint32_t i = begin + t; i < end; i += kThreads) {
            uint32_t slot = slot_of(entries[i].latent);
            while (atomic_swap_if(&shared.table.latents[slot], -1, entries[i].latent) != -1) {
              slot = (slot + 1) % kSlots;
            }
            shared.table.scales[slot] = entries[i].value * facts.steps_per_score * (1 + 1e-12);
          }
        });
        threads.phase([&](uint32_t t) {
          const uint32_t lanes = job.lanes_per_row, threshold = shared.threshold;
          for (uint32_t doc = t / lanes; doc < n_docs; doc += kThreads / lanes) {
            const uint32_t* row = job.index.starts + first_doc + doc;
            for (uint32_t e = row[0] + t % lanes; e < row[1]; e += lanes) {
              gather_one(doc, e, threshold);
            }
          }
        });
      }
    }

    CSRKERN_DEVICE static uint32_t slot_of(int32_t latent) {
      return static_cast<uint32_t>(latent) * 2654435769u >> 23;
    }

    CSRKERN_DEVICE void gather_one(uint32_t doc, uint32_t entry, uint32_t threshold) {
      const int32_t latent = static_cast<int32_t>(latent_at(job.index, entry));
      // Up to the next free slot: an unchecked query may repeat a latent.
      for (uint32_t slot = slot_of(latent); shared.table.latents[slot] != -1;
           slot = (slot + 1) % kSlots) {
        if (shared.table.latents[slot] != latent) continue;
        const double amount = value_at(job.index, entry) * shared.table.scales[slot];
        add(doc, static_cast<uint32_t>(amount) + 1, threshold);
      }
    }

    // For more candidates than there is room for. Raises the threshold to what the top_k-th largest
    // of the maxima of disjoint sets of documents guarantees, then searches the sums for documents
    // that reach it; in tiles, if these are still too many. Maxima are counted in buckets, whose
    // least sum is at most a 32nd below the greatest: to sort them would take ten times as long.
    CSRKERN_DEVICE void search_sums() {
      const uint32_t top_k = job.batch.top_k;
      const uint32_t n_sets = top_k <= kThreads ? kThreads : 2 * kThreads;
      auto* buckets = reinterpret_cast<uint32_t*>(keys);
      uint32_t* octaves = buckets + kBuckets;
      threads.phase([&](uint32_t t) {
        for (uint32_t i = t; i < kBuckets; i += kThreads) buckets[i] = 0;
      });
      threads.phase([&](uint32_t t) {
        for (uint32_t set = t; set < n_sets; set += kThreads) {
          uint32_t largest = 0;
          for (uint32_t doc = set; doc < n_docs; doc += n_sets) {
            if (sums[doc] > largest && may_find(doc)) largest = sums[doc];
          }
          if (largest > 0) atomic_add(&buckets[bucket_of(largest)], 1u);
        }
      });
      threads.phase([&](uint32_t t) {
        if (t >= kOctaves) return;
        uint32_t n = 0;
        for (uint32_t i = 0; i < kOctaves; ++i) {  // no two threads in one bank
          n += buckets[t * kOctaves + (t + i) % kOctaves];
        }
        octaves[t] = n;
      });
      threads.phase([&](uint32_t t) {
        if (t != 0) return;
        const uint32_t sum = sum_of_kth(buckets, octaves, top_k);
        uint32_t guaranteed = sum > 0 ? threshold_below(facts, sum) : 0;
        // Sums above that of the greatest score are ties.
        const uint32_t greatest = threshold_of(facts, job.batch.most_score);
        if (guaranteed > greatest) guaranteed = greatest;
        if (guaranteed > shared.threshold) shared.threshold = guaranteed;
        shared.n_candidates = 0;
      });
      threads.phase([&](uint32_t t) {
        for (uint32_t doc = t; doc < n_docs; doc += kThreads) {
          if (sums[doc] >= shared.threshold) choose(doc);
        }
      });
      if (threads.uniform(shared.n_candidates) <= kTile) {
        score_candidates();
        return;
      }
      for (uint32_t begin = 0; begin < n_docs; begin += kTile) {
        threads.phase([&](uint32_t t) {
          if (t == 0) shared.n_candidates = 0;
        });
        threads.phase([&](uint32_t t) {
          for (uint32_t doc = begin + t; doc < n_docs && doc < begin + kTile; doc += kThreads) {
            if (sums[doc] >= shared.threshold) choose(doc);
          }
        });
        score_candidates();
        threads.phase([&](uint32_t t) {
          if (t != 0) return;
          const uint32_t risen = threshold_of(facts, float_of(shared.top.bar));
          if (risen > shared.threshold) shared.threshold = risen;
        });
      }
    }

    // Returns a sum that k of those in buckets reach; 0 if there are fewer.
    CSRKERN_DEVICE static uint32_t sum_of_kth(const uint32_t* buckets, const uint32_t* octaves,
                                              uint32_t k) {
      uint32_t above = 0, octave = kOctaves;
      while (octave > 0 && above + octaves[octave - 1] < k) above += octaves[--octave];
      if (octave == 0) return 0;
      uint32_t bucket = octave * kOctaves;
      do {
        above += buckets[--bucket];
      } while (above < k);
      return least_of_bucket(bucket);
    }

    // Finds the float32 score of the CPU index, in its order: products are rounded, then added.
    CSRKERN_DEVICE void score_candidates() {
      const uint32_t n = threads.uniform(shared.n_candidates);
      for (uint32_t begin = 0; begin < n; begin += kDocs) {
        const uint32_t docs = n - begin < kDocs ? n - begin : kDocs;
        for (uint32_t first = 0; first < facts.n_entries; first += kEntries) {
          const uint32_t terms =
              facts.n_entries - first < kEntries ? facts.n_entries - first : kEntries;
          threads.phase([&](uint32_t t) {
            for (uint32_t i = t; i < docs * kEntries; i += kThreads) {
              const uint32_t d = i / kEntries, e = i % kEntries;
              if (e >= terms) continue;
              const Entry entry = entries[first + e];
              const uint32_t doc = first_doc + shared.candidates[begin + d];
              const float value = find_value(job.index, doc, entry.latent);
              shared.products[d * kPitch + e] = entry.value * value;
            }
          });
          threads.phase([&](uint32_t t) {
            if (t >= docs) return;
            float score = first == 0 ? 0.0f : shared.sums[t];
            for (uint32_t e = 0; e < terms; ++e) score += shared.products[t * kPitch + e];
            shared.sums[t] = score;
            if (first + terms < facts.n_entries) return;
            if (score > job.batch.most_score) score = job.batch.most_score;
            const uint32_t doc = first_doc + shared.candidates[begin + t];
            push_key(shared.top, keys, key_of(bits_of(score), doc));
          });
        }
      }
      keep_best<kThreads>(threads, shared.top, keys, job.batch.top_k);
    }

    // Adds the hits to those of the query; top_k of them raise its bar for all thread blocks.
    CSRKERN_DEVICE void publish() {
      const uint32_t n = threads.uniform(shared.top.n);
      if (n == 0) return;
      threads.phase([&](uint32_t t) {
        if (t != 0) return;
        shared.published = atomic_add(job.batch.n_keys + q, n);
        if (n == job.batch.top_k) atomic_max(job.batch.bars + q, shared.top.bar);
      });
      uint64_t* found = job.batch.keys + static_cast<uint64_t>(q) * job.batch.keys_pitch;
      threads.phase([&](uint32_t t) {
        for (uint32_t i = t; i < n; i += kThreads) found[shared.published + i] = keys[i];
      });
    }

    CSRKERN_DEVICE void count_work(bool gather, uint32_t postings, uint32_t n_entries) const {
      atomic_add(job.work + (gather ? 1 : 0), uint64_t{1});
      if (gather) {
        atomic_add(job.work + 3, static_cast<uint64_t>(n_entries));
      } else {
        atomic_add(job.work + 2, static_cast<uint64_t>(postings));
      }
    }
  };
};

}  // namespace csrkern::cuda
