/*
 * prng - the simulator's random numbers: xoshiro256** (Blackman and Vigna),
 * seeded by splitmix64. Not for anything that runs in production.
 */
#ifndef TESTS_SIM_PRNG_H
#define TESTS_SIM_PRNG_H

#include <stdint.h>

struct prng {
	uint64_t s[4];
};

static inline uint64_t prng_splitmix(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* Streams of one seed are independent of each other. */
static inline void prng_seed(struct prng *r, uint64_t seed, uint64_t stream)
{
	uint64_t state = seed;
	unsigned i;

	state = prng_splitmix(&state) ^ (stream * UINT64_C(0xd1342543de82ef95));
	for (i = 0; i < 4; i++)
		r->s[i] = prng_splitmix(&state);
}

static inline uint64_t prng_rotate(uint64_t x, unsigned by)
{
	return x << by | x >> (64 - by);
}

static inline uint64_t prng_next(struct prng *r)
{
	uint64_t result = prng_rotate(r->s[1] * 5, 7) * 9;
	uint64_t t = r->s[1] << 17;

	r->s[2] ^= r->s[0];
	r->s[3] ^= r->s[1];
	r->s[1] ^= r->s[2];
	r->s[0] ^= r->s[3];
	r->s[2] ^= t;
	r->s[3] = prng_rotate(r->s[3], 45);
	return result;
}

/* 0 <= result < n; n is not 0. The bias of n against 2^64 does not matter
 * here. */
static inline uint64_t prng_below(struct prng *r, uint64_t n)
{
	return prng_next(r) % n;
}

static inline uint64_t prng_between(struct prng *r, uint64_t least,
				    uint64_t most)
{
	return least + prng_below(r, most - least + 1);
}

#endif
