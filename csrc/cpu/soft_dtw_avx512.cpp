#define SPEECHFT_LANES 16
#define SPEECHFT_ROWS 4
#define SPEECHFT_SET avx512
#include "cpu/soft_dtw_kernel.h"
