#define SPEECHFT_LANES 8
#define SPEECHFT_SET avx2
#include "cpu/temporal_idm_kernel.h"
