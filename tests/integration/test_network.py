#!/usr/bin/env python3
"""Cases of tests/README.md that need real processes, about networks, disks and
processors that fail: half-open connections, clients that reach one node only,
system calls that fail, files that vanish, an owner with a tenth of a processor.
The nodes are those of the testing build, so that HOLDFAST_MUTANT=NAME leaves a
rule out."""
import os
import shutil
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
sys.path.insert(0, os.path.dirname(__file__))
from hf import *  # noqa: E402,F403
from cut import Wires  # noqa: E402
from test_cluster import Load, call_until, owner_of  # noqa: E402

DEAD_S = 1.2  # After so long a connection that says nothing is given up.
TRACE = ["strace", "-f", "-qq", "-e", "signal=none", "-o", "/dev/null"]


def testing(**kw):
    return Cluster(shards=2, daemon="holdfastd-testing", **kw)


def refused_in(client, ms, method, *args):
    """An answer or an honest error, soon: the code, None for an answer."""
    began = time.monotonic()
    try:
        client.call("kv/nw", method, *args, deadline_ms=5000)
        code = None
    except CallError as e:
        code = e.code
    took = (time.monotonic() - began) * 1000
    assert took < ms, (method, code, took)
    return code


def test_nw5_a_connection_that_passes_nothing_is_given_up():
    with testing() as c, Wires(c) as wires:
        c.start()
        victim = owner_of(c, "kv/nw")
        began = time.monotonic()
        wires.isolate(victim)
        other = c.others(victim)[0]
        until("nobody waits for it", lambda: all(
            n.find("nothing came for too long") for n in c.others(victim)),
            10 * DEAD_S)
        took = time.monotonic() - began
        assert took < 3 * DEAD_S, took
        client = other.client()
        call_until(client, "kv/nw", "incr", {"key": "n"})
        client.close()


def served(client):
    """An increment was answered; one whose owner was cut off may be of unknown
    outcome, which is no refusal to serve."""
    try:
        client.call("kv/nw", "incr", {"key": "n"})
    except CallError as e:
        assert e.code in ("NO_QUORUM", "NOT_OWNER", "OVERLOADED",
                          "UNKNOWN_OUTCOME"), e.map
        return False
    return True


def test_nw8_a_client_that_reaches_one_node_only():
    with testing() as c, Wires(c) as wires:
        c.start()
        old = owner_of(c, "kv/nw")
        follower = c.others(old)[0]
        f = follower.client()
        o = old.client()
        # A follower passes the call on, or says to whom it belongs.
        assert refused_in(f, 200, "incr", {"key": "n"}) is None
        try:
            f.call("kv/nw", "get", {"key": "n"}, route="redirect")
            raise AssertionError("not redirected")
        except CallError as e:
            assert e.code == "NOT_OWNER" and e.map["owner"] == old.name, e.map
        # The owner that was, alone: a refusal, and at once.
        wires.isolate(old)
        until("the others serve", lambda: served(f))
        threading.Event().wait(2 * DEAD_S)
        for method in ("get", "incr"):
            code = refused_in(o, 200, method, {"key": "n"})
            assert code == "NO_QUORUM", code
        wires.mend()
        until("the old owner passes calls on", lambda: served(o))
        f.close()
        o.close()


def test_dk8_a_disk_that_became_read_only():
    """Every write fails from the 40th on, with what a file system answers that
    was remounted: the node stops, and says why; the others go on."""
    with testing() as c:
        for n in c.nodes:
            wrap = ()
            if n.id == 1:
                wrap = TRACE + ["-e", "trace=pwrite64", "-e",
                                "inject=pwrite64:error=EROFS:when=400+"]
            n.begin(wrap)
        for n in c.nodes:
            n.wait_event("node_ready")
        c.wait_leaders()
        with Load(c, writers=3) as load:
            load.wait(300)
            assert c[1].wait() == 70, c[1].lines[-4:]
            load.wait(300)
            c[1].start()
            load.wait(100)
            load.__exit__()
            print("     %d acknowledged" % load.check())


def test_dk8_no_more_descriptors():
    """Below what it has open already: it takes no new connection, serves those
    it has, and all of them again when it may."""
    with testing().start() as c:
        n = c[1]
        before = n.client()
        call_until(before, "kv/nw", "incr", {"key": "n"})
        # The tracer's view of it: the process is n.pid.
        used = len(os.listdir("/proc/%d/fd" % n.pid))
        import resource
        old = resource.prlimit(n.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(n.pid, resource.RLIMIT_NOFILE, (used, old[1]))
        late = []
        for _ in range(20):
            try:
                late.append(n.client(2))
            except OSError:
                pass
        for _ in range(20):
            call_until(before, "kv/nw", "incr", {"key": "n"})
        assert n.running
        resource.prlimit(n.pid, resource.RLIMIT_NOFILE, old)
        for x in late:
            x.close()
        after = n.client()
        call_until(after, "kv/nw", "incr", {"key": "n"})
        after.close()
        # Not even the one that libuv keeps for this: it tries again at once.
        resource.prlimit(n.pid, resource.RLIMIT_NOFILE, (3, old[1]))
        try:
            late.append(n.client(2))
        except OSError:
            pass
        n.wait_event("accept_failed")
        resource.prlimit(n.pid, resource.RLIMIT_NOFILE, old)
        call_until(before, "kv/nw", "incr", {"key": "n"})
        said = sum('"accept_failed"' in line for line in n.lines)
        assert said < 100, said
        before.close()
        assert n.stop() == 0, n.lines[-4:]


def test_dk8_files_that_vanish_under_it():
    with testing().start() as c:
        n = c[1]
        with Load(c, writers=3) as load:
            load.wait(200)
            for name in os.listdir(n.data):
                if name in ("log", "state"):
                    shutil.rmtree(os.path.join(n.data, name))
            load.wait(200)
            # Whatever it has noticed: no signal ended it.
            if n.running:
                n.proc.terminate()
            code = n.wait()
            assert code in (0, 70), (code, n.lines[-4:])
            load.wait(100)
            n.begin()
            code = None
            try:
                n.wait_event("node_listening", 20)
            except AssertionError:
                code = n.wait()
                assert code > 0, n.lines[-4:]
            load.wait(100)
            load.__exit__()
            print("     %d acknowledged; then %s" %
                  (load.check(), "exit code %d" % code if code else
                   "it serves"))


def test_sl3_an_owner_with_a_tenth_of_a_processor():
    """Stopped for 90 of each 100 ms, as a quota of a tenth does it."""
    with testing().start() as c:
        victim = owner_of(c, "kv/nw")
        done = threading.Event()

        def throttle():
            while not done.is_set():
                victim.pause()
                done.wait(0.09)
                victim.resume()
                done.wait(0.01)

        with Load(c, writers=6) as load:
            load.wait(100)
            t = threading.Thread(target=throttle)
            t.start()
            try:
                end = time.monotonic() + 8
                while time.monotonic() < end:
                    load.wait(5)
            finally:
                done.set()
                t.join()
                victim.resume()
            load.wait(200)
            load.__exit__()
            print("     %d acknowledged" % load.check())


if __name__ == "__main__":
    main(tests_of(globals()))
