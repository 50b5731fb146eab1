// Large pages for buffers that are filled once and thrown away.
#pragma once

#include <cstddef>
#include <cstdint>

namespace speechft::cpu {

// Tells the system that [address, address + bytes) is about to be written all over. A new page of
// 4 KiB costs up to a microsecond at its first touch, which for a buffer used once is most of its
// price; a page of 2 MiB costs little more. A hint: does nothing where it is not known.
void prefer_huge_pages(uintptr_t address, size_t bytes);

}  // namespace speechft::cpu
