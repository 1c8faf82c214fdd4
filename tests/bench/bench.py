#!/usr/bin/env python3
"""make bench: one node of its own, every work of `holdfast bench`, one table.

Server and load share the machine, and every figure is of one run: quote ratios
between rows of one table, not absolute figures of different ones. With
BENCH_SECONDS=N each row is measured for N seconds (default 4).
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import Node, json, program  # noqa: E402

SECONDS = os.environ.get("BENCH_SECONDS", "4")

ROWS = [
    ("answers only, 256 connections", "null", ["--clients", "256"]),
    ("durable increment, 1 client", "kv-incr", ["--clients", "1"]),
    ("durable increment, 64 clients", "kv-incr",
     ["--clients", "64", "--objects", "1000"]),
    ("the same, 16 x 64 pipelined", "kv-incr",
     ["--clients", "16", "--pipeline", "64", "--objects", "1000"]),
    ("one hot object, 16 x 64 pipelined", "kv-incr",
     ["--clients", "16", "--pipeline", "64", "--objects", "1"]),
    ("durable put, 64 clients", "kv-put", ["--clients", "64"]),
    ("linearizable get, 64 clients", "kv-get", ["--clients", "64"]),
    ("limiter in memory, 50 clients", "limit-memory", ["--clients", "50"]),
    ("the same, 50 x 16 pipelined", "limit-memory",
     ["--clients", "50", "--pipeline", "16"]),
    ("limiter lagged, 50 clients", "limit-lagged", ["--clients", "50"]),
    ("limiter committed, 50 clients", "limit-committed",
     ["--clients", "50"]),
    ("100,000 objects, one row each", "idle", ["--objects", "100000"]),
]

# Stages of a call: the loop thread's time by phase, then the other threads'.
STAGES = [("execute_us", "read+run"), ("propose_us", "propose"),
          ("log_us", "log"), ("round_us", "round"),
          ("release_us", "release"), ("send_us", "send"),
          ("log_writer_us", "writer"), ("storage_us", "sqlite")]


def bench(node, work, args):
    out = subprocess.run([program("holdfast"), "bench", work, "--socket",
                          node.socket, "--seconds", SECONDS, "--json"] + args,
                         stdout=subprocess.PIPE, timeout=300, text=True,
                         check=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def main():
    failed = 0
    stages = []
    print("%-35s %9s %8s %8s %8s %9s %7s %7s %6s" %
          ("", "calls/s", "p50 us", "p99 us", "max us", "syncs/op",
           "srv us", "cli us", "errors"))
    for title, work, args in ROWS:
        with Node().start() as node:
            client = node.client()
            before = client.rpc("status")["stages"]
            r = bench(node, work, args)
            after = client.rpc("status")["stages"]
            client.close()
            node.stop()
        calls = max(1, r["acked_total"] + r["unknown_total"])
        stages.append((title, {k: (after[k] - before[k]) / calls
                               for k, _ in STAGES}))
        failed += r["errors"] > 0 or r["unknown"] > 0
        print("%-35s %9.0f %8.0f %8.0f %8.0f %9.4f %7.2f %7.2f %6d" %
              (title, r["ops_per_s"], r["p50_us"], r["p99_us"], r["max_us"],
               r["syncs_per_op"], r["server_cpu_us_per_op"],
               r["client_cpu_us_per_op"], r["errors"]))
        if work == "idle":
            print("%-35s %9.0f bytes of memory per resident object" %
                  ("", r["rss_bytes_per_object"]))
        sys.stdout.flush()
    print("\nCPU of the server per call by stage, us (the loop's phases, then "
          "the log writer's\nand the storage thread's):\n")
    print("%-35s" % "" + "".join("%9s" % n for _, n in STAGES))
    for title, s in stages:
        print("%-35s" % title + "".join("%9.2f" % s[k] for k, _ in STAGES))
    sys.exit(1 if failed else 0)


main()
