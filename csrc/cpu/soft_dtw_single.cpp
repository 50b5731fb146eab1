// One pair at a time, where there are too few to fill a vector.
#define SPEECHFT_LANES 1
#define SPEECHFT_ROWS 4
#define SPEECHFT_SET single
#include "cpu/soft_dtw_kernel.h"
