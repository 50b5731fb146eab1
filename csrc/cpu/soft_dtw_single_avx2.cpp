// One pair at a time, with the instructions (fused multiply-add) that the vector paths have.
#define SPEECHFT_LANES 1
#define SPEECHFT_ROWS 4
#define SPEECHFT_SET single_avx2
#include "cpu/soft_dtw_kernel.h"
