#define SPEECHFT_LANES 16
#define SPEECHFT_SET avx512
#include "cpu/pointwise_kernel.h"
