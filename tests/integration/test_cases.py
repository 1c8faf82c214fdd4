#!/usr/bin/env python3
"""Cases of tests/README.md that need real processes: owners that are cut off
together with their clients, kill -9 again and again. The nodes are those of the
testing build, so that HOLDFAST_MUTANT=NAME leaves a rule out."""
import os
import random
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
sys.path.insert(0, os.path.dirname(__file__))
from hf import *  # noqa: E402,F403
from cut import Wires  # noqa: E402
from test_cluster import Load, call_until, owner_of  # noqa: E402


# Nobody can have said anything else on the wrong side of a cut.
NOTHING = ("NOT_OWNER", "NO_QUORUM", "UNKNOWN_OUTCOME", "DEADLINE")


def value_of(client, address):
    try:
        return client.call(address, "get", {"key": "n"})["value"]
    except CallError as e:
        assert e.code in NOTHING + ("OVERLOADED",), e.map
        return None


def test_so5_an_owner_is_cut_off_with_its_client():
    with Cluster(shards=2, daemon="holdfastd-testing") as c, Wires(c) as wires:
        c.start()
        address = "kv/so5"
        victim = owner_of(c, address)
        others = c.others(victim)
        few = victim.client()
        many = [n.client() for n in others]
        until("the owner stays", lambda: owner_of(c, address) is victim)
        base = call_until(few, address, "get", {"key": "n"})["value"]
        few_said = []
        done = threading.Event()

        def minority():
            for i in range(1 << 20):
                if done.is_set():
                    return
                method = "incr" if i % 2 else "get"
                try:
                    few_said.append((method, few.call(
                        address, method, {"key": "n"}, deadline_ms=300)))
                except CallError as e:
                    few_said.append((method, e.code))

        wires.isolate(victim)
        t = threading.Thread(target=minority)
        t.start()
        last = None
        unknown = ok = 0
        try:
            # A write that nobody could confirm may have been the first.
            while ok < 200:
                try:
                    v = many[ok % 2].call(address, "incr", {"key": "n"},
                                          deadline_ms=1000)["value"]
                except CallError as e:
                    assert e.code in NOTHING + ("OVERLOADED",), e.map
                    unknown += e.outcome == "unknown"
                    continue
                assert last is None or v == last + 1, (v, last)
                last = v
                ok += 1
            many_last = last
            until("the minority was told something",
                  lambda: len(few_said) > 5)
        finally:
            done.set()
            t.join()
        for method, said in few_said:
            assert said in NOTHING, (method, said)
        wires.mend()
        got = until("the cut is mended", lambda: value_of(few, address))
        assert got == many_last, (got, many_last)
        assert base + ok <= got <= base + ok + unknown, (base, ok, got)


def test_du3_kill_9_again_and_again():
    random.seed(3)
    with Cluster(shards=4, daemon="holdfastd-testing").start() as c:
        for _ in range(5):
            with Load(c, writers=8) as load:
                # Of one after the other, under load,
                for _ in range(3):
                    load.wait(60)
                    victim = random.choice(c.nodes)
                    victim.kill()
                    load.wait(20)
                    victim.start(ready=False)
                # and of all.
                load.wait(100)
                c.kill()
                load.stopping = True
            for n in c.nodes:
                n.begin()
            for n in c.nodes:
                n.wait_event("node_ready")
            assert len(c.wait_leaders()) == 4
            load.check()


def test_du3_what_a_killed_owner_has_said_is_kept():
    """It is killed when nobody else can have what it was asked last."""
    with Cluster(shards=2, daemon="holdfastd-testing",
                 config="raft:\n  spread: false\n") as c, Wires(c) as wires:
        c.start()
        address = "kv/du3"
        victim = owner_of(c, address)
        client = victim.client()
        said = call_until(client, address, "incr", {"key": "n"})["value"]
        wires.isolate(victim)
        for _ in range(5):
            try:
                said = client.call(address, "incr", {"key": "n"},
                                   deadline_ms=100)["value"]
            except CallError as e:
                assert e.code in NOTHING, e.map
        client.close()
        victim.kill()
        # What is in the wires stays there.
        other = c.others(victim)[0].client()
        got = call_until(other, address, "get", {"key": "n"})["value"]
        assert got >= said, (got, said)
        other.close()


if __name__ == "__main__":
    main(tests_of(globals()))
