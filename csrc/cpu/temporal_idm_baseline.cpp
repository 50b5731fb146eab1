// What the compiler's default target can do: four lanes where it knows vectors, else one.
#if defined(__GNUC__) && !defined(__clang__)
#define SPEECHFT_LANES 4
#else
#define SPEECHFT_LANES 1
#endif
#define SPEECHFT_SET baseline
#include "cpu/temporal_idm_kernel.h"
