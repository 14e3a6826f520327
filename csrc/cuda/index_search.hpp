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
constexpr uint32_t kPlaces = 128;          // of the table of these entries
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

// Sums that one instruction reads or writes.
struct alignas(16) Four {
  uint32_t at[4];
};

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

  struct alignas(sizeof(Four)) Shared {
    TopKeys top;
    uint32_t threshold;
    uint32_t postings;
    uint32_t n_long;  // lists that all warps walk together
    uint32_t n_candidates;
    uint32_t published;  // where in the query's keys
    uint16_t candidates[kTile];
    float sums[kDocs];
    // Entries of the query by latent, while documents are scored.
    struct {
      int32_t latents[kPlaces];
      float values[kPlaces];
      uint8_t numbers[kPlaces];
    } wanted;
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
      one.each_four(t, [](uint32_t, Four& four) { four = {}; });
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
      if (threads.uniform(shared.n_candidates) > kTile) {
        search_sums();
      } else {
        score_candidates();
      }
      publish();
      // All of them, four an instruction: to read the postings again takes more, and waits.
      threads.phase([&](uint32_t t) {
        if (t == 0) {
          shared.postings = shared.n_long = 0;
          if (job.work != nullptr) count_work(gather, postings, n_entries);
        }
        each_four(t, [](uint32_t, Four& four) { four = {}; });
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
      auto* buckets = reinterpret_cast<uint32_t*>(keys);
      uint32_t* octaves = buckets + kBuckets;
      uint32_t* found = octaves + kOctaves;  // octave of the top_k-th largest, how many are above
      threads.phase([&](uint32_t t) {
        for (uint32_t i = t; i < kBuckets; i += kThreads) buckets[i] = 0;
      });
      threads.phase([&](uint32_t t) {
        Four largest{};  // of four sets a thread
        each_four(t, [&](uint32_t doc, const Four& four) {
          for (uint32_t i = 0; i < 4; ++i) {
            if (four.at[i] > largest.at[i] && may_find(doc + i)) largest.at[i] = four.at[i];
          }
        });
        for (const uint32_t sum : largest.at) {
          if (sum > 0) atomic_add(&buckets[bucket_of(sum)], 1u);
        }
      });
      threads.phase([&](uint32_t t) {
        if (t >= kOctaves) return;
        if (t == 0) found[0] = kOctaves;
        uint32_t n = 0;
        CSRKERN_UNROLL
        for (uint32_t i = 0; i < kOctaves; ++i) {  // no two threads in one bank
          n += buckets[t * kOctaves + (t + i) % kOctaves];
        }
        octaves[t] = n;
      });
      threads.phase([&](uint32_t t) {
        if (t >= kOctaves) return;
        uint32_t above = 0;
        if (!holds_kth(octaves, t, top_k, &above)) return;
        found[0] = t;
        found[1] = above;
      });
      threads.phase([&](uint32_t t) {
        if (t == 0) shared.n_candidates = 0;
        if (t >= kOctaves || found[0] == kOctaves) return;  // there are fewer than top_k
        const uint32_t first = found[0] * kOctaves;
        uint32_t above = found[1];
        if (!holds_kth(buckets + first, t, top_k, &above)) return;
        uint32_t guaranteed = threshold_below(facts, least_of_bucket(first + t));
        // Sums above that of the greatest score are ties.
        const uint32_t greatest = threshold_of(facts, job.batch.most_score);
        if (guaranteed > greatest) guaranteed = greatest;
        if (guaranteed > shared.threshold) shared.threshold = guaranteed;
      });
      threads.phase([&](uint32_t t) {
        const uint32_t threshold = shared.threshold;
        each_four(t, [&](uint32_t doc, const Four& four) {
          bool some = false;
          for (const uint32_t sum : four.at) some |= sum >= threshold;
          if (!some) return;
          CSRKERN_ROLLED
          for (uint32_t i = 0; i < 4; ++i) {
            if (sums[doc + i] >= threshold) choose(doc + i);
          }
        });
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

    // Returns whether the k-th largest is in bucket t of kOctaves, with *above larger than all of
    // these; adds to them what is in buckets after t.
    CSRKERN_DEVICE static bool holds_kth(const uint32_t* counts, uint32_t t, uint32_t k,
                                         uint32_t* above) {
      uint32_t n = *above;
      CSRKERN_UNROLL
      for (uint32_t i = 0; i < kOctaves; ++i) n += i > t ? counts[i] : 0;
      *above = n;
      return n < k && n + counts[t] >= k;
    }

    // Calls body(doc, sums of it and the next three) for this thread's share of the block; sums
    // beyond its last document are 0.
    template <class Body>
    CSRKERN_DEVICE void each_four(uint32_t t, const Body& body) const {
      for (uint32_t doc = 4 * t; doc < job.index.block; doc += 4 * kThreads) {
        body(doc, *reinterpret_cast<Four*>(sums + doc));
      }
    }

    // Finds the float32 score of the CPU index, in its order: products are rounded, then added.
    // Reads the codes of the documents and looks their latents up among the query's: to search each
    // code for each latent of the query takes five loads that wait for each other.
    CSRKERN_DEVICE void score_candidates() {
      const uint32_t n = threads.uniform(shared.n_candidates);
      for (uint32_t begin = 0; begin < n; begin += kDocs) {
        const uint32_t docs = n - begin < kDocs ? n - begin : kDocs;
        uint32_t lanes = 32;  // of a document
        while (lanes * docs > kThreads) lanes /= 2;
        for (uint32_t first = 0; first < facts.n_entries; first += kEntries) {
          const uint32_t terms =
              facts.n_entries - first < kEntries ? facts.n_entries - first : kEntries;
          if (begin == 0 || facts.n_entries > kEntries) want(first, terms);
          threads.phase([&](uint32_t t) {
            const uint32_t d = t / lanes;
            if (d >= docs) return;
            const uint32_t* row = job.index.starts + first_doc + shared.candidates[begin + d];
            for (uint32_t e = row[0] + t % lanes; e < row[1]; e += lanes) multiply(d, e);
          });
          threads.phase([&](uint32_t t) {
            if (t >= docs) return;
            float score = first == 0 ? 0.0f : shared.sums[t];
            for (uint32_t e = 0; e < terms; ++e) {
              float& product = shared.products[t * kPitch + e];
              score += product;
              product = 0;
            }
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

    // Makes the table of entries of the query; the first time, clears the products as well.
    CSRKERN_DEVICE void want(uint32_t first, uint32_t terms) {
      threads.phase([&](uint32_t t) {
        if (t < kPlaces) shared.wanted.latents[t] = -1;
        if (first > 0) return;
        for (uint32_t i = t; i < kDocs * kPitch; i += kThreads) shared.products[i] = 0;
      });
      threads.phase([&](uint32_t t) {
        if (t >= terms) return;
        const Entry entry = entries[first + t];
        uint32_t place = place_of(entry.latent);
        while (atomic_swap_if(&shared.wanted.latents[place], -1, entry.latent) != -1) {
          place = (place + 1) % kPlaces;
        }
        shared.wanted.values[place] = entry.value;
        shared.wanted.numbers[place] = static_cast<uint8_t>(t);
      });
    }

    CSRKERN_DEVICE static uint32_t place_of(int32_t latent) {
      return static_cast<uint32_t>(latent) * 2654435769u >> 25;
    }

    // Writes the products of an entry of a document; several, if the query repeats its latent.
    CSRKERN_DEVICE void multiply(uint32_t d, uint32_t entry) {
      const int32_t latent = static_cast<int32_t>(latent_at(job.index, entry));
      for (uint32_t place = place_of(latent); shared.wanted.latents[place] != -1;
           place = (place + 1) % kPlaces) {
        if (shared.wanted.latents[place] != latent) continue;
        shared.products[d * kPitch + shared.wanted.numbers[place]] =
            shared.wanted.values[place] * value_at(job.index, entry);
      }
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
