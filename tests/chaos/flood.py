#!/usr/bin/env python3
"""Ten times what three nodes can do, for half a minute.

    flood.py [flood]

First the capacity is measured: a closed loop of 64 clients. Then calls are
offered in an open loop at ten times that, half of them to nodes that have to
pass them on; a run in which the generator did not reach its rate is void, and
fails. All the while terms and memory are looked at: no term goes up on any
shard, no node takes 256 MiB, what is admitted takes less than five times as
long as before; afterwards everything is as before. HOLDFAST_FLOOD_SECONDS says
for how long (30).
"""
import os
import subprocess
import sys
import threading
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "bench"))
from hf import Cluster, json, program  # noqa: E402
from bench import bench, settled  # noqa: E402

SECONDS = os.environ.get("HOLDFAST_FLOOD_SECONDS", "30")
TIMES = 10
RSS_MAX = 256 << 20
LOAD = ["--objects", "1000", "--prefix", "f-"]


class Watch:
    """The nodes' terms and memory, again and again while it is entered."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.rss = 0
        self.terms = {}
        self.moved = set()
        self.looks = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.look()

    def look(self):
        for n in self.cluster.nodes:
            # From outside: a node that is flooded may refuse to say it.
            with open("/proc/%d/status" % n.proc.pid) as f:
                for line in f:
                    if line.startswith("VmRSS:"):
                        self.rss = max(self.rss, int(line.split()[1]) << 10)
            try:
                rows = n.status()["shards"]
            except Exception:  # noqa: BLE001 - refused; the next time
                continue
            self.looks += 1
            for r in rows:
                was = self.terms.setdefault((n.name, r["shard"]), r["term"])
                if was != r["term"]:
                    self.moved.add((n.name, r["shard"], was, r["term"]))

    def _run(self):
        while not self.done.wait(0.2):
            self.look()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.done.set()
        self.thread.join()
        self.look()


def offered(c, rate):
    r = subprocess.run(
        [program("holdfast"), "bench", "kv-incr", "--json", "--config",
         c.client_yaml, "--seconds", SECONDS, "--rate", str(rate),
         "--pipeline", "1024", "--forwarded", "50"] + LOAD,
        stdout=subprocess.PIPE, timeout=600, text=True, check=True)
    return json.loads(r.stdout.strip().splitlines()[-1])


def flood():
    daemon = ("holdfastd-testing" if os.environ.get("HOLDFAST_MUTANT")
              else "holdfastd")
    with Cluster(3, shards=16, daemon=daemon,
                 config="raft:\n  spread: false\n").start() as c:
        settled(c)
        where = ["--config", c.client_yaml]
        before = bench(where, "kv-incr", LOAD)
        rate = int(TIMES * before["ops_per_s"])
        with Watch(c) as w:
            r = offered(c, rate)
        after = bench(where, "kv-incr", LOAD)
        assert c.stop() == [0, 0, 0]
    print("     capacity %.0f/s, p99 %.0f us; offered %d/s for %s s" %
          (before["ops_per_s"], before["p99_us"], rate, SECONDS))
    print("     admitted %.0f/s, p99 %.0f us, refused %d, unknown %d, at most "
          "%.0f MiB" % (r["ops_per_s"], r["p99_us"], r["refused"],
                        r["unknown"], w.rss / 2**20))
    print("     afterwards %.0f/s, p99 %.0f us" %
          (after["ops_per_s"], after["p99_us"]))
    assert not r["void"], "void: %d calls did not begin in time" % r["unsent"]
    assert r["refused"] > 0, "nothing was refused: this was no flood"
    assert not w.moved, "terms moved: %s" % sorted(w.moved)
    assert w.rss < RSS_MAX, "a node took %.0f MiB" % (w.rss / 2**20)
    assert r["p99_us"] < 5 * before["p99_us"], "admitted calls were slow"
    assert r["errors"] == 0 and after["errors"] == 0
    assert after["ops_per_s"] > 0.7 * before["ops_per_s"], "not as before"
    assert after["p99_us"] < 2 * before["p99_us"] + 2000, "not as before"


def main():
    failed = 0
    for name in sys.argv[1:] or ["flood"]:
        try:
            {"flood": flood}[name]()
            print("ok   %s" % name)
        except Exception:  # noqa: BLE001 - told, and counted
            failed += 1
            print("FAIL %s" % name)
            traceback.print_exc(file=sys.stdout)
    print("# flood.py: %d passed, %d failed" %
          (len(sys.argv[1:] or ["flood"]) - failed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
