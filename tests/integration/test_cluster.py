#!/usr/bin/env python3
"""Three real nodes: set-up, calls through each, kill -9, identity of disks,
certificates, dev-cluster."""
import hashlib
import os
import random
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import *  # noqa: E402,F403


class Load:
    """Writers that remember every answer, each on its own counters. A writer
    belongs to a node; while that is gone it goes to the next one. A call that
    did not come back is sent again with its key until it is answered, so that
    in the end every counter has exactly one value that is right. Over TCP: a
    key belongs to a principal, and a Unix socket's is its node's."""

    made = 0

    def __init__(self, cluster, writers=6, objects=8):
        Load.made += 1
        self.name = "l%d" % Load.made
        self.cluster = cluster
        self.writers = writers
        self.objects = objects
        self.value = {}      # address -> last acknowledged value
        self.answers = 0
        self.errors = []
        self.stopping = False
        self.threads = []
        self.more = threading.Condition()

    def _connect(self, w):
        """Of a node that can be reached, beginning with the writer's own."""
        nodes = self.cluster.nodes
        for i in range(len(nodes)):
            try:
                return nodes[(w + i) % len(nodes)].tls()
            except OSError:
                continue
        return None

    def _call(self, w, c, address, key):
        """Until it is answered; the connection then, and the value."""
        pause = threading.Event()
        while not self.stopping:
            if c is None:
                c = self._connect(w)
            if c is None:
                pause.wait(0.02)
                continue
            try:
                return c, c.call(address, "incr", {"key": "n"},
                                 idem=key)["value"]
            except (Gone, OSError):
                c.close()
                c = None
            except CallError as e:
                if e.code not in ("NO_QUORUM", "OVERLOADED", "NOT_OWNER",
                                  "UNKNOWN_OUTCOME", "DEADLINE"):
                    raise
                pause.wait(0.01)
        return c, None

    def _writer(self, w):
        c = None
        i = 0
        try:
            while not self.stopping:
                address = "kv/%s-%d-%d" % (self.name, w, i % self.objects)
                c, value = self._call(w, c, address, "%d-%d" % (w, i))
                i += 1
                if value is None:
                    # Given up in the end: it may count or not.
                    self.value[address] = (self.value.get(address, (0, 0))[0],
                                           1)
                    return
                want = self.value.get(address, (0, 0))[0] + 1
                if value != want:
                    self.errors.append((address, value, want))
                self.value[address] = (want, 0)
                with self.more:
                    self.answers += 1
                    self.more.notify_all()
        except Exception as e:  # noqa: BLE001 - shown by stop()
            self.errors.append(repr(e))
        finally:
            if c is not None:
                c.close()

    def __enter__(self):
        self.threads = [threading.Thread(target=self._writer, args=(w,))
                        for w in range(self.writers)]
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *exc):
        self.stopping = True
        for t in self.threads:
            t.join()

    def wait(self, more):
        """Until so many more calls were answered."""
        with self.more:
            want = self.answers + more
            end = LIMIT_S
            if not self.more.wait_for(lambda: self.answers >= want or
                                      self.errors, end):
                raise TimeoutError("no more answers")
        assert not self.errors, self.errors[:3]

    def check(self):
        """Every counter, read through another node each."""
        assert not self.errors, self.errors[:3]
        clients = [n.client() for n in self.cluster.nodes if n.running]
        for i, (address, (acked, open_)) in enumerate(self.value.items()):
            try:
                v = call_until(clients[i % len(clients)], address, "get",
                               {"key": "n"})["value"]
            except CallError as e:
                # The first call of all was given up, and did not count.
                assert e.code == "NOT_FOUND", e.map
                v = 0
            assert acked <= v <= acked + open_, (address, acked, open_, v)
        for c in clients:
            c.close()
        return self.answers


REFUSED = ("NO_QUORUM", "OVERLOADED", "NOT_OWNER")


def call_until(c, address, method, args=None, past=REFUSED, **options):
    """The answer, past refusals that time cures."""
    def ask():
        try:
            return [c.call(address, method, args, **options)]
        except CallError as e:
            if e.code in past:
                return None
            raise
    return until("%s of %s" % (method, address), ask)[0]


def owner_of(c, address):
    """The node that counted `n` of this object up just now."""
    client = c[1].client()
    try:
        _, meta = call_until(client, address, "incr", {"key": "n"}, meta=True)
        return c[meta["owner"]]
    finally:
        client.close()


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def read(path):
    with open(path, "rb") as f:
        return f.read()


# Set-up.

def test_files_of_a_cluster():
    with Cluster() as c:
        assert "offline" in c.said, c.said
        keys = set()
        for n in c.nodes:
            assert mode(n.dir) == 0o700, n
            key = os.path.join(n.dir, "tls", "node.key")
            assert mode(key) == 0o600, key
            keys.add(hashlib.sha256(read(key)).digest())
            assert sorted(os.listdir(os.path.join(n.dir, "tls"))) == \
                ["ca.pem", "node.key", "node.pem"]
            r = run("holdfastd", "--config", n.config, "--check-config")
            assert r.returncode == 0, r
        assert mode(os.path.join(c.dir, "ca", "ca.key")) == 0o600
        keys.add(hashlib.sha256(read(os.path.join(c.dir, "ca",
                                                  "ca.key"))).digest())
        keys.add(hashlib.sha256(read(os.path.join(c.dir, "client",
                                                  "client.key"))).digest())
        assert len(keys) == 5
        # The authority's key is nowhere else.
        secret = read(os.path.join(c.dir, "ca", "ca.key")).split(b"\n")[1]
        for root, _, files in os.walk(c.dir):
            for name in files:
                if name != "ca.key":
                    assert secret not in read(os.path.join(root, name))
        # Each has ports of its own.
        assert len(set(c.endpoints.values())) == 3


def test_init_refuses():
    with Cluster() as c:
        r = run("holdfast", "init", c.dir, "--nodes", "3")
        assert r.returncode == 1 and "not empty" in r.stderr, r
        before = sorted(os.listdir(c.dir))
        assert before == ["ca", "client", "client.yaml", "node1", "node2",
                          "node3"], before
        free = os.path.join(c.own, "free")
        for args, part in ((["--nodes", "2"], "1, 3 or 5"),
                           (["--nodes", "6"], "from 1 to 5"),
                           (["--nodes", "3", "--host", "a,b"], "host"),
                           (["--nodes", "3", "--host", "a b"], "address"),
                           (["--nodes", "3", "--host", ","], "host"),
                           (["--nodes", "3", "--rpc-port", "65534"],
                            "65535"),
                           (["--nodes", "3", "--rpc-port", "7000",
                             "--peer-port", "7002"], "twice"),
                           (["--nodes", "3", "--shards", "65"], "shards"),
                           (["--shards", "4"], "--nodes 3 or 5")):
            r = run("holdfast", "init", free, *args)
            assert r.returncode == 2 and part in r.stderr, (args, r)
            assert not os.path.exists(free), args
        r = run("holdfast", "init", os.path.join(c.own, "a", "b"),
                "--nodes", "3")
        assert r.returncode == 5 and "cannot make" in r.stderr, r


def test_usage():
    for args in (["--nodes", "3"], ["--certificate", "node/1"],
                 ["--reset", "x"], ["--dry-run"], ["--ca", "x"],
                 ["--init", "x", "--rpc-port", "65536"],
                 ["--init", "x", "--nodes", "-3"],
                 ["--init", "x", "--shards", "1x"],
                 ["--reset", "x", "--node", "0", "--like", "y",
                  "--incarnation", "00" * 16],
                 ["--reset", "x", "--node", "1", "--like", "y",
                  "--incarnation", "00" * 15]):
        r = run("holdfastd", *args)
        assert r.returncode == 64 and "usage" in r.stderr, (args, r)
        assert not os.path.exists("x"), args


def test_hosts_of_their_own():
    d = tempfile.mkdtemp(prefix="hf-", dir="/tmp")
    try:
        r = run("holdfast", "init", os.path.join(d, "c"), "--nodes", "5",
                "--host", "a.example,b.example,::1,10.0.0.4,e",
                "--shards", "2")
        assert r.returncode == 0, r
        text = read(os.path.join(d, "c", "node3", "holdfast.yaml")).decode()
        assert 'rpc: "[::1]:7101"' in text and 'peer: "e:7201"' in text, text
        for i in range(5):
            r = run("holdfastd", "--check-config", "--config",
                    os.path.join(d, "c", "node%d" % (i + 1), "holdfast.yaml"))
            assert r.returncode == 0, r
    finally:
        shutil.rmtree(d)


# Calls.

def test_three_nodes_serve():
    with Cluster().start() as c:
        for writer in c.nodes:
            w = writer.client()
            for i in range(12):
                w.call("kv/o%d" % i, "put",
                       {"key": writer.name, "value": "v%d" % i})
            w.close()
            for reader in c.nodes:
                r = reader.client()
                for i in range(12):
                    got = r.call("kv/o%d" % i, "get", {"key": writer.name})
                    assert got["value"] == "v%d" % i, (writer, reader, got)
                r.close()
        for n in c.nodes:
            t = n.tls()
            assert t.call("kv/o1", "get", {"key": "node1"})["value"] == "v1"
            t.close()
        r = c.run("kv", "get", "o2", "node3")
        assert r.returncode == 0 and "v2" in r.stdout, r
        assert c.stop() == [0, 0, 0]
        for n in c.nodes:
            assert not os.path.exists(n.socket)


def test_each_node_leads():
    """Leaderships are spread, and stay so when a node has come back."""
    with Cluster(shards=6).start() as c:
        def spread():
            leaders = list(c.leaders().values())
            return all(leaders.count(n) == 2 for n in c.nodes)
        until("two shards each", spread)
        c[2].kill()
        c.wait_leaders()
        c[2].start()
        until("two shards each again", spread)


def test_a_majority_serves_and_one_alone_does_not():
    with Cluster().start() as c:
        a = c[1].client()
        call_until(a, "kv/m", "put", {"key": "k", "value": "v"})
        c[2].kill()
        c[3].kill()
        e = None
        try:
            # What it still led answers until nobody confirms it.
            for _ in range(3):
                a.call("kv/m", "put", {"key": "k", "value": "w"},
                       deadline_ms=1500)
        except CallError as got:
            e = got
        assert e is not None and e.code in ("NO_QUORUM", "UNKNOWN_OUTCOME",
                                            "DEADLINE"), e
        c[2].start()
        c.wait_leaders()
        got = call_until(a, "kv/m", "get", {"key": "k"})
        assert got["value"] in ("v", "w"), got
        call_until(a, "kv/m", "put", {"key": "k", "value": "x"})
        a.close()


# The library and the program, when an endpoint is gone or silent.

def through_the_others(c, away):
    """Everything that the program asks a cluster works, and soon."""
    def timed(limit, *argv):
        began = time.monotonic()
        r = c.run(*argv)
        assert r.returncode == 0, r
        took = time.monotonic() - began
        assert took < limit, (argv, took)
        return r
    for i in range(12):
        timed(8, "call", "kv/e%d" % i, "incr", '{"key": "n"}')
    r = timed(8, "status", "--json")
    rows = {n["node"]: n for n in json.loads(r.stdout)["nodes"]}
    assert len(rows) == 3, rows
    assert [n for n in rows if "code" in rows[n]] == [away.name], rows
    r = timed(12, "bench", "kv-incr", "--seconds", "1", "--clients", "4",
              "--objects", "16", "--json")
    got = json.loads(r.stdout.splitlines()[-1])
    assert got["ok"] > 0 and got["errors"] == 0 and got["unknown"] == 0, got


def test_clients_do_without_a_dead_node():
    """The first endpoint that they are given, at that."""
    with Cluster().start() as c:
        c[1].kill()
        c.wait_leaders()
        through_the_others(c, c[1])


def test_clients_do_without_a_silent_node():
    """Whoever is behind its address takes connections, and says nothing."""
    with Cluster().start() as c:
        c[1].kill()
        c.wait_leaders()
        with socket.create_server(c.endpoints["node1"], backlog=512):
            through_the_others(c, c[1])


# kill -9.

def test_owner_killed_under_load():
    random.seed(1)
    with Cluster().start() as c, Load(c) as load:
        load.wait(300)
        for _ in range(3):
            victim = random.choice([n for n in c.wait_leaders().values()])
            victim.kill()
            load.wait(300)
            victim.start()
            load.wait(100)
        load.__exit__()
        print("     %d acknowledged" % load.check())


def test_a_node_that_was_away_catches_up():
    with Cluster().start() as c:
        c[3].kill()
        w = c[1].client()
        for i in range(300):
            call_until(w, "kv/a%d" % (i % 20), "incr", {"key": "n"})
        c[3].start()

        def level():
            rows = {n: {r["shard"]: r for r in n.status()["shards"]}
                    for n in c.nodes}
            leaders = c.leaders()
            return None not in leaders.values() and all(
                rows[c[3]][s]["commit_index"] >=
                rows[leaders[s]][s]["commit_index"] for s in leaders)
        until("node3 has what the others have", level)
        # By itself: the two others' disks are not asked any more.
        r = c[3].client()
        total = sum(call_until(r, "kv/a%d" % i, "get", {"key": "n"})["value"]
                    for i in range(20))
        assert total == 300, total
        r.close()
        w.close()


def test_all_killed_at_once():
    with Cluster().start() as c:
        for _ in range(2):
            with Load(c) as load:
                load.wait(200)
                c.kill()
                load.stopping = True
            for n in c.nodes:
                n.begin()
            for n in c.nodes:
                n.wait_event("node_ready")
            c.wait_leaders()
            load.check()


def test_a_paused_owner_says_nothing_old():
    with Cluster(shards=2).start() as c:
        leaders = c.wait_leaders()
        victim = leaders[1]
        other = c.others(victim)[0]
        a = victim.client()
        b = other.client()
        call_until(a, "kv/p", "put", {"key": "k", "value": 1})
        victim.pause()
        until("others lead", lambda: all(
            n is not None and n is not victim
            for n in _leaders_without(c, victim).values()))
        call_until(b, "kv/p", "put", {"key": "k", "value": 2})
        # Sent while it is frozen: it must not be answered from what it had.
        want = a.send("call", "kv/p", "get", {"key": "k"})
        victim.resume()
        got, error, result = a.recv()
        assert got == want
        assert error is not None or result["value"] == 2, (error, result)
        a.close()
        b.close()


def _leaders_without(c, away):
    out = {s: None for s in range(c.shards)}
    for n in c.others(away):
        for r in n.status()["shards"]:
            if r["leader"] == n.id:
                out[r["shard"]] = n
    return out


# Whose disk is it?

def test_a_copied_directory_does_not_start():
    with Cluster(shards=2).start() as c:
        n = c[3]
        assert n.stop() == 0
        os.rename(n.data, n.data + ".old")
        shutil.copytree(n.data + ".old", n.data)
        n.begin()
        assert n.wait() == 65
        assert n.find("copy"), n.lines


def test_an_older_state_is_refused_by_the_others():
    """The same directory with the content it had a boot ago."""
    with Cluster(shards=2).start() as c:
        n = c[3]
        assert n.stop() == 0
        old = n.data + ".old"
        shutil.copytree(n.data, old)
        n.start()
        w = c[1].client()
        for i in range(50):
            call_until(w, "kv/x%d" % i, "incr", {"key": "n"})
        n.kill()
        for name in os.listdir(n.data):
            path = os.path.join(n.data, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        shutil.copytree(old, n.data, dirs_exist_ok=True)
        n.begin()
        line = until("a peer refuses it", lambda: next(
            (l for p in c.others(n) for l in p.lines
             if l is not None and "holdfast node reset" in l), None))
        assert "node3" in line, line
        # It is told where to look, and the others say it once a link and not
        # at each attempt.
        n.wait_line("peer_unwelcome")
        for p in c.others(n):
            said = [l for l in p.lines if l is not None and "peer_refused" in l]
            assert 1 <= len(said) <= 2, said
        # The others serve without it.
        call_until(w, "kv/x1", "incr", {"key": "n"})
        w.close()


def test_each_bad_state_is_told_as_its_own():
    """Two shards with damaged states: each line is about its own shard."""
    with Cluster(shards=4).start() as c:
        n = c[3]
        w = c[1].client()
        for i in range(40):
            call_until(w, "kv/s%d" % i, "incr", {"key": "n"})
        w.close()
        assert n.stop() == 0
        for name in ("01-00000000.wal-mark", "02-00000000.wal-mark"):
            os.truncate(os.path.join(n.data, "state", name), 0)
        n.start()
        for i in (1, 2):
            line = next(l for l in n.lines if l is not None and
                        "state_bad" in l and '"shard":%d,' % i in l)
            assert "state/%02d-" % i in line, line


def reset(c, node, by, data=None):
    return run("holdfast", "--socket", by.socket, "node", "reset",
               str(node.id), data or node.data, "--like", by.data)


def test_a_lost_disk():
    """`node reset`: the same node with an empty disk, filled by the others."""
    with Cluster(shards=4).start() as c:
        w = c[1].client()
        for i in range(40):
            call_until(w, "kv/r%d" % i, "put", {"key": "k", "value": i})
        n = c[3]
        n.kill()
        r = reset(c, n, c[1])
        assert r.returncode == 1 and "must be empty" in r.stderr, r
        shutil.move(n.data, n.data + ".lost")
        r = reset(c, n, c[1])
        assert r.returncode == 0, r
        n.start()
        # It has lost its ballots and begins in new terms: owners lose their
        # shards once more, and what is on its way then may have happened.
        for i in range(40):
            call_until(w, "kv/r%d" % i, "put", {"key": "l", "value": i},
                       past=REFUSED + ("UNKNOWN_OUTCOME",))
        w.close()

        def level():
            rows = {r["shard"]: r["commit_index"]
                    for r in n.status()["shards"]}
            return all(rows[r["shard"]] >= r["commit_index"]
                       for r in c[1].status()["shards"])
        until("it has what the others have", level)
        # It is a member like any other: without node2 it makes the majority.
        c[2].kill()
        c.wait_leaders()
        r = n.client()
        for i in range(40):
            for key in "kl":
                got = call_until(r, "kv/r%d" % i, "get", {"key": key})
                assert got["value"] == i, (i, key, got)
        r.close()


def test_a_new_disk_where_the_old_was():
    """The data directory may be where a file system is mounted: it cannot be
    removed and made again, and whose it is stays as it is."""
    with Cluster(shards=2).start() as c:
        n = c[3]
        n.kill()
        shutil.move(n.data, n.data + ".lost")
        os.mkdir(n.data)
        os.mkdir(os.path.join(n.data, "lost+found"))
        os.chmod(n.data, 0o710)
        r = reset(c, n, c[1])
        assert r.returncode == 0, r
        assert os.stat(n.data).st_mode & 0o777 == 0o710
        n.start()
        assert n.stop() == 0


def test_the_lost_disk_comes_back():
    with Cluster(shards=2).start() as c:
        n = c[3]
        n.kill()
        os.rename(n.data, n.data + ".lost")
        r = reset(c, n, c[1])
        assert r.returncode == 0, r
        # Somebody finds the old disk and starts with that.
        os.rename(n.data, n.data + ".new")
        os.rename(n.data + ".lost", n.data)
        n.begin()
        until("a peer refuses it", lambda: c[1].find("another disk") or
              c[2].find("another disk"))
        n.kill()
        os.rename(n.data, n.data + ".lost")
        os.rename(n.data + ".new", n.data)
        n.start()
        assert n.stop() == 0


def test_reset_refuses():
    with Cluster(shards=2).start() as c:
        new = os.path.join(c.own, "new")
        for args, part in (
                (["9", new, "--like", c[1].data], "no member 9"),
                (["1", new, "--like", c[1].data], "own"),
                (["x", new, "--like", c[1].data], "id"),
                (["3", new, "--like", c.own], "identity"),
                (["3", new], "--like")):
            r = run("holdfast", "--socket", c[1].socket, "node", "reset",
                    *args)
            assert r.returncode in (1, 2) and part in r.stderr, (args, r)
            assert not os.path.exists(new), args
        # The certificate of a client is not the operator.
        r = c.run("node", "reset", "3", new, "--like", c[1].data)
        assert r.returncode == 1 and not os.path.exists(new), r


def test_a_moved_directory():
    with Cluster(shards=2).start() as c:
        n = c[3]
        assert n.stop() == 0
        shutil.copytree(n.data, n.data + ".moved")
        shutil.rmtree(n.data)
        os.rename(n.data + ".moved", n.data)
        r = run("holdfast", "node", "adopt", n.data)
        assert r.returncode == 0 and "node3" in r.stdout, r
        n.start()
        r = run("holdfast", "node", "adopt", n.data)
        assert r.returncode == 1 and "another process" in r.stderr, r
        r = run("holdfast", "node", "adopt", c.own)
        assert r.returncode == 1 and "identity" in r.stderr, r


def test_another_clusters_directory():
    with Cluster(shards=2) as c, Cluster(shards=2) as d:
        shutil.rmtree(c[3].data)
        os.rename(d[3].data, c[3].data)
        c[3].begin()
        assert c[3].wait() == 78
        assert c[3].find("tls.cert"), c[3].lines


def test_a_directory_made_for_one_node():
    with Cluster(shards=2) as c:
        n = c[3]
        shutil.rmtree(n.data)
        r = run("holdfastd", "--format", n.data, "--config", n.config)
        assert r.returncode == 0, r
        n.begin()
        assert n.wait() == 78, n.lines
        # And without peers in its configuration it is that node.
        with open(n.config, "w") as f:
            f.write("data: data\nlisten: {socket: holdfast.sock}\n")
        n.start()
        assert n.stop() == 0


def test_a_member_without_its_peers():
    with Cluster(shards=2) as c:
        with open(c[1].config, "w") as f:
            f.write("data: data\nlisten: {socket: holdfast.sock}\n")
        c[1].begin()
        assert c[1].wait() == 78
        assert c[1].find("peers: has 0"), c[1].lines


def test_a_directory_of_the_version_before():
    """It has no file `members`."""
    with Node() as n:
        n.start()
        c = n.client()
        c.call("kv/a", "put", {"key": "k", "value": "v"})
        c.close()
        assert n.stop() == 0
        os.unlink(os.path.join(n.data, "members"))
        n.start()
        c = n.client()
        assert c.call("kv/a", "get", {"key": "k"})["value"] == "v"
        c.close()
        assert n.stop() == 0


# Certificates.

def cert(c, *args, out):
    return run("holdfast", "cert", *args, "--ca", os.path.join(c.dir, "ca"),
               "--out", out)


def served(node):
    """The certificate that it shows to clients, DER."""
    t = node.tls()
    try:
        return t.sock.getpeercert(True)
    finally:
        t.close()


def refused(node, **who):
    """The connection, or the first thing said on it, fails."""
    try:
        c = node.tls(**who)
    except (ssl.SSLError, ConnectionError):
        return True
    try:
        c.rpc("ping")
    except (Gone, OSError):
        return True
    finally:
        c.close()
    return False


def test_wrong_certificates():
    with Cluster(shards=2).start() as c, Cluster(shards=2) as d:
        n = c[1]
        assert not refused(n)
        ca = os.path.join(c.dir, "client", "ca.pem")
        other = os.path.join(d.dir, "client")
        assert refused(n, ca=ca, cert=os.path.join(other, "client.pem"),
                       key=os.path.join(other, "client.key"))
        # And the client does not believe another cluster's node.
        assert refused(n, ca=os.path.join(other, "ca.pem"))
        host, port = c.endpoints[n.name]
        try:
            t = Client(connect_tls(host, port, ca, None, None))
            t.rpc("ping")
            raise AssertionError("served without a certificate")
        except (ssl.SSLError, Gone, OSError):
            pass
        plain = Client(socket.create_connection((host, port), LIMIT_S))
        try:
            plain.rpc("ping")
            raise AssertionError("served without TLS")
        except (Gone, OSError):
            pass
        plain.close()


def test_a_client_without_grants():
    with Cluster(shards=2).start() as c:
        out = os.path.join(c.own, "other")
        r = cert(c, "client", "default/dev/other", out=out)
        assert r.returncode == 0, r
        assert os.stat(out).st_mode & 0o777 == 0o700
        r = cert(c, "client", "default/dev/other", out=out + "/no/where")
        assert r.returncode == 5 and "cannot make" in r.stderr, r
        t = c[1].tls(cert=os.path.join(out, "client.pem"),
                     key=os.path.join(out, "client.key"))
        t.rpc("ping")
        expect_error("NOT_FOUND", t.call, "kv/a", "get", {"key": "k"})
        t.close()


def test_another_nodes_certificate():
    with Cluster(shards=2) as c:
        for name in ("node.pem", "node.key"):
            shutil.copy(os.path.join(c[2].dir, "tls", name),
                        os.path.join(c[1].dir, "tls", name))
        c[1].begin()
        assert c[1].wait() == 78
        assert c[1].find("/node/2, and this is"), c[1].lines


def test_certificates_are_replaced():
    with Cluster(shards=2).start() as c:
        n = c[1]
        before = served(n)
        tls = os.path.join(n.dir, "tls")
        r = cert(c, "node", "1", out=tls)
        assert r.returncode == 0, r
        assert served(n) == before
        n.proc.send_signal(signal.SIGHUP)
        until("the new one", lambda: served(n) != before)
        # Wrong files change nothing.
        now = served(n)
        os.chmod(os.path.join(tls, "node.key"), 0o644)
        n.proc.send_signal(signal.SIGHUP)
        n.wait_event("certificate_refused")
        assert served(n) == now
        a = n.client()
        call_until(a, "kv/a", "put", {"key": "k", "value": "v"})
        a.close()
        # The peers are connected anew with it, one after the other.
        os.chmod(os.path.join(tls, "node.key"), 0o600)
        for p in c.nodes:
            p.proc.send_signal(signal.SIGHUP)
        c.wait_leaders()


def test_cert_refuses():
    with Cluster(shards=2) as c:
        out = os.path.join(c.own, "out")
        os.mkdir(out)
        for args in (["node", "x"], ["client", "a/b"], ["client", "a/b/c/d"],
                     ["client", "a//c"], ["client", "a/b/.."], ["peer", "1"]):
            r = cert(c, *args, out=out)
            assert r.returncode == 2, (args, r)
            assert not [f for f in os.listdir(out) if "key" in f], args
        r = run("holdfast", "cert", "node", "1", "--ca", c.own, "--out", out)
        assert r.returncode == 5 and "ca.pem" in r.stderr, r


# Supervision.

def test_ready_is_told():
    d = tempfile.mkdtemp(prefix="hf-", dir="/tmp")
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(os.path.join(d, "notify"))
    s.settimeout(LIMIT_S)
    try:
        with Cluster(shards=2,
                     env={"NOTIFY_SOCKET": os.path.join(d, "notify")}) as c:
            c[1].start(ready=False)
            s.setblocking(False)
            try:
                raise AssertionError(s.recv(100))
            except BlockingIOError:
                pass
            s.settimeout(LIMIT_S)
            # With two of three there is a majority.
            c[2].start()
            c[1].wait_event("node_ready")
            assert s.recv(100) == b"READY=1"
            assert s.recv(100) == b"READY=1"
            assert c[1].stop() == 0
            assert s.recv(100) == b"STOPPING=1"
    finally:
        s.close()
        shutil.rmtree(d)


def test_a_node_without_the_others_stops_in_order():
    with Cluster(shards=2) as c:
        c[1].start(ready=False)
        a = c[1].client()
        a.rpc("ping")
        expect_error("NO_QUORUM", a.call, "kv/a", "get", {"key": "k"},
                     deadline_ms=500)
        a.close()
        assert c[1].stop() == 0


def test_a_node_alone_can_be_looked_at():
    """Why there is no majority is asked when there is none."""
    with Cluster(shards=2) as c:
        c[1].start(ready=False)
        a = c[1].client()
        s = a.rpc("status")
        assert s["node"] == "node1" and len(s["shards"]) == 2, s
        assert a.rpc("shard", 1)["shard"] == 1
        assert "holdfast_up_seconds" in a.rpc("metrics")
        r = run("holdfast", "--socket", c[1].socket, "shard", "show", "0")
        assert r.returncode == 0 and "knows no owner" in r.stdout, r
        # What is told of objects, and done, needs to be decided.
        expect_error("NO_QUORUM", a.rpc, "objects")
        expect_error("NO_QUORUM", a.rpc, "object", "kv/a")
        expect_error("NO_QUORUM", a.rpc, "transfer", 0)
        a.close()
        # By its certificate nobody is known to it.
        t = c[1].tls()
        expect_error("NO_QUORUM", t.rpc, "status")
        expect_error("NO_QUORUM", t.rpc, "shard", 0)
        t.close()


def test_names_are_not_told_from_an_old_copy():
    with Cluster(shards=2).start() as c:
        t = c[1].tls()
        t.call("kv/name", "put", {"key": "k", "value": "v"})
        until("it is listed", lambda: t.rpc("objects")["items"])
        assert t.rpc("object", "kv/name")["rev"] == 1
        c[2].kill()
        c[3].kill()

        def refused():
            try:
                return not t.rpc("objects")["items"]
            except CallError as e:
                return e.code == "NO_QUORUM"
        until("its copy is too old", refused)
        expect_error("NO_QUORUM", t.rpc, "objects")
        expect_error("NO_QUORUM", t.rpc, "object", "kv/name")
        expect_error("NO_QUORUM", t.rpc, "transfer", 0)
        # To look at the node it is good enough.
        assert len(t.rpc("status")["shards"]) == 2
        t.close()


class DevCluster:
    def __init__(self, directory, *args):
        self.proc = subprocess.Popen(
            [program("holdfast"), "dev-cluster", "--dir", directory,
             "--rpc-port", "0", "--peer-port", "0", "--shards", "3"] +
            list(args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        self.lines = []

    def wait(self, part):
        for line in self.proc.stdout:
            self.lines.append(line.rstrip())
            if part in line:
                return line
        raise AssertionError("%s is not said: %r" % (part, self.lines))

    def wait_all(self, parts):
        while parts:
            line = self.proc.stdout.readline()
            assert line, self.lines
            self.lines.append(line.rstrip())
            parts = [p for p in parts if p not in line]


def pid_of(directory, node):
    with open(os.path.join(directory, node, "holdfastd.pid")) as f:
        return int(f.read())


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_dev_cluster():
    own = tempfile.mkdtemp(prefix="hf-", dir="/tmp")
    d = os.path.join(own, "c")
    try:
        dev = DevCluster(d)
        dev.wait_all(["node1 is up", "node2 is up", "node3 is up"])
        dev.wait("leads")
        r = run("holdfast", "--config", os.path.join(d, "client.yaml"), "kv",
                "put", "a", "k", "v")
        assert r.returncode == 0, r
        pids = [pid_of(d, "node%d" % i) for i in (1, 2, 3)]
        os.kill(pids[1], signal.SIGKILL)
        dev.wait("node2 is down: killed by signal 9")
        # It stays dead; the rest goes on.
        r = run("holdfast", "--config", os.path.join(d, "client.yaml"), "kv",
                "get", "a", "k")
        assert r.returncode == 0 and "v" in r.stdout, r
        dev.proc.send_signal(signal.SIGINT)
        rest = dev.proc.stdout.read()
        assert dev.proc.wait(LIMIT_S) == 0, rest
        assert all(gone(p) for p in pids)
        # The same directory again; it needs no more words.
        dev = DevCluster(d)
        dev.wait_all(["node1 is up", "node2 is up", "node3 is up"])
        pids = [pid_of(d, "node%d" % i) for i in (1, 2, 3)]
        dev.proc.kill()
        dev.proc.wait(LIMIT_S)
        dev.proc.stdout.close()
        until("its nodes end with it", lambda: all(gone(p) for p in pids))
    finally:
        shutil.rmtree(own)


def test_dev_cluster_refuses():
    with Cluster(shards=2) as c:
        for args, part in ((["--dir", c.dir, "--nodes", "5"], "has 3 nodes"),
                           ([], "--dir"),
                           (["--dir", c.own + "/x", "--nodes", "4"],
                            "3 or 5")):
            r = run("holdfast", "dev-cluster", *args)
            assert r.returncode == 2 and part in r.stderr, (args, r)


if __name__ == "__main__":
    main(tests_of(globals()))
