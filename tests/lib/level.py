#!/usr/bin/env python3
"""Waits until a node that is being started has everything that the others have
committed, and tells how long that took.

	level.py DIR NODE ENTRIES

DIR is what `holdfast init' made; ENTRIES is what the node had when it died, as
failover.py says. Used by tests/demo.sh.
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
    entries = int(sys.argv[3])
    others = sorted(n for n in os.listdir(directory)
                    if n.startswith("node") and n != node)
    want = {}
    for other in others:
        for s, i in (committed(directory, other) or {}).items():
            want[s] = max(want.get(s, 0), i)
    began = time.monotonic()

    def level():
        have = committed(directory, node)
        return have is not None and all(
            have.get(s, 0) >= i for s, i in want.items())
    until("%s has it all" % node, level)
    print("  %s: %d entries were committed without it; %.0f ms after it was "
          "started it has them" % (node, sum(want.values()) - entries,
                                   (time.monotonic() - began) * 1000))


if __name__ == "__main__":
    main()
