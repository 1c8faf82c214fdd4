#include "tests/sim/sweep.h"
void sweep_all(const char *only, bool quiet, uint64_t *passed, uint64_t *failed)
{
	(void)only;
	(void)quiet;
	(void)passed;
	(void)failed;
}
