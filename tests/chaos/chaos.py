#!/usr/bin/env python3
"""Three real nodes under load, and what may happen to them.

    chaos.py [PHASE...]        kills, pauses, blackouts, handovers

Clients (load.c) call through all nodes and write down every answer; here nodes
are killed, stopped and continued, and leaderships handed over. For every shard
that a killed node owned the time from the kill to the first acknowledged write
of its next owner is measured. At the end the history is judged: one order of
all calls of each object must explain every answer, and repeated keys get the
first answer. HOLDFAST_KILLS, HOLDFAST_PAUSES, HOLDFAST_BLACKOUTS and
HOLDFAST_HANDOVERS say how often (100, 20, 5, 40).
"""
import contextlib
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import Cluster, json, passes, program, until  # noqa: E402

SHARDS = 8
CLIENTS = 32
OBJECTS = 64
WRITES = ("put", "incr", "cas")


def times(name, default):
    return int(os.environ.get("HOLDFAST_" + name, default))


class Load:
    """tests/chaos/load, and its history as it grows."""

    def __init__(self, cluster, seed):
        self.path = os.path.join(cluster.own, "history-%d.jsonl" % seed)
        argv = [program("tests/chaos/load"), "--config", cluster.client_yaml,
                "--clients", str(CLIENTS), "--objects", str(OBJECTS),
                "--seed", str(seed), "--history", self.path]
        for n in cluster.nodes:
            argv += ["--socket", n.socket]
        self.proc = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        until("the load has begun", lambda: os.path.exists(self.path))
        self.file = open(self.path)
        self.tail = ""
        self.open = {}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.proc.kill()
        self.proc.wait()

    def rows(self):
        """What came since the last time: (method, row) of each end."""
        self.tail += self.file.read()
        *lines, self.tail = self.tail.split("\n")
        for line in lines:
            row = json.loads(line)
            if row["type"] == "invoke":
                self.open[row["client"]] = row["method"]
            else:
                yield self.open.pop(row["client"], None), row

    def skip(self):
        for _ in self.rows():
            pass

    def stop(self):
        self.proc.send_signal(signal.SIGTERM)
        text = self.proc.communicate(timeout=60)[1]
        self.file.close()
        assert self.proc.returncode == 0, text
        return text.strip()

    def failures(self):
        """What else than ok was heard, for whoever looks."""
        with open(self.path) as f:
            return [line for line in f if '"fail"' in line or
                    '"unknown"' in line][:5]

    def judge(self):
        r = subprocess.run([program("tests/chaos/judge"), self.path],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           text=True, timeout=600)
        assert r.returncode == 0, r.stdout
        return r.stdout.strip().splitlines()[-1]


def first_writes(load, since_ns, shards, not_by, limit_s=30):
    """shard -> ms from `since_ns` to its first write that another node than
    `not_by` acknowledged."""
    got = {}

    def look():
        for method, row in load.rows():
            if (row["type"] == "ok" and method in WRITES and
                    row.get("shard") in shards and row["at"] > since_ns and
                    row.get("owner") != not_by):
                got.setdefault(row["shard"], (row["at"] - since_ns) / 1e6)
        return len(got) == len(shards)
    until("every shard of %s serves again; %s of %s" % (not_by, got, shards),
          look, limit_s)
    return got


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))]


def say(what, values):
    print("     %s: %d shards, p50 %.0f ms, p99 %.0f ms, max %.0f ms" %
          (what, len(values), percentile(values, 50), percentile(values, 99),
           max(values)))
    sys.stdout.flush()


def owned_by(cluster, node):
    return {s for s, n in cluster.leaders().items() if n is node}


def caught_up(cluster, node):
    """Its log is as long as the leaders' were when this began."""
    want = {}
    for n in cluster.nodes:
        if n.running:
            for r in n.status()["shards"]:
                want[r["shard"]] = max(want.get(r["shard"], 0), r["commit_index"])

    def ask():
        try:
            rows = node.status()["shards"]
        except OSError:
            return False
        return all(r["commit_index"] >= want[r["shard"]] for r in rows)
    until("%s has caught up" % node, ask)


def end(load):
    said = load.stop()
    print("     load: %s" % said)
    print("     judge: %s" % load.judge())


def kills():
    """kill -9 of an owner, and back."""
    rnd = random.Random(1)
    waits = []
    n = times("KILLS", 100)
    with Cluster(3, shards=SHARDS) as c, contextlib.ExitStack() as stack:
        c.start()
        load = stack.enter_context(Load(c, 1))
        first_writes(load, 0, set(range(SHARDS)), None)
        for _ in range(n):
            owners = {x.name for x in c.wait_leaders().values()}
            node = c[rnd.choice(sorted(owners))]
            shards = owned_by(c, node)
            load.skip()
            at = time.monotonic_ns()
            node.proc.kill()
            waits += first_writes(load, at, shards, node.name).values()
            node.wait()
            node.begin()
            node.wait_event("node_ready")
            caught_up(c, node)
        end(load)
    say("%d kills of an owner" % n, waits)
    limit("p50", percentile(waits, 50), 700)
    limit("p99", percentile(waits, 99), 1200)


def limit(what, got, most):
    """Figures of a busy machine are no failures of the code; the file that
    says so is for those who measure."""
    if got > most:
        print("     %s of %.0f ms is above the aim of %d ms" %
              (what, got, most))


def pauses():
    """An owner that stands still longer than any timeout, and goes on."""
    rnd = random.Random(2)
    waits = []
    n = times("PAUSES", 20)
    with Cluster(3, shards=SHARDS) as c, contextlib.ExitStack() as stack:
        c.start()
        load = stack.enter_context(Load(c, 2))
        first_writes(load, 0, set(range(SHARDS)), None)
        for _ in range(n):
            node = rnd.choice(sorted(set(c.wait_leaders().values()),
                                     key=lambda x: x.name))
            shards = owned_by(c, node)
            load.skip()
            at = time.monotonic_ns()
            node.pause()
            waits += first_writes(load, at, shards, node.name).values()
            node.resume()
            caught_up(c, node)
        end(load)
    say("%d pauses of an owner" % n, waits)


def blackouts():
    """kill -9 of all nodes at once."""
    n = times("BLACKOUTS", 5)
    waits = []
    with Cluster(3, shards=SHARDS) as c, contextlib.ExitStack() as stack:
        c.start()
        load = stack.enter_context(Load(c, 3))
        first_writes(load, 0, set(range(SHARDS)), None)
        for _ in range(n):
            c.kill()
            for node in c.nodes:
                node.begin()
            for node in c.nodes:
                node.wait_event("node_ready")
            load.skip()
            at = time.monotonic_ns()
            waits += first_writes(load, at, set(range(SHARDS)), None).values()
        end(load)
    say("%d times all nodes, since they were back" % n, waits)


def handovers():
    """Planned hand-overs: no client of the cluster may notice."""
    rnd = random.Random(4)
    n = times("HANDOVERS", 40)
    waits = []
    with Cluster(3, shards=SHARDS, config="raft:\n  spread: false\n") as c, \
            contextlib.ExitStack() as stack:
        c.start()
        load = stack.enter_context(Load(c, 4))
        first_writes(load, 0, set(range(SHARDS)), None)
        for _ in range(n):
            shard, owner = rnd.choice(sorted(c.wait_leaders().items()))
            load.skip()
            at = time.monotonic_ns()
            r = c.run("shard", "transfer", str(shard))
            assert r.returncode == 0, r
            waits += first_writes(load, at, {shard}, owner.name).values()
        text = load.stop()
        print("     load: %s" % text)
        assert " 0 refused, 0 unknown" in text, (text, load.failures())
        print("     judge: %s" % load.judge())
    say("%d hand-overs, the program that asks included" % n, waits)


def main():
    names = sys.argv[1:] or ["kills", "pauses", "blackouts", "handovers"]
    passed = sum(passes(name, lambda: globals()[name]()) for name in names)
    failed = len(names) - passed
    print("# chaos.py: %d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
