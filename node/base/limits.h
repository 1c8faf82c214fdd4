/*
 * limits - every bound of the system, and how the bounds relate.
 *
 * The answer at a bound is an error of rc.tbl (mostly OVERLOADED with a retry
 * time), never an accident. docs/limits.md is generated from this file: a
 * line `#define NAME value / * text * /` becomes a row. Units are in the name.
 */
#ifndef HOLDFAST_BASE_LIMITS_H
#define HOLDFAST_BASE_LIMITS_H

/* clang-format off */
/* Wire. */
#define FRAME_BYTES_MAX (2u << 20)     /* One MessagePack-RPC message. */
#define VALUE_BYTES_MAX (1u << 20)     /* One value of a class. */
#define NAME_BYTES_MAX 512u            /* An object's name, decoded. */
#define TENANT_BYTES_MAX 64u           /* A tenant's or environment's name. */
#define CLASS_BYTES_MAX 64u            /* A class's name. */
#define ADDRESS_BYTES_MAX 2048u        /* An address as it is written. */
#define IDEM_BYTES_MAX 64u             /* An idempotency key. */
#define PRINCIPAL_BYTES_MAX 256u       /* A principal's name. */
#define TRACE_BYTES_MAX 128u            /* A W3C traceparent. */
#define DEADLINE_DEFAULT_MS 5000u      /* Of a call that names none. */
#define DEADLINE_MAX_MS 60000u         /* The longest a call may live. */

/* Connections. */
#define CONNECTIONS_MAX 4096u          /* Open client connections of a node. */
#define CONNECTION_CALLS_MAX 1024u     /* Calls in flight on a connection. */
#define CONNECTION_IN_BYTES (64u << 10) /* A connection's first read buffer. */
#define CONNECTION_OUT_BYTES_MAX (64u << 20) /* Unsent answers of a connection. */
#define CONNECTION_OUT_PAUSE_BYTES (1u << 20) /* Above it nothing new is begun. */
#define CONNECTION_TURN_FRAMES 256u    /* Begun per connection and loop turn. */
#define CONNECTIONS_IN_BYTES_MAX (256u << 20) /* Unfinished requests, all. */
#define CONNECTIONS_OUT_BYTES_MAX (512u << 20) /* Unsent answers, all. */
#define CONNECTION_HANDSHAKES_MAX 1024u /* Open TLS handshakes of clients. */
#define CONNECTION_HANDSHAKE_MS 5000u  /* A client's handshake ends within. */
#define TURN_HANDSHAKES 16u            /* Steps of them in one loop turn. */
#define FRAME_STALL_MS 30000u          /* A begun frame must end within. */
#define WRITE_STALL_MS 30000u          /* A reader must take something within. */

/* Peers. */
#define LINK_MESSAGE_BYTES_MAX (8u << 20) /* One message of a link. */
#define PEER_OUT_BYTES_MAX (32u << 20) /* Unsent, of one connection to a peer. */
#define PEER_HANDSHAKES_MAX 64u        /* Accepted from who is not known yet. */
#define PEER_HANDSHAKE_MS 5000u        /* A handshake ends within. */
#define FORWARDS_MAX 16384u            /* Calls on their way to one owner. */
#define SNAPSHOT_PIECE_BYTES (256u << 10) /* One piece of a snapshot stream. */
#define SNAPSHOT_PIECES_MAX 4u         /* Sent and not yet acknowledged. */
#define ROUNDS_MAX 64u                 /* Rounds without an answer. */
#define TERM_JUMP_MAX (1u << 20)       /* A peer's term further ahead is refused. */

/* Calls and events. */
#define CALLS_MAX 32768u               /* Calls in flight on a node. */
#define ADMISSION_CALLS 1024u          /* Of clients: so many always may be. */
#define ADMISSION_CALLS_MIN 32u        /* In a flood, when calls are slow. */
#define ADMISSION_OWN_MS 2u            /* What a call may take beside disks. */
#define CALL_DEPTH_MAX 8u              /* Nested calls below a client's call. */
#define CALL_DEPTH_SHARE 16u           /* A depth reserves 1/16 of CALLS_MAX. */
#define MAILBOX_MAX 16384u             /* Events waiting at one object. */
#define EVENT_EFFECTS_BYTES_MAX (2u << 20) /* What one event may change. */
#define EVENT_ROWS_MAX 4096u           /* Rows that one event may change. */
#define EVENT_LOADS_MAX 64u            /* Times an event may wait for storage. */
#define RESULT_BYTES_MAX (2u << 20)    /* An answer's value. */
#define RESULTS_BYTES_MAX (256u << 20) /* Answers that may not leave yet, all. */
#define CALLS_BYTES_MAX (512u << 20)   /* Memory of all calls in flight. */
#define OWNER_WAIT_MS 1000u            /* A call waits so long for an owner, */
#define OWNER_WAIT_TOLD_MS 200u        /* or, when it is to be told, so long. */
#define OWNER_WAITS_MAX 1024u          /* Calls of a node that wait for one. */
#define RETRY_AFTER_MS 50u             /* Advice with OVERLOADED. */

/* Idempotency. */
#define IDEM_WINDOW_DEFAULT_MS 600000u /* A record is kept at least. */
#define IDEM_WINDOW_MAX_MS 604800000u  /* 7 days: the longest window. */
#define IDEM_WINDOW_MIN_MS 1000u       /* The shortest `idem_ms`. */
#define IDEM_ANSWER_BYTES_MAX 4096u    /* A recorded answer. */
#define IDEM_KEYS_MAX 16384u           /* Records per object and principal. */

/* Objects. */
#define OBJECTS_RESIDENT_MAX 1048576u  /* Objects in memory of a node. */
#define OBJECTS_RESIDENT_BYTES_MAX (1u << 30) /* Their memory. */
#define OBJECT_LOAD_BYTES_MAX 65536u   /* Loaded whole up to this size. */
#define OBJECT_PAGE_ROWS 256u          /* Rows per load of a larger one. */
#define OBJECT_IDLE_MS 70000u          /* Evicted after this long idle. */
#define ROW_KEY_BYTES_MAX 2304u        /* A row's key, class framing included. */
#define TENANT_OBJECTS_MAX 10000000u   /* Default cap of a tenant's objects. */
#define TENANT_BYTES_MAX_DEFAULT (1ull << 40) /* Default cap of its bytes. */
#define SWEEP_ROWS 256u                /* Expired rows per sweep slice. */

/* Shards, log, storage. */
#define SHARDS_DEFAULT 16u             /* Of a new data directory. */
#define SHARDS_MAX 64u                 /* The most of a data directory. */
#define ENTRY_BYTES_MAX (4u << 20)     /* One log entry. */
#define ENTRY_UNITS_MAX 4096u          /* Units in one log entry. */
#define UNSYNCED_BYTES_MAX (64u << 20) /* What a leader may run ahead. */
#define TRAILING_ENTRIES 8192u         /* Followers' part of a trimmed log. */
#define TRAILING_BYTES (4u << 20)      /* The same in bytes, of a shard. */
#define TRAILING_LAG_BYTES (16u << 20) /* While a follower is behind it. */
#define TRAILING_STREAM_BYTES (64u << 20) /* While a snapshot is sent. */
#define AHEAD_BYTES_MAX (16u << 20)    /* Proposed, uncommitted, of a shard. */
#define AHEAD_ENTRIES_MAX 1024u        /* The same in entries. */
#define INFLIGHT_BYTES (4u << 20)      /* Entries on their way to a follower. */
#define BEHIND_BYTES_MAX (64u << 20)   /* Entries a follower has not applied. */
#define HELD_BYTES_MAX (4u << 20)      /* Messages waiting for the ballot. */
#define DISK_STALL_MS 500u             /* Then a leader hands over. */
#define BATCH_BYTES_MAX (12u << 20)    /* One batch of the log. */
#define SEGMENT_BYTES_DEFAULT (16u << 20) /* One log segment. */
#define SEGMENT_BYTES_MIN (1u << 20)   /* Batches and entries are cut to fit. */
#define LOG_BYTES_DEFAULT (1024u << 20) /* All segments of a node. */
#define RESERVE_BYTES_DEFAULT (16u << 20) /* The disk reserve. */
#define WINDOW_MS 5000u                /* Applied effects reach SQLite within. */
#define WINDOW_FIRST_MS 200u           /* The same, while no stamp is stored. */
#define WINDOW_BYTES_MAX (4u << 20)    /* or when they are this much. */
#define WINDOW_BEHIND_MAX 16u          /* Windows that may wait for SQLite. */
#define STATE_PAGE_BYTES 4096u         /* SQLite page size. */
#define STATE_RESERVE_BYTES 32u        /* Reserved at the end of each page. */
#define STATE_RANGES 16u               /* Key ranges with a set hash each. */
#define STATE_WAL_BYTES_MAX (16u << 20) /* A state's WAL, then a checkpoint. */
#define STATE_SLICE_ROWS 256u          /* Rows written before loads go on. */
#define STATE_SLICE_BYTES (1u << 20)   /* The same in bytes. */
#define STATE_VERIFY_PAGES 1024u       /* Pages verified before loads go on. */
#define LOAD_PAGE_BYTES_MAX (4u << 20) /* Rows of one page of a load. */
#define LAG_MS_DEFAULT 100u            /* What `lagged` may lose. */
#define LAG_GATHER_MS 20u              /* Lagged effects wait for others so long. */
#define LAG_GATHER_BYTES (64u << 10)   /* or until they are this much, of a shard. */

/* Class bounds. */
#define KV_KEY_BYTES_MAX 1024u         /* A key of kv. */
#define KV_LIST_MAX 1000u              /* Items of one page of list. */
#define KV_LIST_DEFAULT 100u           /* Without `limit`. */
#define KV_BATCH_OPS_MAX 1000u         /* Operations of one batch. */
#define LIMITER_KEY_BYTES_MAX 256u     /* A key of rate_limiter. */
#define LIMITER_CHECKS_MAX 1000u       /* Checks of one check_many. */
#define LIMITER_KEYS_MAX 1000000u      /* Active keys of one limiter. */
#define LIMITER_POLICIES_MAX 64u       /* Named policies of one limiter. */
#define LIMITER_LEASE_MAX 1000u        /* Permits that one entry lends. */
#define LIMITER_LEASE_MS 10000u        /* They may be spent at least so long. */

/* Configuration. */
#define GRANTS_MAX 1024u               /* Rows of `grants:`. */
#define CONFIG_BYTES_MAX (1u << 20)    /* A configuration file. */

/* clang-format on */

_Static_assert(VALUE_BYTES_MAX + 65536u < FRAME_BYTES_MAX,
	       "a value fits a frame");
_Static_assert(EVENT_EFFECTS_BYTES_MAX + 65536u < ENTRY_BYTES_MAX,
	       "a unit fits an entry");
_Static_assert(ENTRY_BYTES_MAX + (1u << 20) < BATCH_BYTES_MAX,
	       "an entry fits a batch");
_Static_assert(FRAME_BYTES_MAX <= CONNECTION_OUT_BYTES_MAX,
	       "an answer fits a connection's output");
_Static_assert(ENTRY_BYTES_MAX + (1u << 20) < LINK_MESSAGE_BYTES_MAX,
	       "an entry fits a message between peers");
_Static_assert(TRAILING_BYTES <= TRAILING_LAG_BYTES &&
		       TRAILING_LAG_BYTES <= TRAILING_STREAM_BYTES,
	       "who needs more of the log gets more");
_Static_assert(ENTRY_BYTES_MAX <= AHEAD_BYTES_MAX &&
		       ENTRY_BYTES_MAX <= INFLIGHT_BYTES,
	       "an entry may always be on its way");
_Static_assert(LINK_MESSAGE_BYTES_MAX < PEER_OUT_BYTES_MAX,
	       "a message fits a peer's queue");
_Static_assert(CONNECTION_CALLS_MAX <= ADMISSION_CALLS,
	       "one connection alone fills no node");
_Static_assert(4u * LAG_GATHER_MS <= LAG_MS_DEFAULT,
	       "what is gathered has the time to be committed");
_Static_assert(CALL_DEPTH_MAX + 1u < CALL_DEPTH_SHARE,
	       "client calls keep a share of the pool");
_Static_assert(SHARDS_DEFAULT <= SHARDS_MAX, "the default is allowed");
_Static_assert(IDEM_WINDOW_DEFAULT_MS <= IDEM_WINDOW_MAX_MS,
	       "the default is allowed");

#endif
