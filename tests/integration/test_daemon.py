#!/usr/bin/env python3
"""holdfastd as an operator meets it: start, stop, refuse, come back."""
import os
import pwd
import shutil
import stat
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import *  # noqa: E402,F403


def config(text):
    d = tempfile.mkdtemp(prefix="hf-", dir="/tmp")
    path = os.path.join(d, "holdfast.yaml")
    with open(path, "w") as f:
        f.write(text)
    return d, path


def flip_one_bit(data):
    """In the first byte after a segment's header that is not zero."""
    logs = os.path.join(data, "log")
    for name in sorted(os.listdir(logs)):
        path = os.path.join(logs, name)
        with open(path, "r+b") as f:
            f.seek(4096)
            block = f.read(1 << 20)
            at = next((i for i, b in enumerate(block) if b), None)
            if at is None:
                continue
            f.seek(4096 + at)
            f.write(bytes([block[at] ^ 1]))
            return
    raise AssertionError("nothing was written")


def test_version_and_help():
    for p in ("holdfastd", "holdfast"):
        r = run(p, "--version")
        assert r.returncode == 0 and r.stdout.startswith(p + " "), r
        r = run(p, "--help")
        assert r.returncode == 0 and "usage" in r.stdout, r


def test_usage_is_64():
    for args in ([], ["--nonsense"], ["--dev", "--config", "x"], ["extra"],
                 ["--data", "x"]):
        r = run("holdfastd", *args)
        assert r.returncode == 64, (args, r)
        assert "usage" in r.stderr, (args, r)


def test_check_and_print_config():
    d, path = config("data: data\nnode: {name: n1}\nlisten: {socket: s}\n"
                     "grants:\n  - {principal: 'unix:n1:7', class: kv,"
                     " prefix: a, rights: [read]}\n")
    r = run("holdfastd", "--config", path, "--check-config")
    assert r.returncode == 0, r
    r = run("holdfastd", "--config", path, "--print-config")
    assert r.returncode == 0 and "unix:n1:7" in r.stdout, r
    again = os.path.join(d, "again.yaml")
    with open(again, "w") as f:
        f.write(r.stdout)
    r2 = run("holdfastd", "--config", again, "--print-config")
    assert r2.stdout == r.stdout, r2
    assert not os.path.exists(os.path.join(d, "data"))
    shutil.rmtree(d)


def test_config_mistakes_name_file_and_field():
    for text, field in (("data: d\nraft: {election: 12x}\n", "raft.election"),
                        ("data: d\nnope: 1\n", "nope"),
                        ("raft: {election: 300}\n", "data"),
                        ("data: d\nstorage: {window: 1.5}\n",
                         "storage.window")):
        d, path = config(text)
        r = run("holdfastd", "--config", path, "--check-config")
        assert r.returncode == 78, (text, r)
        assert field in r.stderr and "holdfast.yaml" in r.stderr, (text, r)
        shutil.rmtree(d)


def test_config_does_not_format():
    d, path = config("data: data\nlisten: {socket: s}\n")
    os.mkdir(os.path.join(d, "data"))
    r = run("holdfastd", "--config", path)
    assert r.returncode == 65, r
    assert os.listdir(os.path.join(d, "data")) in ([], ["lock"])
    shutil.rmtree(d)


def test_a_configuration_of_another_node_is_refused():
    d, path = config("data: data\nlisten: {socket: data/holdfast.sock}\n"
                     "node: {name: alpha}\nstorage: {shards: 3}\n")
    data = os.path.join(d, "data")
    assert run("holdfastd", "--format", data).returncode == 0
    r = run("holdfastd", "--config", path)
    assert r.returncode == 78 and "node.name" in r.stderr, r
    shutil.rmtree(data)
    r = run("holdfastd", "--format", data, "--config", path)
    assert r.returncode == 0, r
    with open(path, "a") as f:
        f.write("pid_file: data/holdfastd.pid\ngrants:\n"
                "  - {principal: 'unix:alpha:%d', class: '*',"
                " rights: [read, write, admin]}\n" % os.geteuid())
    with Node(data=data, args=["--config", path]).start() as n:
        s = n.client().rpc("status")
        assert s["node"] == "alpha" and len(s["shards"]) == 3, s
    shutil.rmtree(d)


def test_modes_pid_and_clean_stop():
    with Node().start() as n:
        assert stat.S_IMODE(os.stat(n.socket).st_mode) == 0o600
        assert n.pid == n.proc.pid
        for base, dirs, files in os.walk(n.data):
            for f in dirs + files:
                mode = os.lstat(os.path.join(base, f)).st_mode
                assert stat.S_IMODE(mode) & 0o077 == 0, (base, f)
        c = n.client()
        c.call("kv/a", "put", {"key": "k", "value": "v"})
        data = n.data
        assert n.stop() == 0, n.lines
        assert not os.path.exists(n.socket)
        assert not os.path.exists(os.path.join(data, "holdfastd.pid"))
        n.start()
        assert n.client().call("kv/a", "get", {"key": "k"})["value"] == "v"


def test_sigterm_finishes_calls_in_flight():
    with Node().start() as n:
        c = n.client()
        ids = [c.send("call", "kv/o%d" % i, "incr", {"key": "n"})
               for i in range(500)]
        os.kill(n.pid, signal.SIGTERM)
        got = {}
        try:
            while len(got) < len(ids):
                i, error, result = c.recv()
                got[i] = error or result
        except Gone:
            pass
        assert n.wait() == 0, n.lines
        done = sum(1 for v in got.values() if "value" in v)
        n.start()
        c = n.client()
        there = 0
        for i in range(500):
            try:
                there += c.call("kv/o%d" % i, "get", {"key": "n"})["value"]
            except CallError as e:
                assert e.code == "NOT_FOUND", e.map
        assert there >= done, (there, done)
        for v in got.values():
            assert "value" in v or v["outcome"] == "refused", v


def test_sigterm_while_objects_are_listed():
    """A listing walks all shards: it must not go on behind their end."""
    for _ in range(3):
        with Node() as n:
            n.start()
            first = n.client()
            for i in range(100):
                first.call("kv/o%d" % i, "put", {"key": "a", "value": "b"})
            busy = threading.Barrier(5)

            def list_on(c):
                told = False
                try:
                    while True:
                        for _ in range(30):
                            c.send("objects")
                        for _ in range(30):
                            c.recv()
                        if not told:
                            told = True
                            busy.wait(60)
                except (Gone, OSError):
                    pass

            threads = [threading.Thread(target=list_on, args=(n.client(),))
                       for _ in range(4)]
            for t in threads:
                t.start()
            busy.wait(60)
            assert n.stop() == 0, n.lines[-5:]
            for t in threads:
                t.join()


def test_by_an_id_nothing_is_made():
    """An absent id answers like one that stands for something else, and nobody
    makes an object where another's may stand one day."""
    with Node() as n:
        n.start()
        c = n.client()
        c.call("rate_limiter/x", "put_policy", {"limit": 1, "period_ms": 9})
        c.call("kv/mine", "put", {"key": "k", "value": 1})
        other = c.rpc("object", "rate_limiter/x")["id"]
        mine = c.rpc("object", "kv/mine")["id"]
        for method, args in (("get", {"key": "k"}),
                             ("put", {"key": "k", "value": 2}),
                             ("list", {}), ("incr", {"key": "k"}),
                             ("destroy", {})):
            for options in ({}, {"idem": "i"}, {"idem": "i",
                                                "idem_ms": 604800000}):
                said = []
                for i in (other, "ab" * 16):
                    e = expect_error("NOT_FOUND", c.call, "kv/~" + i, method,
                                     args, **options)
                    del e["request_id"]
                    said.append(e)
                assert said[0] == said[1], said
        assert c.call("kv/~" + mine, "incr", {"key": "k"})["value"] == 2
        c.close()


def test_answers_that_leave_at_once_do_not_stop_the_input():
    """Input pauses while too much is unsent. When the reader is so quick that
    it all leaves in one write, nothing else tells the input to go on."""
    with Node() as n:
        n.start()
        c = n.client()
        size = len(pack([1, 300, None, c.rpc("metrics")]))
        count = 3000
        want = count * (size - 500)  # Its numbers get longer and shorter.
        got = [0]

        def read():
            room = bytearray(8 << 20)
            while got[0] < want:
                n = c.sock.recv_into(room)
                if n == 0:
                    return
                got[0] += n

        reader = threading.Thread(target=read)
        c.sock.settimeout(20)
        reader.start()
        c.sock.sendall(b"".join(pack([0, i, "metrics", []])
                                for i in range(count)))
        reader.join()
        assert got[0] >= want, (got, want)
        c.close()


def test_large_answers_do_not_pin_memory():
    """What a connection took to send much is given back when it is sent."""
    def resident(pid):
        with open("/proc/%d/status" % pid) as f:
            return next(int(l.split()[1]) for l in f if "VmRSS" in l)

    with Node() as n:
        n.start()
        value = b"x" * 1000000
        n.client().call("kv/a", "put", {"key": "k", "value": value})
        clients = []
        marks = []
        for i in range(16):
            c = n.client()
            clients.append(c)
            for _ in range(16):
                c.send("call", "kv/a", "get", {"key": "k"})
            for _ in range(16):
                assert c.recv()[2] is not None
            marks.append(resident(n.pid))
        assert marks[15] - marks[9] < 32 * 1024, marks


def test_threads_wait_their_turn():
    """Where the kernel counts what they wait, and nobody chose otherwise."""
    def policies():
        return {os.sched_getscheduler(int(t))
                for t in os.listdir("/proc/%d/task" % n.pid)}

    want = (os.SCHED_BATCH if os.path.exists("/proc/self/schedstat")
            else os.SCHED_OTHER)
    with Node() as n:
        n.start()
        # A busy machine lets them preempt for some seconds.
        until("the policy of all threads", lambda: policies() == {want})
        until("the metric", lambda: "\nholdfast_scheduler_batch %d\n" %
              (want == os.SCHED_BATCH) in n.client().rpc("metrics"))


def test_second_daemon_is_refused():
    with Node().start() as n:
        r = run("holdfastd", "--dev", "--data", n.data)
        assert r.returncode == 75, r
        assert n.client().rpc("ping") is None


def test_copied_directory_is_refused():
    with Node().start() as n:
        n.client().call("kv/a", "put", {"key": "k", "value": "v"})
        assert n.stop() == 0
        copy = n.data + "-copy"
        shutil.copytree(n.data, copy)
        try:
            r = run("holdfastd", "--dev", "--data", copy)
            assert r.returncode == 65, r
            assert "cop" in r.stderr, r
        finally:
            shutil.rmtree(copy)
        n.start()


def test_log_verify_and_dump():
    with Node().start() as n:
        n.client().call("kv/a", "put", {"key": "k", "value": "v"})
        assert n.kill() == -9
        r = run("holdfast", "log", "verify", n.data)
        assert r.returncode == 0 and "whole" in r.stdout, r
        r = run("holdfast", "log", "dump", n.data)
        assert r.returncode == 0 and "index" in r.stdout, r
        flip_one_bit(n.data)
        r = run("holdfast", "log", "verify", n.data)
        assert r.returncode != 0, r
        r = run("holdfastd", "--dev", "--data", n.data)
        assert r.returncode == 65, r


def test_default_place():
    d = tempfile.mkdtemp(prefix="hf-", dir="/tmp")
    env = dict(os.environ, XDG_STATE_HOME=d)
    n = Node(data=os.path.join(d, "holdfast"), args=["--dev"])
    os.environ["XDG_STATE_HOME"] = d
    try:
        with n.start():
            r = run("holdfast", "kv", "put", "a", "k", "v", env=env)
            assert r.returncode == 0, r
            r = run("holdfast", "kv", "get", "a", "k", env=env)
            assert r.stdout == "v\n", r
    finally:
        del os.environ["XDG_STATE_HOME"]
        shutil.rmtree(d)


def test_other_users_are_refused():
    if os.geteuid() != 0:
        return  # Only root can be somebody else; root itself is served.
    nobody = pwd.getpwnam("nobody").pw_uid
    with Node().start() as n:
        # Even if the directory were open: the kernel tells who connects.
        os.chmod(n.data, 0o755)
        os.chmod(n.socket, 0o666)
        pid = os.fork()
        if pid == 0:
            os.setuid(nobody)
            code = 1
            try:
                n.client().rpc("ping")
            except (Gone, OSError):
                code = 0
            os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert n.client().rpc("ping") is None


def test_grants_decide():
    d, path = config("")
    data = os.path.join(d, "data")
    me = "unix:node1:%d" % os.geteuid()
    with open(path, "w") as f:
        f.write("data: data\nlisten: {socket: data/holdfast.sock}\n"
                "pid_file: data/holdfastd.pid\ngrants:\n"
                "  - {principal: '%s', class: kv, prefix: mine-,"
                " rights: [read, write]}\n"
                "  - {principal: '%s', class: kv, prefix: look-,"
                " rights: [read]}\n" % (me, me))
    r = run("holdfastd", "--format", data)
    assert r.returncode == 0, r
    with Node(data=data, args=["--config", path]).start() as n:
        c = n.client()
        c.call("kv/mine-1", "put", {"key": "k", "value": 1})
        e = expect_error("DENIED", c.call, "kv/look-1", "put",
                         {"key": "k", "value": 1})
        assert e["field"] == "method" and e["outcome"] == "refused", e
        absent = expect_error("NOT_FOUND", c.call, "kv/look-1", "get",
                              {"key": "k"})
        other = expect_error("NOT_FOUND", c.call, "kv/other", "get",
                             {"key": "k"})
        limiter = expect_error("NOT_FOUND", c.call, "rate_limiter/x",
                               "describe", {})
        unknown = expect_error("NOT_FOUND", c.call, "nosuch/x", "get", {})
        for e in (other, limiter, unknown):
            e.pop("request_id"), absent.pop("request_id", None)
            assert e == absent, (e, absent)
        expect_error("DENIED", c.call, "kv/mine-1", "destroy", {})
    shutil.rmtree(d)


if __name__ == "__main__":
    main(tests_of(globals()))
