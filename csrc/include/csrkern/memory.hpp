// Pages from the operating system, anonymous and of files: POSIX and Windows.
#pragma once

#include <cstddef>

namespace csrkern {

// Returns zeroed pages, in huge ones where there are any; throws std::bad_alloc.
void* allocate_pages(size_t bytes);
void free_pages(void* pages, size_t bytes);

// Asks for huge pages for whole pages that are about to be written.
void advise_huge_pages(void* pages, size_t bytes);

// Maps the first bytes of an open file, read-only; null, with errno set, if it cannot. The
// descriptor may be closed at once.
void* map_file(int descriptor, size_t bytes);
void unmap_file(void* data, size_t bytes);

}  // namespace csrkern
