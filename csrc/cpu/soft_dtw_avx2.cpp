#define SPEECHFT_LANES 8
#define SPEECHFT_ROWS 4
#define SPEECHFT_SET avx2
#include "cpu/soft_dtw_kernel.h"
