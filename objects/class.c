#include "objects/class.h"

#include <string.h>

static const struct class *const classes[] = {
	&class_kv,
	&class_rate_limiter,
	&class_directory,
#ifdef HOLDFAST_TESTING
	&class_relay,
#endif
};

#define CLASSES (sizeof(classes) / sizeof(classes[0]))

const struct class *class_at(unsigned i)
{
	return i < CLASSES ? classes[i] : NULL;
}

const struct class *class_find(struct pack_bytes name)
{
	size_t i;

	for (i = 0; i < CLASSES; i++)
		if (pack_bytes_eq(name, classes[i]->name,
				  strlen(classes[i]->name)))
			return classes[i];
	return NULL;
}
