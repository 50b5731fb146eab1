#include "cpu/philox.h"

namespace speechft::cpu {

void philox(const int64_t* keys, int64_t n, uint32_t first, int64_t blocks, uint32_t stream,
            uint32_t use, int64_t* words) {
  for (int64_t row = 0; row < n; ++row)
    for (int64_t block = 0; block < blocks; ++block, words += 4) {
      const uint64_t key = static_cast<uint64_t>(keys[row]);
      uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
      uint32_t c0 = first + static_cast<uint32_t>(block), c1 = stream, c2 = 0, c3 = use;
      for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
        c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
        c1 = static_cast<uint32_t>(b);
        c3 = static_cast<uint32_t>(a);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
      }
      words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
    }
}

}  // namespace speechft::cpu
