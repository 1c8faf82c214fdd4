#!/usr/bin/env python3
"""kill -9 under load, syncs before answers, and disks that fail."""
import os
import random
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from crash import Load  # noqa: E402
from hf import *  # noqa: E402,F403

KILLS = int(os.environ.get("HOLDFAST_KILLS", "10"))


def kill_after(node, answers):
    """Kill the node when the load has this many answers more than now."""
    def kill(load):
        c = node.client()
        begun = len(load.keyed)
        # Each ping is a turn of the loop under the load: no clock is read.
        while len(load.keyed) < begun + answers:
            c.rpc("ping")
        os.kill(node.pid, 9)
        node.wait()
        c.close()
    return kill


def test_kill_under_load():
    random.seed(1)
    with Node().start() as n:
        load = Load(n)
        for _ in range(KILLS):
            load.run(100000, kill_after(n, random.randrange(20, 600)))
            n.start()
            load.check()
        counters, keys = load.check()
        print("     %d kills, %d acknowledged, %d counters" %
              (KILLS, len(load.keyed), counters))


def test_kill_twice_at_once():
    """The second kill comes while the first restart is still recovering."""
    with Node().start() as n:
        load = Load(n)
        load.run(100000, kill_after(n, 300))
        for _ in range(3):
            n.start(ready=False)
            n.proc.kill()
            n.wait()
        n.start()
        load.check()


TRACE = ["strace", "-f", "-qq", "-e", "signal=none"]


def traced(n, options, log):
    n.wrap = TRACE + ["-o", log] + options
    return n


def test_a_sync_ends_between_request_and_answer():
    with Node() as n:
        n.start()
        assert n.stop() == 0
        log = os.path.join(n.data, "trace")
        traced(n, ["-e", "trace=read,recvmsg,recvfrom,write,writev,sendmsg,"
                   "sendto,fdatasync,fsync", "-s", "256"], log)
        n.start()
        c = n.client()
        for i in range(20):
            c.call("kv/t", "put", {"key": "marker%d" % i, "value": "x"})
        c.close()
        n.stop()
        with open(log) as f:
            lines = f.read().splitlines()
        for i in range(20):
            at = next(k for k, l in enumerate(lines)
                      if "marker%d\\" % i in l or "marker%d\"" % i in l)
            answer = next(k for k in range(at + 1, len(lines))
                          if re.search(r"(write|writev|sendmsg|sendto)\(",
                                       lines[k]) and '"rev"' not in lines[k]
                          and "\\243rev" in lines[k])
            synced = [l for l in lines[at:answer]
                      if re.search(r"(fdatasync|fsync)(\(| resumed).*= 0", l)]
            assert synced, lines[at:answer + 1]


def faulty(n, syscall, error, when):
    """The node with the n-th such system call failing, and all after it."""
    return traced(n, ["-e", "trace=" + syscall, "-e",
                      "inject=%s:error=%s:when=%d+" % (syscall, error, when)],
                  "/dev/null")


def check_fault(syscall, error, when):
    with Node() as n:
        n.start()
        load = Load(n, writers=4)
        load.run(30)
        load.check()
        assert n.stop() == 0
        faulty(n, syscall, error, when)
        n.start(ready=False)
        try:
            n.wait_line('"event":"node_ready"')
            load.run(100000)
        except AssertionError:
            pass  # It already failed while it started.
        code = n.wait()
        assert code == 70, (syscall, error, when, code, n.lines[-3:])
        acked = dict(load.acked)
        n.wrap = []
        n.start()
        load.check()
        assert all(load.acked[a] >= v for a, v in acked.items())


def test_failing_syncs_stop_the_node():
    for when in (1, 2, 5, 40):
        check_fault("fdatasync", "EIO", when)


def test_failing_writes_stop_the_node():
    for error in ("EIO", "ENOSPC"):
        for when in (1, 7, 60):
            check_fault("pwrite64", error, when)


if __name__ == "__main__":
    main(tests_of(globals()))
