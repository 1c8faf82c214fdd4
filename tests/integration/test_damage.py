#!/usr/bin/env python3
"""A stopped node's files, damaged one by one. Either the node says what is
damaged and does not start, or stops when it meets it; or every acknowledged
value is read back exactly. Never anything else.

HOLDFAST_FLIPS: how many bits to flip per directory (default 110)."""
import os
import random
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import *  # noqa: E402,F403

FLIPS = int(os.environ.get("HOLDFAST_FLIPS", "110"))
LOG_BYTES = 1 << 20  # None of the nodes here writes more of a segment.
FIRST = "log/0000000000000001.seg"


def new_node():
    """Where syncs are free, if there is such a place: each trial starts one."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
    n = Node(data=tempfile.mkdtemp(prefix="hf-", dir=base))
    n.own = True
    return n


def path(n, name):
    return os.path.join(n.data, name)


def wal_bytes(n, shard):
    return os.path.getsize(path(n, "state/%02d-00000000.db-wal" % shard))


def wait_flush(n, c, shard, before):
    """Until the window of the shard has reached its WAL."""
    while wal_bytes(n, shard) == before:
        c.rpc("ping")


class Writer:
    """Puts values and remembers those that were acknowledged."""

    def __init__(self, n):
        self.n = n
        self.acked = {}
        self.shard = {}

    def put(self, c, address, key, value):
        _, meta = c.call(address, "put", {"key": key, "value": value},
                         meta=True)
        self.acked[(address, key)] = value
        self.shard[address] = meta["shard"]

    def read_all(self):
        c = self.n.client()
        asked = {c.send("call", a, "get", {"key": k}): (a, k)
                 for a, k in self.acked}
        for _ in asked:
            i, error, result = c.recv()
            assert error is None, (asked[i], error)
            assert result["value"] == self.acked[asked[i]], asked[i]
        c.close()


def live(n, w, killed):
    """A directory with something in every file; killed, also in the WALs."""
    n.start()
    c = n.client()
    for i in range(32):
        w.put(c, "kv/a%d" % i, "k", "v%d" % i * 20)
    if killed:
        c.close()
        assert n.stop() == 0
        n.start()
        c = n.client()
        for i in range(32):
            w.put(c, "kv/a%d" % i, "j", "w%d" % i * 20)
        for shard in set(w.shard.values()):
            wait_flush(n, c, shard, 0)
        w.put(c, "kv/a0", "last", "one")
    c.close()
    if killed:
        n.kill()
    else:
        assert n.stop() == 0
    return snapshot(n)


def snapshot(n):
    """name -> (bytes of the file, its first bytes: all but a segment's zeros)"""
    out = {}
    for top, _, names in os.walk(n.data):
        for name in names:
            p = os.path.join(top, name)
            if name.endswith((".sock", ".pid")):
                os.unlink(p)
                continue
            if name == "reserve":
                continue
            with open(p, "rb") as f:
                out[os.path.relpath(p, n.data)] = (
                    os.path.getsize(p), f.read(LOG_BYTES))
    return out


def restore(n, want):
    for top, _, names in os.walk(n.data):
        for name in names:
            p = os.path.join(top, name)
            if os.path.relpath(p, n.data) not in want and name != "reserve":
                os.unlink(p)
    for name, (size, head) in want.items():
        p = path(n, name)
        with open(p, "r+b" if os.path.exists(p) else "w+b") as f:
            f.truncate(size)
            if f.read(len(head)) != head:
                f.seek(0)
                f.write(head)


def outcome(n, w):
    """refused, stopped or exact; anything else fails the test."""
    n.start(ready=False)
    try:
        n.wait_line('"event":"node_ready"')
        w.read_all()
    except (AssertionError, Gone, OSError):
        if n.proc.poll() is None and not n.proc.stderr.closed:
            # It answers, and it answered wrong, unless it is just ending.
            try:
                n.client().rpc("ping")
            except (Gone, OSError):
                n.wait()
            else:
                raise
        elif not n.proc.stderr.closed:
            n.wait()
        code = n.proc.wait(LIMIT_S)
        line = n.lines[-1] if n.lines else ""
        if code == 70:
            assert '"event":"fail_stop"' in line and "state/" in line, line
            return "stopped"
        assert code in (65, 75) and line.startswith("holdfastd: "), \
            (code, line)
        return "refused"
    n.kill()
    return "exact"


def places(want):
    """Bytes worth a flip. What every sector, page or frame begins and ends
    with is taken more often than what lies between."""
    out = []
    for name, (size, head) in want.items():
        if size == 0:
            continue
        used = size
        if name.endswith(".seg"):
            used = len(head.rstrip(b"\0")) // 4096 * 4096 + 8192
        unit = 512 if name in ("ballot", "identity") or used != size else 4096
        edges = [x for x in range(used) if x % unit < 80 or
                 x % unit >= unit - 8]
        n = 300 if name.endswith(".seg") else 30
        out += [(name, x) for x in random.sample(edges, min(n, len(edges)))]
        out += [(name, random.randrange(used)) for _ in range(n // 3)]
    random.shuffle(out)
    return out


def flips(killed, seed):
    random.seed(seed)
    seen = {"refused": 0, "stopped": 0, "exact": 0}
    with new_node() as n:
        w = Writer(n)
        want = live(n, w, killed)
        assert outcome(n, w) == "exact"
        restore(n, want)
        for name, x in places(want)[:FLIPS]:
            bit = random.randrange(8)
            with open(path(n, name), "r+b") as f:
                f.seek(x)
                v = f.read(1)[0]
                f.seek(x)
                f.write(bytes([v ^ 1 << bit]))
            try:
                seen[outcome(n, w)] += 1
            except Exception as e:
                raise AssertionError("%s, byte %d, bit %d" %
                                     (name, x, bit)) from e
            restore(n, want)
    print("     %s" % seen)
    assert seen["refused"] > 0 and seen["exact"] > 0, seen


def test_flips_in_a_node_that_was_stopped():
    flips(False, 1)


def test_flips_in_a_node_that_was_killed():
    flips(True, 2)


def test_files_that_are_cut_or_missing():
    with new_node() as n:
        w = Writer(n)
        want = live(n, w, True)
        for name, (size, _) in want.items():
            if name == "lock" or name[:8] not in (
                    name if "state" not in name else "state/00",):
                continue
            for cut in (None, 0, 4095, 4096, size // 2, size - 1):
                if cut is None:
                    os.unlink(path(n, name))
                elif 0 <= cut < size:
                    os.truncate(path(n, name), cut)
                else:
                    continue
                try:
                    outcome(n, w)
                except Exception as e:
                    raise AssertionError("%s, cut at %s" %
                                         (name, cut)) from e
                restore(n, want)


def test_a_state_that_was_cut_under_its_wal():
    """The WAL is laid over the main file: pages that it lost must not come
    back as zeros with a good checksum."""
    with new_node() as n:
        n.start()
        w = Writer(n)
        c = n.client()
        w.put(c, "kv/x", "big", bytes(range(1, 251)) * 1200)
        c.close()
        assert n.stop() == 0
        n.start()
        c = n.client()
        shard = w.shard["kv/x"]
        wait_flush(n, c, shard, 0)
        before = wal_bytes(n, shard)
        w.put(c, "kv/x", "small", 1)
        wait_flush(n, c, shard, before)
        c.close()
        n.kill()
        want = snapshot(n)
        db = "state/%02d-00000000.db" % shard
        for pages in (1, 7, want[db][0] // 4096 - 1):
            os.truncate(path(n, db), pages * 4096)
            assert outcome(n, w) == "refused", pages
            assert "should have" in n.lines[-1], n.lines
            restore(n, want)
        assert outcome(n, w) == "exact"


def test_a_log_that_lost_its_end():
    """Batches that were synced are gone without a trace, but the state has
    seen some of them: so there may have been more."""
    with new_node() as n:
        n.start()
        w = Writer(n)
        c = n.client()
        w.put(c, "kv/x", "first", 0)
        shard = w.shard["kv/x"]
        wait_flush(n, c, shard, 0)
        before = wal_bytes(n, shard)
        for i in range(20):
            w.put(c, "kv/x", "k%d" % i, i)
        wait_flush(n, c, shard, before)
        w.put(c, "kv/x", "last", 1)
        c.close()
        n.kill()
        with open(path(n, FIRST), "r+b") as f:
            used = f.read(LOG_BYTES).rstrip(b"\0")
            end = (len(used) + 4095) // 4096 * 4096
            f.seek(end - 21 * 4096)
            f.write(bytes(21 * 4096))
        assert outcome(n, w) == "refused"
        assert "the log ends before the state does" in n.lines[-1], n.lines


def test_nothing_is_formatted_over_what_is_left():
    with new_node() as n:
        w = Writer(n)
        want = live(n, w, False)
        for gone in (("identity",), ("identity", "ballot"),
                     ("identity", "log/"), ("identity", "ballot", "log/"),
                     ("identity", "ballot", "state/"),
                     ("identity", "log/", "state/")):
            for name in want:
                if name.startswith(gone):
                    os.unlink(path(n, name))
            assert outcome(n, w) == "refused", gone
            assert "not formatted again" in n.lines[-1], n.lines
            restore(n, want)
        assert outcome(n, w) == "exact"


if __name__ == "__main__":
    main(tests_of(globals()))
