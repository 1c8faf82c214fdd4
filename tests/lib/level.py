#!/usr/bin/env python3
"""Waits until a node has everything that the others have committed, and tells
how it went. May be started before the node.

	level.py DIR NODE

DIR is what `holdfast init' made. Used by tests/demo.sh.
"""
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hf import CallError, Client, Gone, until  # noqa: E402


def committed(directory, node):
    """shard -> index; None while it cannot be asked."""
    try:
        c = Client(os.path.join(directory, node, "holdfast.sock"), 10)
    except OSError:
        return None
    try:
        return {r["shard"]: r["commit_index"] for r in c.rpc("status")["shards"]}
    except (CallError, Gone, OSError):
        return None
    finally:
        c.close()


def main():
    directory, node = sys.argv[1:3]
    others = sorted(n for n in os.listdir(directory)
                    if n.startswith("node") and n != node)
    want = {}
    for other in others:
        for s, i in (committed(directory, other) or {}).items():
            want[s] = max(want.get(s, 0), i)
    seen = []

    def level():
        have = committed(directory, node)
        if have is None:
            return False
        seen.append((time.monotonic(),
                     sum(max(0, i - have.get(s, 0)) for s, i in want.items())))
        return seen[-1][1] == 0
    until("%s has it all" % node, level)
    print("  %s: %d entries behind in %d shards when it first answers, level "
          "%.0f ms later" % (node, seen[0][1], len(want),
                             (seen[-1][0] - seen[0][0]) * 1000))


if __name__ == "__main__":
    main()
