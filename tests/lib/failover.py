#!/usr/bin/env python3
"""Kills the node that owns most shards under load, and tells for every shard it
owned how long it took until the next write was acknowledged.

	failover.py DIR [WRITERS]

DIR is what `holdfast init' made, its nodes run. The last line names the node and
says how many entries it had. Each shard has writers of its
own, on counters of its own, connected to the nodes that stay. A write that did
not come back is sent again with its idempotency key until it is answered; so in
the end every counter must be exactly the number of its answers. Used by
tests/demo.sh.
"""
import os
import signal
import statistics
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hf import CallError, Client, Gone, until  # noqa: E402


class Counter:
    """One address of one shard, and its writer."""

    def __init__(self, shard, address):
        self.shard = shard
        self.address = address
        self.acked = 0
        self.first = None   # The first answer to a call begun after the kill.


class Run:
    def __init__(self, directory, per_shard):
        self.directory = directory
        self.per_shard = per_shard
        self.nodes = sorted(n for n in os.listdir(directory)
                            if os.path.isfile(self.file(n, "holdfast.yaml")))
        self.stopping = threading.Event()
        self.killed = None
        self.errors = []
        self.said = threading.Condition()

    def file(self, node, name):
        return os.path.join(self.directory, node, name)

    def client(self, node):
        return Client(self.file(node, "holdfast.sock"), 10)

    def owners(self):
        """shard -> node, when all shards have one."""
        out = {}
        for i, node in enumerate(self.nodes):
            c = self.client(node)
            rows = c.rpc("status")["shards"]
            c.close()
            shards = len(rows)
            for r in rows:
                if r["leader"] == i + 1:
                    out[r["shard"]] = node
        return out if len(out) == shards else None

    def entries(self, node):
        """Committed in all shards, as this node knows."""
        c = self.client(node)
        total = sum(r["commit_index"] for r in c.rpc("status")["shards"])
        c.close()
        return total

    def counters(self, shards):
        """`per_shard` addresses for each shard: which it is, an answer says."""
        c = self.client(self.nodes[0])
        missing = {s: self.per_shard for s in range(shards)}
        out = []
        i = 0
        while missing:
            address = "kv/failover-%d" % i
            i += 1
            shard = c.call(address, "put", {"key": "n", "value": 0},
                           meta=True)[1]["shard"]
            if shard in missing:
                out.append(Counter(shard, address))
                missing[shard] -= 1
                if missing[shard] == 0:
                    del missing[shard]
        c.close()
        return out

    def write(self, w, counter, nodes):
        c = None
        try:
            while not self.stopping.is_set():
                key = "%s-%d" % (counter.address, counter.acked)
                began = time.monotonic()
                while True:
                    try:
                        if c is None:
                            c = self.client(nodes[w % len(nodes)])
                        v = c.call(counter.address, "incr", {"key": "n"},
                                   idem=key, deadline_ms=5000)["value"]
                        break
                    except (Gone, OSError):
                        c = None
                    except CallError as e:
                        if e.code not in ("NO_QUORUM", "OVERLOADED",
                                          "UNKNOWN_OUTCOME", "NOT_OWNER",
                                          "DEADLINE"):
                            raise
                counter.acked += 1
                if v != counter.acked:
                    self.errors.append("%s: %d after %d" % (
                        counter.address, v, counter.acked))
                with self.said:
                    if self.killed and counter.first is None and \
                            began >= self.killed:
                        counter.first = time.monotonic()
                    self.said.notify_all()
        except Exception as e:  # noqa: BLE001 - told at the end
            self.errors.append(repr(e))

    def wait(self, what, ask):
        with self.said:
            if not self.said.wait_for(lambda: ask() or self.errors, 60):
                raise TimeoutError(what)

    def check(self, counters, node):
        c = self.client(node)
        lost = 0
        for k in counters:
            v = c.call(k.address, "get", {"key": "n"})["value"]
            lost += v != k.acked
        c.close()
        return lost


def main():
    run = Run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    owners = until("every shard has an owner", run.owners)
    victim = max(run.nodes, key=list(owners.values()).count)
    others = [n for n in run.nodes if n != victim]
    owned = sorted(s for s in owners if owners[s] == victim)
    counters = run.counters(len(owners))
    threads = [threading.Thread(target=run.write, args=(i, k, others))
               for i, k in enumerate(counters)]
    for t in threads:
        t.start()
    run.wait("the load is under way",
             lambda: min(k.acked for k in counters) >= 20)
    with open(run.file(victim, "holdfastd.pid")) as f:
        pid = int(f.read())
    print("  %d writers on %d shards; %s owns %s" %
          (len(counters), len(owners), victim,
           ", ".join(map(str, owned)) or "none"))
    entries = run.entries(victim)
    os.kill(pid, signal.SIGKILL)
    run.killed = time.monotonic()
    print("  killed: %s, process %d, with no chance to say anything" %
          (victim, pid))
    sys.stdout.flush()
    run.wait("every shard was written",
             lambda: all(k.first for k in counters))
    run.stopping.set()
    for t in threads:
        t.join()
    times = []
    for s in owned:
        first = min(k.first for k in counters if k.shard == s)
        times.append((first - run.killed) * 1000)
        print("    shard %2d: next acknowledged write after %4.0f ms" %
              (s, times[-1]))
    if times:
        print("  half of them within %.0f ms, all within %.0f ms" %
              (statistics.median(times), max(times)))
    lost = run.check(counters, others[0])
    print("  acknowledged: %d increments on %d counters; counters that are "
          "not exactly that: %d" %
          (sum(k.acked for k in counters), len(counters), lost))
    for e in run.errors[:3]:
        print("  WRONG: " + e)
    print("victim %s %d" % (victim, entries))
    sys.exit(1 if lost or run.errors else 0)


if __name__ == "__main__":
    main()
