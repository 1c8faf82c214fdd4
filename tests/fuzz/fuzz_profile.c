/*
 * profile: any text as client.yaml. What is read has an endpoint, each with an
 * address of one of the two kinds, and all or nothing of a certificate; what is
 * refused is said with a sentence.
 */
#include <string.h>

#include "client/profile.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct detail why = { 0 };
	struct profile f;
	char host[256];
	char port[6];
	size_t i;
	enum rc rc;

	rc = profile_parse((const char *)p, n, "/d/client.yaml", &f, &why);
	MUST(rc == RC_OK || rc == RC_INVALID);
	MUST((rc == RC_OK) == (why.text[0] == '\0'));
	if (rc != RC_OK)
		return 0;
	MUST(f.endpoints_n > 0 && f.endpoints_n <= PROFILE_ENDPOINTS_MAX);
	MUST((f.ca[0] == '\0') == (f.cert[0] == '\0'));
	MUST((f.ca[0] == '\0') == (f.key[0] == '\0'));
	for (i = 0; i < f.endpoints_n; i++) {
		MUST(strlen(f.endpoints[i].name) <= PROFILE_NAME_BYTES_MAX);
		if (strchr(f.endpoints[i].rpc, '/') != NULL)
			continue;
		MUST(profile_host_port(f.endpoints[i].rpc, host, sizeof(host),
				       port) == RC_OK);
		MUST(f.ca[0] != '\0');
	}
	return 0;
}
