#!/usr/bin/env python3
"""Three network namespaces as three hosts, and a network between them that
fails in one direction.

    hosts.py [SCENE...]        partition, one_way, deaf, mute, flapping

Each node runs in a namespace of its own with a veth to one bridge; clients
(load.c) come from outside, over the bridge and over each node's socket. What is
cut is dropped by nftables where it arrives, by the address it comes from, so
either direction of any pair may be cut: connections stay, and nobody is told.
At the end of each scene all is healed and every node catches up; at the very
end the history of all calls is judged. HOLDFAST_SCENE_SECONDS says how long a
cut lasts (8).

Needs root, iproute2 and nftables. Without root nothing is tested, and said.
"""
import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
sys.path.insert(0, os.path.dirname(__file__))
from hf import Cluster, passes, until  # noqa: E402
from chaos import (Load, caught_up, end, first_writes, limit,  # noqa: E402
                   owned_by, say)

SHARDS = 8
SECONDS = float(os.environ.get("HOLDFAST_SCENE_SECONDS", "8"))
NAME = "hf%d" % (os.getpid() % 10000)
NET = "10.213.%d" % (os.getpid() % 250)


def run(*argv):
    r = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, timeout=30)
    if r.returncode != 0:
        raise OSError("%s: %s" % (" ".join(argv), r.stdout.strip()))
    return r.stdout


class Hosts:
    """The namespaces, numbered from 1 like the nodes, and the bridge."""

    def __init__(self, n):
        self.n = n

    def namespace(self, i):
        return "%s-%d" % (NAME, i)

    def address(self, i):
        return "%s.%d" % (NET, i)

    def inside(self, i, *argv):
        return run("ip", "netns", "exec", self.namespace(i), *argv)

    def __enter__(self):
        try:
            run("ip", "link", "add", NAME, "type", "bridge")
            run("ip", "address", "add", self.address(254) + "/24", "dev", NAME)
            run("ip", "link", "set", NAME, "up")
            for i in range(1, self.n + 1):
                self._add(i)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _add(self, i):
        ns = self.namespace(i)
        out, within = "%s-v%d" % (NAME, i), "eth0"
        run("ip", "netns", "add", ns)
        run("ip", "link", "add", out, "type", "veth", "peer", "name", within,
            "netns", ns)
        run("ip", "link", "set", out, "master", NAME, "up")
        self.inside(i, "ip", "address", "add", self.address(i) + "/24", "dev",
                    within)
        self.inside(i, "ip", "link", "set", within, "up")
        self.inside(i, "ip", "link", "set", "lo", "up")
        self.inside(i, "nft", "add table inet hf; add chain inet hf in "
                    "{ type filter hook input priority 0; }")

    def __exit__(self, *exc):
        for i in range(1, self.n + 1):
            subprocess.run(["ip", "netns", "del", self.namespace(i)],
                           stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "del", NAME], stderr=subprocess.DEVNULL)

    def drop(self, a, b):
        """Nothing of `a` reaches `b` any more."""
        self.inside(b.id, "nft", "add rule inet hf in ip saddr %s drop" %
                    self.address(a.id))

    def cut(self, a, b):
        self.drop(a, b)
        self.drop(b, a)

    def heal(self):
        for i in range(1, self.n + 1):
            self.inside(i, "nft", "flush chain inet hf in")


def terms(c):
    out = {}
    for n in c.nodes:
        for r in n.status()["shards"]:
            out[r["shard"]] = max(out.get(r["shard"], 0), r["term"])
    return out


def busiest(c):
    """Of the owners, who owns most."""
    return max(c.nodes, key=lambda n: len(owned_by(c, n)))


def away(h, c, load, what, cut):
    """`cut` hurts an owner: its shards serve elsewhere."""
    node = busiest(c)
    shards = owned_by(c, node)
    assert shards
    load.skip()
    at = time.monotonic_ns()
    cut(node)
    waits = list(first_writes(load, at, shards, node.name).values())
    threading.Event().wait(SECONDS)
    say(what, waits)
    # What a deaf or mute owner may take: its own election timeout, then that
    # of the others.
    limit("max", max(waits), 2000)


def partition(h, c, load):
    """An owner and all others do not see each other."""
    away(h, c, load, "an owner alone",
         lambda node: [h.cut(node, o) for o in c.others(node)])


def deaf(h, c, load):
    """An owner that is heard, and hears nobody."""
    away(h, c, load, "a deaf owner",
         lambda node: [h.drop(o, node) for o in c.others(node)])


def mute(h, c, load):
    """An owner that hears all, and is heard by nobody."""
    away(h, c, load, "a mute owner",
         lambda node: [h.drop(node, o) for o in c.others(node)])


def one_way(h, c, load):
    """Of one pair the one does not hear the other; the third hears both.
    Nobody's leadership ends that had a majority."""
    a, b, _ = c.nodes
    before = terms(c)
    h.drop(a, b)
    threading.Event().wait(SECONDS)
    after = terms(c)
    assert after == before, (before, after)
    until("all shards serve", lambda: None not in c.leaders().values())


def flapping(h, c, load):
    """A link that is there for a second and away for one."""
    a, b, _ = c.nodes
    before = terms(c)
    rounds = max(1, int(SECONDS))
    for _ in range(rounds):
        h.cut(a, b)
        threading.Event().wait(1)
        h.heal()
        threading.Event().wait(1)
    after = terms(c)
    changes = sum(after[s] - before[s] for s in after)
    print("     %d changes of %d leaderships in %d s" %
          (changes, len(after), 2 * rounds))
    # One in ten seconds, each.
    assert changes <= len(after) * (2 * rounds + 9) // 10, (before, after)


def scenes(names):
    passed = 0
    with Hosts(3) as h, \
            Cluster(3, shards=SHARDS, ports=(7101, 7201),
                    host=",".join(h.address(i + 1) for i in range(3)),
                    config="raft:\n  spread: false\n") as c, \
            contextlib.ExitStack() as stack:
        for n in c.nodes:
            n.begin(("ip", "netns", "exec", h.namespace(n.id)))
        for n in c.nodes:
            n.wait_event("node_ready")
        c.wait_leaders()
        load = stack.enter_context(Load(c, 5))
        first_writes(load, 0, set(range(SHARDS)), None)
        for name in names:
            passed += passes(name, lambda: globals()[name](h, c, load))
            h.heal()
            c.wait_leaders()
            for n in c.nodes:
                caught_up(c, n)
        failed = len(names) - passed
        end(load)
        passed += 1
        print("ok   judged")
    return passed, failed


def main():
    names = sys.argv[1:] or ["partition", "one_way", "deaf", "mute",
                             "flapping"]
    passed = failed = 0
    if os.geteuid() != 0:
        print("     not tested: namespaces need root, and this is uid %d" %
              os.geteuid())
    elif not shutil.which("ip") or not shutil.which("nft"):
        failed = 1
        print("FAIL hosts: iproute2 or nftables is not installed")
    else:
        try:
            passed, failed = scenes(names)
        except Exception:
            import traceback
            failed += 1
            print("FAIL hosts")
            traceback.print_exc(file=sys.stdout)
    print("# hosts.py: %d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
