#!/usr/bin/env python3
"""The program holdfast and the library libholdfast against a real node."""
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import *  # noqa: E402,F403

SOURCE = os.environ.get("srcdir", os.path.join(os.path.dirname(__file__),
                                               "..", ".."))


class Cli:
    """The program; `path` is a socket, or the client.yaml of a cluster."""

    def __init__(self, path):
        self.path = path
        self.env = dict(os.environ)
        self.env["HOLDFAST_CONFIG" if path.endswith(".yaml") else
                 "HOLDFAST_SOCKET"] = path

    def __call__(self, *argv, code=0, stdin=None):
        r = subprocess.run([program("holdfast")] + list(argv), env=self.env,
                           stdin=stdin or subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           timeout=LIMIT_S, text=True)
        assert r.returncode == code, (argv, r)
        return r

    def out(self, *argv):
        return self(*argv).stdout

    def json(self, *argv, code=0):
        return json.loads(self(*argv, "--json", code=code).stdout)


def test_kv():
    with Node().start() as n:
        cli = Cli(n.socket)
        assert cli.out("kv", "put", "cart", "apples", "3") == "rev  1\n"
        assert cli.out("kv", "get", "cart", "apples") == "3\n"
        assert cli.out("kv", "incr", "cart", "pears", "5") == "5\n"
        assert cli.out("kv", "incr", "cart", "pears", "-7") == "-2\n"
        assert cli.json("kv", "incr", "cart", "pears") == \
            {"value": -1, "rev": 4}
        assert cli.out("kv", "list", "cart") == "apples\t3\npears\t-1\n"
        assert cli.out("kv", "list", "cart", "p") == "pears\t-1\n"
        assert cli.json("kv", "cas", "cart", "apples", "3", "4") == \
            {"rev": 5}
        e = cli.json("kv", "cas", "cart", "apples", "3", "5", code=1)
        assert e["error"]["code"] == "CONFLICT", e
        assert e["error"]["outcome"] == "refused", e
        cli("kv", "cas", "cart", "apples", "--absent", "5", code=1)
        assert cli.json("kv", "cas", "cart", "plums", "--absent", "1")["rev"]
        r = cli("kv", "put", "cart", "apples", "x", "--if-rev", "1", code=1)
        assert "CONFLICT" in r.stderr and "if_rev" in r.stderr and \
            "request " in r.stderr, r
        assert cli.json("kv", "delete", "cart", "plums")["existed"] is True
        assert cli.json("kv", "delete", "cart", "plums")["existed"] is False
        r = cli("kv", "get", "cart", "plums", code=1)
        assert "NOT_FOUND" in r.stderr and r.stdout == "", r
        cli("kv", "destroy", "cart")
        assert cli.out("kv", "list", "cart") == ""


def test_names_and_bytes():
    with Node().start() as n, tempfile.NamedTemporaryFile() as f:
        cli = Cli(n.socket)
        f.write(bytes(range(256)))
        f.flush()
        cli("kv", "put", "~a/b%", "k", "--file", f.name)
        c = n.client()
        assert c.call("kv/%7Ea%2Fb%25", "get", {"key": "k"})["value"] == \
            bytes(range(256))
        raw = subprocess.run([program("holdfast"), "--socket", n.socket,
                              "kv", "get", "~a/b%", "k", "--raw"],
                             stdout=subprocess.PIPE).stdout
        assert raw == bytes(range(256))
        # Nothing that a terminal obeys: controls, and what reorders text.
        c.call("kv/x", "put", {"key": "k", "value": "\x1b[2J\u202e\u009bok"})
        text = cli.out("kv", "get", "x", "k")
        assert text.isascii() and "\x1b" not in text and "ok" in text, text
        text = cli.out("kv", "get", "x", "k", "--json")
        assert "\x1b" not in text and "\x9b" not in text, text


def test_call():
    with Node().start() as n:
        cli = Cli(n.socket)
        assert cli.json("call", "kv/a", "put", "key=k", "value:=5",
                        "ttl_ms:=60000") == {"rev": 1}
        assert cli.json("call", "kv/a", "get", '{"key": "k"}') == \
            {"value": 5, "rev": 1}
        assert cli.json("call", "kv/a", "put", "key==@k", "value==x")
        assert cli.out("call", "kv/a", "get", "key==@k") == \
            "value  x\nrev    2\n"
        got = cli.json("call", "kv/a", "get", "key=k", "--meta")
        assert got["value"] == {"value": 5, "rev": 1}, got
        assert got["meta"]["term"] >= 1 and got["meta"]["owner"], got
        assert "term" in cli.out("kv", "get", "a", "k", "--meta")
        for _ in range(3):
            assert cli.json("kv", "incr", "a", "n", "--idem", "K")["value"] \
                == 1
        e = cli.json("kv", "incr", "a", "n", "2", "--idem", "K", code=1)
        assert e["error"]["field"] == "idem", e
        e = cli.json("call", "kv/a", "get", "nokey=1", code=1)
        assert e["error"]["code"] == "INVALID", e
        cli("call", "kv/a", "nosuch", code=1)
        cli("call", "not an address", "get", code=1)


def test_limit():
    with Node().start() as n:
        cli = Cli(n.socket)
        cli("limit", "put-policy", "login", "2", "60000", "--durability",
            "committed")
        assert cli.out("limit", "check", "login", "eve").startswith(
            "allowed, 1 left of 2")
        assert cli.json("limit", "check", "login", "eve",
                        "--dry-run")["allowed"] is True
        cli("limit", "check", "login", "eve")
        assert cli.out("limit", "check", "login", "eve").startswith("denied")
        assert cli.json("limit", "peek", "login", "eve")["allowed"] is False
        cli("limit", "check", "login", "eve", "--cost", "3", code=1)
        cli("limit", "reset", "login", "eve")
        assert cli.json("limit", "peek", "login", "eve")["remaining"] == 2
        p = cli.json("limit", "describe", "login")["policies"]
        assert p[0]["durability"] == "committed", p
        cli("limit", "check", "none", "x", code=1)


def test_node_commands():
    with Node().start() as n:
        cli = Cli(n.socket)
        for i in range(5):
            cli("kv", "put", "o%d" % i, "k", "v")
        s = cli.json("status")
        assert s["pid"] == n.pid and s["rss_bytes"] > 0 and s["syncs"] > 0, s
        text = cli.out("status")
        assert "shard" in text and str(n.pid) in text, text
        assert "# TYPE" in cli.out("metrics")
        r = cli("objects", "ls", "--limit", "3")
        assert "kv/o" in r.stdout and "--after" in r.stderr, r
        items = cli.json("objects", "ls")["items"]
        assert sorted(i["address"] for i in items) == \
            ["default/dev/kv/o%d" % i for i in range(5)], items
        assert cli.json("objects", "show", "kv/o1")["rows"] == 1
        cli("objects", "show", "kv/none", code=1)
        assert "answers" in cli.out("ping", "-n", "3")
        assert cli.json("ping", "-n", "3")["n"] == 3


def test_offline():
    with tempfile.TemporaryDirectory() as d:
        data = os.path.join(d, "data")
        assert run("holdfast", "init", data).returncode == 0
        assert run("holdfast", "init", data).returncode != 0
        with Node(data=data).start() as n:
            Cli(n.socket)("kv", "put", "a", "k", "v")
            assert n.stop() == 0
        r = run("holdfast", "log", "verify", data)
        assert r.returncode == 0, r
        r = run("holdfast", "log", "dump", data)
        assert r.returncode == 0 and r.stdout, r
        assert run("holdfast", "log", "verify", d + "/none").returncode != 0


def test_usage():
    cli = Cli("/nowhere/at/all")
    for argv in ([], ["nosuch"], ["kv"], ["kv", "get", "a"],
                 ["kv", "put", "a", "k"], ["kv", "nosuch", "a", "k"],
                 ["kv", "get", "a", "k", "--nosuch"], ["kv", "get", "a", "k",
                                                       "more"],
                 ["kv", "incr", "a", "k", "1x"], ["call", "kv/a"],
                 ["call", "kv/a", "get", "key"],
                 ["call", "kv/a", "get", "key:={"],
                 ["call", "kv/a", "get", "[1]"],
                 ["call", "kv/a", "get", "key=@/none/such"],
                 ["call", "kv/a", "get", "--deadline", "0"],
                 ["call", "kv/a", "get", "--deadline", "1e3"],
                 ["call", "kv/a", "get", "--deadline"],
                 ["call", "kv/a", "get", "--idem", "x" * 65],
                 ["call", "kv/a", "get", "--durability", "none"],
                 ["kv", "list", "a", "--cursor", "xyz"],
                 ["limit", "put-policy", "a", "5"], ["bench", "nosuch"],
                 ["bench", "null", "--clients", "0"], ["ping", "-n", "0"],
                 ["status", "more"], ["objects", "nosuch"],
                 ["log", "nosuch", "x"], ["init"], ["shard"],
                 ["shard", "nosuch"], ["shard", "show"], ["shard", "show", "x"],
                 ["shard", "show", "64"], ["shard", "ls", "1"], ["grant"],
                 ["grant", "unix:n:1"], ["grant", "unix:n:1", "--rights", "all"],
                 ["grant", "unix:n:1", "--rights", "read,"], ["revoke"],
                 ["grant", "bob", "--rights", "read"],
                 ["grants", "more"], ["bench", "null", "--forwarded", "101"],
                 ["ping", "--socket", "a", "--config", "b"],
                 ["bench", "null", "--socket", "a", "--config", "b"],
                 ["ping", "--config", "/none/client.yaml"],
                 ["status", "--config", "/none/client.yaml"],
                 ["bench", "null", "--config", "/none/client.yaml"]):
        r = cli(*argv, code=2)
        assert r.stderr and not r.stdout, (argv, r)
    for c in ("call", "kv", "limit", "status", "objects", "metrics", "ping",
              "log", "init", "bench", "shard", "grant", "revoke", "grants"):
        assert "usage: holdfast " + c in cli.out(c, "--help"), c
        assert c in cli.out("--help")


def test_no_connection():
    cli = Cli("/nowhere/at/all")
    for argv in (["ping"], ["kv", "get", "a", "k"], ["status"],
                 ["bench", "null"]):
        r = cli(*argv, code=3)
        assert "/nowhere/at/all" in r.stderr, r
    r = run("holdfast", "ping", "--socket", "/" + "x" * 200)
    assert r.returncode == 2, r


class Rude:
    """A server that greets, reads a call and hangs up without an answer."""

    def __init__(self, path, answer):
        self.answer = answer
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve_one, args=(s,),
                             daemon=True).start()

    def serve_one(self, s):
        buf = b""
        while True:
            got = s.recv(65536)
            buf += got
            if not got:
                break
            try:
                m, used = unpack(buf)
            except More:
                continue
            buf = buf[used:]
            if m[2] not in ("hello", "status"):
                s.sendall(self.answer)
                break
            s.sendall(pack([1, m[1], None, {"protocol": 1}]))
        s.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


def test_unknown_outcome():
    for answer in (b"", b"HTTP/1.1 400 Bad Request\r\n", b"\xc1"):
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "s")
            rude = Rude(path, answer)
            cli = Cli(path)
            r = cli("kv", "put", "a", "k", "v", code=4)
            assert "UNKNOWN_OUTCOME" in r.stderr, r
            e = cli.json("kv", "put", "a", "k", "v", code=4)
            assert e["error"]["outcome"] == "unknown", e
            r = cli("bench", "limit-committed", "--clients", "1", code=4)
            assert "setting the policies" in r.stderr, r
            rude.close()


KEYS = ("ops_per_s ok denied refused unknown errors p50_us p99_us p999_us "
        "max_us syncs syncs_per_op server_cpu_us_per_op rss_bytes_per_object "
        "loop_stall_max_us").split()


def bench(cli, *argv):
    r = cli("bench", *argv, "--seconds", "1", "--warm-up", "100")
    got = json.loads(r.stdout.splitlines()[-1])
    for k in KEYS:
        assert k in got and got[k] is not None, (k, got)
    assert got["errors"] == got["unknown"] == got["refused"] == 0, got
    assert got["ok"] > 0 and got["ops_per_s"] > 0, got
    assert 0 < got["p50_us"] <= got["p99_us"] <= got["p999_us"] <= \
        got["max_us"], got
    return got


def test_bench():
    with Node().start() as n:
        cli = Cli(n.socket)
        bench(cli, "null")
        got = bench(cli, "kv-put", "--clients", "8", "--keyed")
        assert got["syncs"] > 0 and got["server_cpu_us_per_op"] > 0, got
        bench(cli, "kv-get", "--objects", "50", "--value-bytes", "1000")
        for w in ("memory", "lagged", "committed"):
            got = bench(cli, "limit-" + w, "--clients", "8", "--pipeline",
                        "8")
            assert got["denied"] * 20 <= got["ok"], got
        got = bench(cli, "idle", "--objects", "2000")
        assert got["objects_resident"] >= 2000, got
        got = bench(cli, "null", "--rate", "2000")
        assert 1500 <= got["ok"] + got["unsent"] <= 2200, got


def test_bench_counts_what_is_there():
    """The counters add up to what was acknowledged, to the last one."""
    with Node().start() as n:
        got = bench(Cli(n.socket), "kv-incr", "--objects", "20", "--prefix",
                    "sum/", "--clients", "4", "--pipeline", "16")
        c = n.client()
        total = sum(c.call("kv/sum%%2F%d" % i, "get", {"key": "n"})["value"]
                    for i in range(20))
        assert total == got["acked_total"], (total, got)
        assert total >= got["ok"], (total, got)


def test_cluster():
    """One screen of three nodes, of which one is gone at the end."""
    with Cluster(3, shards=8).start() as c:
        cli = Cli(c.client_yaml)
        cli("kv", "put", "a", "k", "v")
        got = cli.json("kv", "get", "a", "k", "--meta")
        assert got["value"]["value"] == "v", got
        owner = c[got["meta"]["owner"]]
        s = cli.json("status")
        assert [n["node"] for n in s["nodes"]] == ["node1", "node2", "node3"]
        for n in s["nodes"]:
            n = n["status"]
            assert len(n["members"]) == 3 and len(n["peers"]) == 2, n
            assert n["certificate_expires_ms"] > n["wall_ms"], n
            assert 0 < n["disk"]["free_bytes"] <= n["disk"]["size_bytes"], n
            assert all(p["raft"] and p["bulk"] for p in n["peers"]), n
        assert len(s["shards"]) == 8 and all(x["owner"] for x in s["shards"])
        text = cli.out("status")
        assert "3 of 3 nodes answer" in text and "\x1b" not in text, text
        assert text.count("2 of 2") == 3 and "nobody" not in text, text
        assert max(map(len, text.splitlines())) <= 80, text
        assert cli.out("shard", "ls").count("\n") == 9
        text = cli.out("shard", "show", "0")
        assert text.count("follower of") == 2 and text.count("has up to") == 2
        # One node's own view, with more of itself.
        text = Cli(c[2].socket).out("status")
        assert str(c[2].pid) in text and "1 of 1 nodes answer" in text, text
        owner.kill()
        text = cli.out("status")
        assert "2 of 3 nodes answer" in text and "down: " in text, text
        c.wait_leaders()
        # The program finds its way around the node that is gone.
        assert cli.out("kv", "get", "a", "k") == "v\n"
        assert "UNREACHABLE" in cli.out("shard", "show", "0")
        s = cli.json("status")
        assert [n["node"] for n in s["nodes"] if "status" not in n] == \
            [owner.name], s
        c.kill()
        assert "cannot connect" in cli("status", code=3).stderr
        cli("shard", "show", "0", code=3)
        cli("kv", "get", "a", "k", code=3)


def test_transfer():
    with Cluster(3, shards=4, config="raft:\n  spread: false\n").start() as c:
        cli = Cli(c.client_yaml)
        for name in ("node1", "node2", "node3"):
            owner = c.leaders()[1].name
            r = cli("shard", "transfer", "1", "--to", name,
                    code=1 if owner == name else 0)
            if owner != name:
                assert "%s -> %s" % (owner, name) in r.stdout, r
            until("%s owns shard 1" % name,
                  lambda: c.leaders()[1] is c[name])
        r = cli("shard", "transfer", "1", "--to", "nobody", code=1)
        assert "NOT_FOUND" in r.stderr, r
        # A node that does not own it says who does.
        r = Cli(c[1].socket)("shard", "transfer", "1", code=1)
        assert "NOT_OWNER" in r.stderr and "node3" in r.stderr, r


def test_grants():
    with Cluster(3, shards=4).start() as c:
        cli = Cli(c[1].socket)
        who = "unix:node1:4711"
        assert who not in cli.out("grants")
        text = cli.out("grant", who, "--rights", "read,write", "--class", "kv")
        assert "confirmed by node1, node2, node3" in text, text
        assert "%s  default/dev/kv  read, write" % who in cli.out("grants")
        got = cli.json("revoke", who, "--rights", "write")
        assert got["changed"] and got["missing"] == [], got
        assert "%s  default/dev/kv  read\n" % who in cli.out("grants")
        cli("revoke", who)
        assert who not in cli.out("grants")
        assert "as it was" in cli.out("revoke", who)
        # A certificate has no right on the directory.
        assert "NOT_FOUND" in Cli(c.client_yaml)("grants", code=1).stderr


def test_bench_of_a_cluster():
    # Calls are refused while a shard is on its way to another node.
    with Cluster(3, shards=8,
                 config="raft:\n  spread: false\n").start() as c:
        cli = Cli(c.client_yaml)
        got = bench(cli, "null")
        assert got["nodes"] == 3 and got["hops"] == 0, got
        got = bench(cli, "kv-incr", "--objects", "50", "--prefix", "sum/",
                    "--clients", "8")
        client = c[1].client()
        total = sum(client.call("kv/sum%%2F%d" % i, "get", {"key": "n"})
                    ["value"] for i in range(50))
        assert total == got["acked_total"], (total, got)
        assert got["peer_frames_per_op"] > 0 < got["frames_per_op"], got
        assert sum(got["stage_us_per_op"].values()) > 0, got
        # Owners are found at once: hardly any call is passed on, and all of
        # those that are sent to another node on purpose.
        before = [n.status()["forwards_sent"] for n in c.nodes]
        bench(cli, "kv-get", "--objects", "50", "--clients", "8")
        after = [n.status()["forwards_sent"] for n in c.nodes]
        assert sum(after) - sum(before) < 100, (before, after)
        got = bench(cli, "kv-get", "--objects", "50", "--clients", "8",
                    "--forwarded", "100")
        later = [n.status()["forwards_sent"] for n in c.nodes]
        assert sum(later) - sum(after) > got["ok"] / 2, (after, later)
        got = bench(cli, "kv-incr", "--objects", "50", "--clients", "8",
                    "--through-one")
        assert got["through_one"] and got["hops"] == 0, got
        r = cli("bench", "null", "--rate", "5000000", "--clients", "1",
                "--seconds", "1", "--warm-up", "0")
        assert "VOID" in r.stdout, r
        assert json.loads(r.stdout.splitlines()[-1])["void"] is True


PROGRAM = r"""
#include <holdfast.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast_request r = HOLDFAST_CALL("kv/lib", "incr");
	const struct holdfast_answer *a;
	struct holdfast *h;
	char why[200];
	int64_t value = 0;
	int i;

	(void)argc;
	o.socket = argv[1];
	if (holdfast_connect(&o, &h, why, sizeof(why)) != HOLDFAST_OK) {
		printf("%s\n", why);
		return 1;
	}
	r.args = holdfast_args_new();
	holdfast_args_str(r.args, "key", "n");
	for (i = 0; i < 3; i++)
		if (holdfast_call_wait(h, &r, &a) != HOLDFAST_OK ||
		    holdfast_get_int(a, "value", &value) != HOLDFAST_OK)
			return 1;
	holdfast_args_free(r.args);
	holdfast_close(h, NULL, NULL);
	printf("%d\n", (int)value);
	return 0;
}
"""


def test_library():
    """A program that has the header and the shared library, nothing else."""
    libs = os.path.join(build_dir(), ".libs")
    with Node().start() as n, tempfile.TemporaryDirectory() as d:
        source = os.path.join(d, "p.c")
        with open(source, "w") as f:
            f.write(PROGRAM)
        flags = shlex.split(os.environ.get("LINK_FLAGS", ""))
        subprocess.run([os.environ.get("CC", "cc").split()[0]] + flags +
                       ["-Wall", "-Werror", "-I",
                        os.path.join(SOURCE, "client"), source, "-o",
                        d + "/p", "-L", libs, "-lholdfast",
                        "-Wl,-rpath," + libs], check=True)
        r = subprocess.run([d + "/p", n.socket], stdout=subprocess.PIPE,
                           text=True, timeout=LIMIT_S)
        assert (r.returncode, r.stdout) == (0, "3\n"), r
        r = subprocess.run([d + "/p", d + "/none"], stdout=subprocess.PIPE,
                           text=True, timeout=LIMIT_S)
        assert r.returncode == 1 and "cannot connect" in r.stdout, r
    names = subprocess.run(["nm", "-D", "--defined-only",
                            libs + "/libholdfast.so"],
                           stdout=subprocess.PIPE, text=True).stdout
    for line in names.splitlines():
        name = line.split()[-1]
        assert name.startswith("holdfast_"), name
    assert "SONAME" in subprocess.run(
        ["readelf", "-d", libs + "/libholdfast.so"],
        stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(tests_of(globals()))
