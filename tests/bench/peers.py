#!/usr/bin/env python3
"""make bench-peers: etcd and Redis from Debian beside Holdfast, in one session.

Machines differ by more than systems do, so a figure of ours is worth quoting
only beside the peer's, measured in the same minutes: the rows are interleaved,
BENCH_ROUNDS times (default 3), and the medians and their ratios printed. All
run on this machine and write to the same file system; every system syncs before
it acknowledges, and the syncs are counted: ours by `status`, etcd's by its
metrics, Redis's by strace in a run of its own.

etcd speaks gRPC: h2load sends the same encoded request over plain HTTP/2. It
is given to the leader. Redis is one node, `appendfsync always`. Ours runs over
TLS with client certificates, the others in the clear.
"""
import os
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import Cluster, json, program  # noqa: E402

SECONDS = float(os.environ.get("BENCH_SECONDS", "4"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))

PACKAGES = {"etcd": "etcd-server", "etcdctl": "etcd-client",
            "redis-server": "redis-server",
            "redis-benchmark": "redis-tools", "h2load": "nghttp2-client",
            "strace": "strace"}


def install():
    """What is missing, from Debian; none of it is started as a service."""
    missing = sorted({p for c, p in PACKAGES.items() if not shutil.which(c)})
    if not missing:
        return
    print("Installing %s, to measure them beside Holdfast."
          % ", ".join(missing))
    sys.stdout.flush()
    root = [] if os.getuid() == 0 else ["sudo", "-n"]
    policy = "/usr/sbin/policy-rc.d"
    mine = not os.path.exists(policy)
    if mine:
        subprocess.run(root + ["sh", "-c", "printf '#!/bin/sh\\nexit 101\\n' "
                               ">%s && chmod +x %s" % (policy, policy)],
                       check=True)
    try:
        subprocess.run(root + ["env", "DEBIAN_FRONTEND=noninteractive",
                               "apt-get", "-qq", "install", "-y",
                               "--no-install-recommends"] + missing,
                       check=True, stdout=subprocess.DEVNULL)
    finally:
        if mine:
            subprocess.run(root + ["rm", "-f", policy], check=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, limit_s=30):
    end = time.monotonic() + limit_s
    while not what():
        if time.monotonic() > end:
            raise TimeoutError
        select_wait(0.05)


def select_wait(seconds):
    """Nothing to wait for but time itself: a start that has no event."""
    import select
    select.select([], [], [], seconds)


class Process:
    def __init__(self, argv, log):
        self.log = open(log, "wb")
        self.p = subprocess.Popen(argv, stdout=self.log, stderr=self.log)

    def stop(self):
        self.p.send_signal(signal.SIGTERM)
        self.p.wait(30)
        self.log.close()


# Protocol buffers, as much as two requests need: fields of bytes.

def field(number, value):
    n = len(value)
    size = bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])
    return bytes([number << 3 | 2]) + size + value


def grpc(message):
    return b"\0" + struct.pack(">I", len(message)) + message


class Etcd:
    """Three nodes, every write synced (etcd's own default)."""

    def __init__(self, folder):
        ports = [(free_port(), free_port()) for _ in range(3)]
        names = ",".join("n%d=http://127.0.0.1:%d" % (i, ports[i][1])
                         for i in range(3))
        self.urls = ["http://127.0.0.1:%d" % c for c, _ in ports]
        self.nodes = [Process(
            ["etcd", "--name", "n%d" % i, "--data-dir",
             "%s/etcd%d" % (folder, i), "--listen-client-urls", self.urls[i],
             "--advertise-client-urls", self.urls[i], "--listen-peer-urls",
             "http://127.0.0.1:%d" % p, "--initial-advertise-peer-urls",
             "http://127.0.0.1:%d" % p, "--initial-cluster", names,
             "--initial-cluster-state", "new"],
            "%s/etcd%d.log" % (folder, i)) for i, (_, p) in enumerate(ports)]
        self.leader = None
        until(self.find_leader)
        self.put = folder + "/put"
        self.get = folder + "/get"
        with open(self.put, "wb") as f:
            f.write(grpc(field(1, b"k" * 16) + field(2, b"v" * 128)))
        with open(self.get, "wb") as f:
            f.write(grpc(field(1, b"k" * 16)))

    def find_leader(self):
        try:
            out = subprocess.run(
                ["etcdctl", "--endpoints", ",".join(
                    u[len("http://"):] for u in self.urls), "endpoint",
                 "status", "-w", "json"], stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=dict(os.environ,
                                                    ETCDCTL_API="3"),
                check=True, timeout=10).stdout
            for e in json.loads(out):
                if e["Status"]["leader"] == e["Status"]["header"]["member_id"]:
                    self.leader = "http://" + e["Endpoint"]
        except (subprocess.SubprocessError, ValueError, KeyError):
            return False
        return self.leader is not None

    def syncs(self):
        n = 0
        for u in self.urls:
            text = urllib.request.urlopen(u + "/metrics").read().decode()
            n += float(re.search(r"^etcd_disk_wal_fsync_duration_seconds_count"
                                 r" (\S+)", text, re.M).group(1))
        return n

    def run(self, method, body, clients):
        out = subprocess.run(
            ["h2load", "-D", "%g" % SECONDS, "-c", str(clients), "-m", "1",
             "-d", body, "-H", "content-type: application/grpc", "-H",
             "te: trailers", self.leader + "/etcdserverpb.KV/" + method],
            stdout=subprocess.PIPE, check=True, text=True,
            timeout=SECONDS + 60).stdout
        done, failed = re.search(r"(\d+) succeeded, (\d+) failed",
                                 out).groups()
        if int(failed) > 0 or int(done) == 0:
            raise RuntimeError(out)
        return int(done) / SECONDS, int(done)

    def stop(self):
        for n in self.nodes:
            n.stop()


class Redis:
    """One node; every write synced before it is acknowledged."""

    def __init__(self, folder):
        self.port = free_port()
        os.mkdir(folder + "/redis")
        self.node = Process(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1",
             "--dir", folder + "/redis", "--appendonly", "yes",
             "--appendfsync", "always", "--save", ""], folder + "/redis.log")
        until(lambda: socket.socket().connect_ex(
            ("127.0.0.1", self.port)) == 0)

    def run(self, clients, n):
        out = subprocess.run(
            ["redis-benchmark", "-p", str(self.port), "-c", str(clients), "-n",
             str(n), "-r", "1000", "-t", "incr", "--csv"],
            stdout=subprocess.PIPE, check=True, text=True, timeout=120).stdout
        return float(out.strip().splitlines()[-1].split(",")[1].strip('"'))

    def sized(self, clients):
        """About SECONDS long."""
        probe = self.run(clients, 2000)
        return self.run(clients, max(2000, int(probe * SECONDS)))

    def syncs(self, clients, n):
        """Per write, under strace: the rate of such a run means nothing."""
        trace = subprocess.Popen(
            ["strace", "-f", "-c", "-e", "trace=fdatasync,fsync", "-p",
             str(self.node.p.pid)], stderr=subprocess.PIPE, text=True)
        first = trace.stderr.readline()
        self.run(clients, n)
        trace.send_signal(signal.SIGINT)
        text = first + trace.stderr.read()
        trace.wait(10)
        calls = sum(int(line.split()[3]) for line in text.splitlines()
                    if re.search(r"\bf(data)?sync$", line))
        return calls / n

    def stop(self):
        self.node.stop()


def ours(cluster, work, args):
    out = subprocess.run(
        [program("holdfast"), "bench", work, "--config", cluster.client_yaml,
         "--seconds", "%g" % SECONDS, "--json"] + args,
        stdout=subprocess.PIPE, timeout=SECONDS + 120, text=True,
        check=True).stdout
    r = json.loads(out.strip().splitlines()[-1])
    if r["errors"] > 0:
        raise RuntimeError(out)
    return r["ops_per_s"], r.get("syncs_per_op", 0.0)


def main():
    install()
    folder = tempfile.mkdtemp(prefix="holdfast-peers-")
    rows = {}
    syncs = {}
    etcd = Etcd(folder)
    redis = Redis(folder)
    try:
        with Cluster(3, shards=16).start() as cluster:
            cluster.wait_leaders()
            for _ in range(ROUNDS):
                measure(cluster, etcd, redis, rows, syncs)
        syncs["Redis increment, 64"] = redis.syncs(64, 5000)
    finally:
        redis.stop()
        etcd.stop()
        shutil.rmtree(folder)
    report(rows, syncs)


def measure(cluster, etcd, redis, rows, syncs):
    def note(name, rate):
        rows.setdefault(name, []).append(rate)

    for clients in (1, 64):
        before = etcd.syncs()
        rate, done = etcd.run("Put", etcd.put, clients)
        note("etcd put, %d" % clients, rate)
        syncs["etcd put, %d" % clients] = (etcd.syncs() - before) / done
        rate, per = ours(cluster, "kv-incr",
                         ["--clients", str(clients), "--objects", "1000"])
        note("ours increment, %d" % clients, rate)
        syncs["ours increment, %d" % clients] = per
        note("Redis increment, %d" % clients, redis.sized(clients))
    note("etcd get, 64", etcd.run("Range", etcd.get, 64)[0])
    note("ours get, 64", ours(cluster, "kv-get", ["--clients", "64"])[0])


def report(rows, syncs):
    median = {k: statistics.median(v) for k, v in rows.items()}
    print("%-28s %10s %10s %10s %10s" % ("", "median/s", "least", "most",
                                         "syncs/op"))
    for name in sorted(rows):
        s = "%10.4f" % syncs[name] if name in syncs else ""
        print("%-28s %10.0f %10.0f %10.0f %s" %
              (name, median[name], min(rows[name]), max(rows[name]), s))
    print()
    for mine, other, aim in (
            ("ours increment, 64", "etcd put, 64", 10),
            ("ours increment, 1", "etcd put, 1", 2),
            ("ours get, 64", "etcd get, 64", 10),
            ("ours increment, 64", "Redis increment, 64", None)):
        print("%s / %s: %.1f%s" %
              (mine, other, median[mine] / median[other],
               "" if aim is None else " (the aim is %d)" % aim))


main()
