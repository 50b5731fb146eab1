#define SPEECHFT_LANES 8
#define SPEECHFT_SET avx2
#include "cpu/pairwise_lse_kernel.h"
