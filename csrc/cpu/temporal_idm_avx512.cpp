#define SPEECHFT_LANES 16
#define SPEECHFT_SET avx512
#include "cpu/temporal_idm_kernel.h"
