#define SPEECHFT_LANES 16
#define SPEECHFT_SET avx512
#include "cpu/pairwise_lse_kernel.h"
