#!/usr/bin/env python3
"""make bench: every work of `holdfast bench`, as tables.

    bench.py [one] [three] [flood]        all of them without a word

`one` is a node of its own for each row, over its Unix socket; `three` a cluster
of its own for each row, over TCP and TLS on loopback; `flood` offers three nodes
ten times what they can do for half a minute, half of it to nodes that have to
pass it on, and looks at what became of them.

Nodes and load share the machine, and every figure is of one run: quote ratios
between rows of one table, not absolute figures of different ones. A figure below
the floor behind it is marked with a star and no failure: what else the machine
does counts. Errors and unknown outcomes are. BENCH_SECONDS=N measures each row
for N seconds (default 8: nodes write to their databases every 5),
BENCH_FLOOD_SECONDS=N floods for N (default 30).
"""
import os
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import Cluster, Node, json, program, until  # noqa: E402

SECONDS = os.environ.get("BENCH_SECONDS", "8")
FLOOD_SECONDS = os.environ.get("BENCH_FLOOD_SECONDS", "30")
PIPELINED = ["--clients", "16", "--pipeline", "64"]

# What, how, and the floor in calls a second (0: none).
ONE = [
    ("answers only, 256 connections", "null", ["--clients", "256"], 0),
    ("durable increment, 1 client", "kv-incr", ["--clients", "1"], 0),
    ("durable increment, 64 clients", "kv-incr", [], 0),
    ("the same, 16 x 64 pipelined", "kv-incr", PIPELINED, 0),
    ("one hot object, 16 x 64 pipelined", "kv-incr",
     PIPELINED + ["--objects", "1"], 0),
    ("durable put, 64 clients", "kv-put", [], 0),
    ("linearizable get, 64 clients", "kv-get", [], 0),
    ("limiter in memory, 50 clients", "limit-memory", ["--clients", "50"], 0),
    ("the same, 50 x 16 pipelined", "limit-memory",
     ["--clients", "50", "--pipeline", "16"], 0),
    ("limiter lagged, 50 clients", "limit-lagged", ["--clients", "50"], 0),
    ("limiter leased, 50 clients", "limit-leased", ["--clients", "50"], 0),
    ("limiter committed, 50 clients", "limit-committed",
     ["--clients", "50"], 0),
    ("100,000 objects, one row each", "idle", ["--objects", "100000"], 0),
]
THREE = [
    ("answers only, 64 clients", "null", [], 0),
    ("durable increment, 1 client", "kv-incr", ["--clients", "1"], 1600),
    ("durable increment, 64 clients", "kv-incr", [], 36000),
    ("the same, 16 x 64 pipelined", "kv-incr", PIPELINED, 120000),
    ("one hot object, 16 x 64 pipelined", "kv-incr",
     PIPELINED + ["--objects", "1"], 80000),
    ("increment, 64 through one node", "kv-incr", ["--through-one"], 25000),
    ("durable put, 64 clients", "kv-put", [], 0),
    ("linearizable get, 64 clients", "kv-get", [], 80000),
    ("get, 64 through one node", "kv-get", ["--through-one"], 50000),
    ("limiter lagged, 50 clients", "limit-lagged", ["--clients", "50"],
     90000),
    ("limiter leased, 50 clients", "limit-leased", ["--clients", "50"],
     50000),
    ("limiter committed, 50 clients", "limit-committed",
     ["--clients", "50"], 0),
]

# Stages of a call: the loop thread's time by phase, then the other threads'.
STAGES = [("execute", "read+run"), ("propose", "propose"), ("log", "log"),
          ("round", "round"), ("release", "release"), ("send", "send"),
          ("log_writer", "writer"), ("storage", "sqlite")]


def bench(where, work, args, seconds=SECONDS):
    r = subprocess.run([program("holdfast"), "bench", work, "--seconds",
                        seconds, "--json"] + where + args,
                       stdout=subprocess.PIPE, timeout=600, text=True,
                       check=True)
    return json.loads(r.stdout.strip().splitlines()[-1])


def number(v, form):
    return "-" if v is None else form % v


def run_one(work, args):
    with Node().start() as node:
        r = bench(["--socket", node.socket], work, args)
        node.stop()
    return r


def run_three(work, args):
    with Cluster(3, shards=16).start() as c:
        settled(c)
        r = bench(["--config", c.client_yaml], work, args)
        c.stop()
    return r


def settled(c, spread=True):
    """The leaderships stay where they are for a second; `spread`: and are where
    they belong, which takes some seconds after a start."""
    last, since = None, 0
    home = {s: c.nodes[s % len(c.nodes)].name for s in range(c.shards)}

    def ask():
        nonlocal last, since
        now = {s: n.name for s, n in c.wait_leaders().items()}
        if now != last or (spread and now != home):
            last, since = now, time.monotonic()
        return time.monotonic() - since > 1
    until("leaderships stay where they are", ask)


def table(title, rows, run):
    failed = 0
    stages = []
    print("\n%s\n\n%-35s %8s  %8s %8s %8s %8s %8s %7s %7s %6s" %
          (title, "", "calls/s", "p50 us", "p99 us", "max us", "syncs/op",
           "frames/op", "srv us", "cli us", "errors"))
    for title, work, args, floor in rows:
        r = run(work, args)
        stages.append((title, r["stage_us_per_op"]))
        failed += r["errors"] > 0 or r["unknown"] > 0
        print("%-35s %8.0f%s %8.0f %8.0f %8.0f %8s %8s %7s %7.2f %6d%s" %
              (title, r["ops_per_s"], "*" if r["ops_per_s"] < floor else " ",
               r["p50_us"], r["p99_us"], r["max_us"],
               number(r["syncs_per_op"], "%.4f"),
               number(r["frames_per_op"], "%.2f"),
               number(r["server_cpu_us_per_op"], "%.2f"),
               r["client_cpu_us_per_op"], r["errors"],
               "  floor %d" % floor if floor else ""))
        if work == "idle":
            print("%-35s %8.0f  bytes of memory per resident object" %
                  ("", r["rss_bytes_per_object"]))
        sys.stdout.flush()
    print("\nCPU of the nodes per call by stage, us (the loop's phases, then "
          "the log writer's\nand the storage thread's):\n")
    print("%-35s" % "" + "".join("%9s" % n for _, n in STAGES))
    for title, s in stages:
        print("%-35s" % title +
              "".join("%9s" % number(s[k], "%.2f") for k, _ in STAGES))
    return failed


def one():
    return table("One node", ONE, run_one)


def three():
    return table("Three nodes", THREE, run_three)


TIMES = 10
RSS_MAX = 256 << 20
# 48 connections, with room for what is offered in a sixth of a second.
FLOOD = ["--clients", "16", "--pipeline", "4096", "--forwarded", "50"]


class Watch:
    """The nodes' terms and memory, again and again while it is entered."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.rss = 0
        self.terms = {}
        self.moved = set()
        self.slowest = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.look()

    def look(self):
        for n in self.cluster.nodes:
            with open("/proc/%d/status" % n.proc.pid) as f:
                for line in f:
                    if line.startswith("VmRSS:"):
                        self.rss = max(self.rss, int(line.split()[1]) << 10)
            began = time.monotonic()
            rows = n.status()["shards"]
            self.slowest = max(self.slowest, time.monotonic() - began)
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


def flood_broken(rate, normal, r, again, watch):
    """The promises that were broken, in words."""
    broken = []
    if r["void"]:
        broken.append("VOID: of %d/s %d calls in all were not sent" %
                      (rate, r["unsent"]))
    if r["refused"] == 0:
        broken.append("nothing was refused: this was no flood")
    if r["errors"] or r["unknown"] or again["errors"] or again["unknown"]:
        broken.append("calls were lost")
    if watch.moved:
        broken.append("terms have changed: %s" % sorted(watch.moved))
    if watch.rss >= RSS_MAX:
        broken.append("a node took more than 256 MiB")
    if r["p99_us"] >= 5 * normal["p99_us"]:
        broken.append("what was admitted took %.1f times as long" %
                      (r["p99_us"] / normal["p99_us"]))
    if (again["ops_per_s"] < 0.7 * normal["ops_per_s"] or
            again["p99_us"] > 2 * normal["p99_us"]):
        broken.append("afterwards it is not as before")
    return broken


def flood():
    """Returns how many of the promises were broken."""
    load = ["--objects", "1000", "--prefix", "f-"]
    with Cluster(3, shards=16,
                 config="raft:\n  spread: false\n").start() as c:
        settled(c, spread=False)
        where = ["--config", c.client_yaml]
        normal = bench(where, "kv-incr", load)
        rate = int(TIMES * normal["ops_per_s"])
        with Watch(c) as watch:
            r = bench(where, "kv-incr", load + FLOOD + ["--rate", str(rate)],
                      FLOOD_SECONDS)
        again = bench(where, "kv-incr", load)
        c.stop()
    print("\nFlood: %d/s for %s s, half of it to nodes that forward\n" %
          (rate, FLOOD_SECONDS))
    print("%-10s %9s %9s %9s %9s %9s" % ("", "calls/s", "refused", "unknown",
                                         "p50 us", "p99 us"))
    for title, x in (("before", normal), ("flood", r), ("after", again)):
        print("%-10s %9.0f %9d %9d %9.0f %9.0f" %
              (title, x["ops_per_s"], x["refused"], x["unknown"], x["p50_us"],
               x["p99_us"]))
    print("memory of a node: %.0f MiB at most; status within %.0f ms; the "
          "generator took\n%.2f us of CPU per call and was %.1f ms late at "
          "most" % (watch.rss / 2**20, watch.slowest * 1000,
                    r["client_cpu_us_per_op"], r["generator_late_us"] / 1000))
    broken = flood_broken(rate, normal, r, again, watch)
    for b in broken:
        print("BROKEN: " + b)
    return len(broken)


def main():
    failed = 0
    for name in sys.argv[1:] or ["one", "three", "flood"]:
        failed += {"one": one, "three": three, "flood": flood}[name]()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
