"""Real nodes and a MessagePack-RPC client for the integration and chaos tests.

Standard library only: the client is written from docs/protocol.md and shares no
line with libholdfast. Nothing here sleeps: it reads until the awaited line or
answer has come, with a limit in time that fails the test.
"""
import json
import os
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

LIMIT_S = 60


# MessagePack, as much as the protocol needs. str and bytes are str and bin.

def pack(v):
    if v is None:
        return b"\xc0"
    if v is True:
        return b"\xc3"
    if v is False:
        return b"\xc2"
    if isinstance(v, int):
        if 0 <= v < 128:
            return struct.pack("B", v)
        if -32 <= v < 0:
            return struct.pack("b", v)
        if v >= 0:
            for code, fmt, top in ((0xcc, ">B", 1 << 8), (0xcd, ">H", 1 << 16),
                                   (0xce, ">I", 1 << 32),
                                   (0xcf, ">Q", 1 << 64)):
                if v < top:
                    return bytes([code]) + struct.pack(fmt, v)
        return b"\xd3" + struct.pack(">q", v)
    if isinstance(v, float):
        return b"\xcb" + struct.pack(">d", v)
    if isinstance(v, str):
        b = v.encode()
        n = len(b)
        if n < 32:
            return bytes([0xa0 | n]) + b
        if n < 256:
            return bytes([0xd9, n]) + b
        if n < 1 << 16:
            return b"\xda" + struct.pack(">H", n) + b
        return b"\xdb" + struct.pack(">I", n) + b
    if isinstance(v, (bytes, bytearray)):
        n = len(v)
        if n < 256:
            return bytes([0xc4, n]) + v
        if n < 1 << 16:
            return b"\xc5" + struct.pack(">H", n) + v
        return b"\xc6" + struct.pack(">I", n) + v
    if isinstance(v, (list, tuple)):
        n = len(v)
        head = bytes([0x90 | n]) if n < 16 else b"\xdc" + struct.pack(">H", n)
        return head + b"".join(pack(x) for x in v)
    if isinstance(v, dict):
        n = len(v)
        head = bytes([0x80 | n]) if n < 16 else b"\xde" + struct.pack(">H", n)
        return head + b"".join(pack(k) + pack(x) for k, x in v.items())
    raise TypeError(type(v))


class More(Exception):
    """The bytes end in the middle of an object."""


def _take(b, at, n):
    if at + n > len(b):
        raise More
    return b[at:at + n], at + n


def unpack(b, at=0):
    """(value, next position); More when it is not whole."""
    raw, at = _take(b, at, 1)
    c = raw[0]
    if c < 0x80:
        return c, at
    if c >= 0xe0:
        return c - 256, at
    if c < 0x90:
        return _map(b, at, c & 15)
    if c < 0xa0:
        return _array(b, at, c & 15)
    if c < 0xc0:
        return _str(b, at, c & 31)
    if c in (0xc0, 0xc2, 0xc3):
        return {0xc0: None, 0xc2: False, 0xc3: True}[c], at
    sized = {0xc4: ">B", 0xc5: ">H", 0xc6: ">I", 0xd9: ">B", 0xda: ">H",
             0xdb: ">I", 0xdc: ">H", 0xdd: ">I", 0xde: ">H", 0xdf: ">I"}
    if c in sized:
        raw, at = _take(b, at, struct.calcsize(sized[c]))
        n = struct.unpack(sized[c], raw)[0]
        if c <= 0xc6:
            raw, at = _take(b, at, n)
            return bytes(raw), at
        if c <= 0xdb:
            return _str(b, at, n)
        return _array(b, at, n) if c <= 0xdd else _map(b, at, n)
    fixed = {0xca: ">f", 0xcb: ">d", 0xcc: ">B", 0xcd: ">H", 0xce: ">I",
             0xcf: ">Q", 0xd0: ">b", 0xd1: ">h", 0xd2: ">i", 0xd3: ">q"}
    raw, at = _take(b, at, struct.calcsize(fixed[c]))
    return struct.unpack(fixed[c], raw)[0], at


def _str(b, at, n):
    raw, at = _take(b, at, n)
    return bytes(raw).decode("utf-8", "surrogateescape"), at


def _array(b, at, n):
    out = []
    for _ in range(n):
        v, at = unpack(b, at)
        out.append(v)
    return out, at


def _map(b, at, n):
    out = {}
    for _ in range(n):
        k, at = unpack(b, at)
        out[k], at = unpack(b, at)
    return out, at


class CallError(Exception):
    """The error map of an answer."""

    def __init__(self, e):
        super().__init__("%s: %s" % (e.get("code"), e.get("message")))
        self.map = e
        self.code = e.get("code")
        self.outcome = e.get("outcome")


class Gone(Exception):
    """The connection ended before the answer came."""


def connect_unix(path, limit=LIMIT_S):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.settimeout(limit)
    try:
        s.connect(path)
    except OSError:
        s.close()
        raise
    return s


def connect_tls(host, port, ca, cert, key, limit=LIMIT_S):
    """As a client of the cluster: who the server is stands in its certificate's
    URI, not in a host name."""
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ctx.minimum_version = ssl.TLSVersion.TLSv1_3
    ctx.check_hostname = False
    ctx.load_verify_locations(ca)
    if cert is not None:
        ctx.load_cert_chain(cert, key)
    plain = socket.create_connection((host, port), timeout=limit)
    try:
        return ctx.wrap_socket(plain)
    except OSError:
        plain.close()
        raise


class Client:
    """One connection. send() and recv() pipeline; call() waits."""

    def __init__(self, where, limit=LIMIT_S):
        """`where`: the path of a socket, or a socket that is connected."""
        self.sock = (connect_unix(where, limit) if isinstance(where, str)
                     else where)
        self.buf = bytearray()
        self.next_id = 0

    def close(self):
        self.sock.close()

    def send(self, method, *params):
        self.next_id += 1
        try:
            self.sock.sendall(pack([0, self.next_id, method, list(params)]))
        except OSError as e:
            raise Gone(str(e)) from e
        return self.next_id

    def recv(self):
        """(id, error map or None, result) of the next answer."""
        while True:
            try:
                m, used = unpack(self.buf)
            except More:
                try:
                    got = self.sock.recv(1 << 16)
                except (ConnectionError, ssl.SSLError) as e:
                    raise Gone(str(e)) from e
                if not got:
                    raise Gone("end of the stream") from None
                self.buf += got
                continue
            del self.buf[:used]
            assert m[0] == 1, m
            return m[1], m[2], m[3]

    def rpc(self, method, *params):
        want = self.send(method, *params)
        got, error, result = self.recv()
        assert got == want, (got, want)
        if error is not None:
            raise CallError(error)
        return result

    def call(self, address, method, args=None, **options):
        params = [address, method, args or {}]
        if options:
            params.append(options)
        return self.rpc("call", *params)


def build_dir():
    return os.environ.get("builddir", os.getcwd())


def program(name):
    return os.path.join(build_dir(), name)


class Node:
    """A holdfastd of its own in a directory of its own."""

    def __init__(self, data=None, args=None, wrap=None):
        self.own = data is None
        self.data = data or tempfile.mkdtemp(prefix="hf-", dir="/tmp")
        self.args = args or ["--dev", "--data", self.data]
        self.wrap = wrap or []
        self.proc = None
        self.lines = []

    @property
    def socket(self):
        return os.path.join(self.data, "holdfast.sock")

    @property
    def pid(self):
        """Of holdfastd itself, also behind a tracer."""
        with open(os.path.join(self.data, "holdfastd.pid")) as f:
            return int(f.read())

    def start(self, ready=True):
        self.proc = subprocess.Popen(
            self.wrap + [program("holdfastd")] + self.args,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE)
        self.lines = []
        self.tail = b""
        if ready:
            self.wait_line('"event":"node_ready"')
        return self

    def read_line(self, limit):
        """The next line of its log, or None at its end."""
        fd = self.proc.stderr.fileno()
        while b"\n" not in self.tail:
            left = limit - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise TimeoutError("no line: " + repr(self.lines[-5:]))
            got = os.read(fd, 65536)
            if not got:
                if self.tail:
                    break
                return None
            self.tail += got
        line, _, self.tail = self.tail.partition(b"\n")
        line = line.decode(errors="replace")
        self.lines.append(line)
        return line

    def wait_line(self, part):
        limit = time.monotonic() + LIMIT_S
        while True:
            line = self.read_line(limit)
            if line is None:
                raise AssertionError("ended: %r, exit code %s" %
                                     (self.lines[-5:], self.proc.wait()))
            if part in line:
                return line

    def wait(self):
        """Its exit code; the rest of its log is in self.lines."""
        limit = time.monotonic() + LIMIT_S
        while self.read_line(limit) is not None:
            pass
        self.proc.stderr.close()
        return self.proc.wait(LIMIT_S)

    def client(self):
        return Client(self.socket)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def stop(self):
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.proc is not None and self.proc.poll() is None:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except (OSError, ValueError):
                pass
            self.proc.kill()
            self.proc.wait()
        if self.own:
            shutil.rmtree(self.data, ignore_errors=True)


class Member:
    """One node of a Cluster. What it says is read as it comes, so that it never
    waits for us; `lines` has all of it since it was started."""

    def __init__(self, cluster, number):
        self.cluster = cluster
        self.id = number
        self.name = "node%d" % number
        self.dir = os.path.join(cluster.dir, self.name)
        self.config = os.path.join(self.dir, "holdfast.yaml")
        self.data = os.path.join(self.dir, "data")
        self.socket = os.path.join(self.dir, "holdfast.sock")
        self.proc = None
        self.lines = []
        self.said = threading.Condition()
        self.reader = None

    def __repr__(self):
        return self.name

    @property
    def pid(self):
        with open(os.path.join(self.dir, "holdfastd.pid")) as f:
            return int(f.read())

    @property
    def running(self):
        return self.proc is not None and self.proc.poll() is None

    def _read(self, stream, lines):
        for line in stream:
            with self.said:
                lines.append(line.decode(errors="replace").rstrip("\n"))
                self.said.notify_all()
        with self.said:
            lines.append(None)
            self.said.notify_all()

    def start(self, ready=True, wrap=()):
        """`ready`: wait until it has its copy of the directory; without, until
        it listens."""
        self.begin(wrap)
        self.wait_event("node_ready" if ready else "node_listening")
        return self

    def begin(self, wrap=()):
        """Only start the process."""
        self.proc = subprocess.Popen(
            list(wrap) + [program(self.cluster.daemon), "--config",
                          self.config],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env=self.cluster.env)
        self.lines = []
        self.reader = threading.Thread(
            target=self._read, args=(self.proc.stderr, self.lines),
            daemon=True)
        self.reader.start()
        return self

    def find(self, part):
        return next((l for l in self.lines if l is not None and part in l),
                    None)

    def wait_line(self, part, limit=LIMIT_S):
        """The first line of this run that has `part` in it."""
        end = time.monotonic() + limit
        with self.said:
            while True:
                line = self.find(part)
                if line is not None:
                    return line
                if self.lines and self.lines[-1] is None:
                    raise AssertionError("%s ended: %r" %
                                         (self, self.lines[-8:]))
                left = end - time.monotonic()
                if left <= 0 or not self.said.wait(left):
                    raise TimeoutError("%s does not say %s: %r" %
                                       (self, part, self.lines[-8:]))

    def wait_event(self, event, limit=LIMIT_S):
        return json.loads(self.wait_line('"event":"%s"' % event, limit))

    def wait(self):
        """Its exit code, when it has ended."""
        code = self.proc.wait(LIMIT_S)
        self.reader.join(LIMIT_S)
        self.proc.stderr.close()
        return code

    def kill(self):
        self.proc.kill()
        return self.wait()

    def stop(self):
        self.proc.terminate()
        return self.wait()

    def end_traced(self):
        """Behind a tracer the process is another one, and outlives it."""
        try:
            pid = self.pid
            with open("/proc/%d/cmdline" % pid, "rb") as f:
                if self.config.encode() in f.read() and pid != self.proc.pid:
                    os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            pass

    def pause(self):
        self.proc.send_signal(signal.SIGSTOP)

    def resume(self):
        self.proc.send_signal(signal.SIGCONT)

    def client(self, limit=LIMIT_S):
        return Client(self.socket, limit)

    def tls(self, ca=None, cert=None, key=None):
        """A client over TCP; by default with the certificate of init."""
        d = self.cluster.dir
        host, port = self.cluster.endpoints[self.name]
        return Client(connect_tls(
            host, port, ca or os.path.join(d, "client", "ca.pem"),
            cert or os.path.join(d, "client", "client.pem"),
            key or os.path.join(d, "client", "client.key")))

    def status(self):
        c = self.client(5)
        try:
            return c.rpc("status")
        finally:
            c.close()


def until(what, ask, limit=LIMIT_S):
    """Ask again and again until the answer is true; it is returned."""
    end = time.monotonic() + limit
    pause = threading.Event()
    while True:
        got = ask()
        if got:
            return got
        if time.monotonic() > end:
            raise TimeoutError("not within %d s: %s" % (limit, what))
        pause.wait(0.02)


class Cluster:
    """`nodes` real nodes on `ports` (0: free ones) of loopback or of `host`,
    in a directory of their own. Stopped and removed at its end."""

    def __init__(self, nodes=3, shards=8, daemon="holdfastd", env=None,
                 host=None, config="", ports=(0, 0)):
        self.own = tempfile.mkdtemp(prefix="hf-", dir="/tmp")
        self.dir = os.path.join(self.own, "c")
        self.daemon = daemon
        self.env = dict(os.environ, **env) if env else None
        self.nodes = []
        extra = ["--host", host] if host else []
        r = run("holdfast", "init", self.dir, "--nodes", str(nodes),
                "--rpc-port", str(ports[0]), "--peer-port", str(ports[1]),
                "--shards", str(shards), *extra)
        if r.returncode != 0:
            shutil.rmtree(self.own, ignore_errors=True)
            raise AssertionError(r)
        self.shards = shards
        self.said = r.stdout
        self.nodes = [Member(self, i + 1) for i in range(nodes)]
        for n in self.nodes:
            with open(n.config, "a") as f:
                f.write(config)
        self.endpoints = self._endpoints()

    def _endpoints(self):
        out = {}
        name = None
        with open(os.path.join(self.dir, "client.yaml")) as f:
            for line in f:
                key, _, value = line.strip(" -\n").partition(": ")
                if key == "name":
                    name = value
                elif key == "rpc":
                    host, _, port = value.strip('"').rpartition(":")
                    out[name] = (host.strip("[]"), int(port))
        return out

    @property
    def client_yaml(self):
        return os.path.join(self.dir, "client.yaml")

    @property
    def cluster_id(self):
        with open(self.client_yaml) as f:
            return f.readline().split("cluster ")[1].split(",")[0]

    def __getitem__(self, number):
        """By number, from 1, or by name."""
        return next(n for n in self.nodes if number in (n.id, n.name))

    def others(self, node):
        return [n for n in self.nodes if n is not node]

    def start(self):
        for n in self.nodes:
            n.begin()
        for n in self.nodes:
            n.wait_event("node_ready")
        self.wait_leaders()
        return self

    def leaders(self):
        """shard -> node that leads it; None where the nodes do not agree, or
        where nobody does."""
        out = {}
        for n in self.nodes:
            if not n.running:
                continue
            try:
                rows = n.status()["shards"]
            except (OSError, Gone, CallError):
                continue
            for r in rows:
                if r["leader"] == n.id:
                    old = out.get(r["shard"], (0, None))
                    if r["term"] > old[0]:
                        out[r["shard"]] = (r["term"], n)
        return {s: out.get(s, (0, None))[1] for s in range(self.shards)}

    def wait_leaders(self, limit=LIMIT_S):
        """Until every shard has a leader; who that is."""
        def ask():
            got = self.leaders()
            return got if None not in got.values() else None
        return until("every shard has a leader", ask, limit)

    def run(self, *argv, **kw):
        """The program `holdfast`, as the admin over TCP."""
        return run("holdfast", "--config", self.client_yaml, *argv, **kw)

    def kill(self):
        for n in self.nodes:
            if n.running:
                n.proc.kill()
        for n in self.nodes:
            if n.proc is not None and n.reader is not None:
                n.proc.wait(LIMIT_S)

    def stop(self):
        """All in order; their exit codes."""
        for n in self.nodes:
            n.proc.terminate()
        return [n.wait() for n in self.nodes]

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        if kind is not None:
            for n in self.nodes:
                print("---- %s: %s" % (n, "runs" if n.running else
                                       n.proc and n.proc.returncode))
                for line in n.lines[-12:]:
                    print("     %s" % line)
        for n in self.nodes:
            if n.running:
                n.resume()
                n.end_traced()
                n.proc.kill()
                n.proc.wait()
        shutil.rmtree(self.own, ignore_errors=True)


def expect_error(code, fn, *args, **kw):
    """The error map of a call that must fail with `code`."""
    try:
        got = fn(*args, **kw)
    except CallError as e:
        assert e.code == code, e.map
        return e.map
    raise AssertionError("answered %r instead of %s" % (got, code))


def run(*argv, **kw):
    return subprocess.run([program(argv[0])] + list(argv[1:]),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=LIMIT_S, text=True, **kw)


def passes(name, fn):
    """Whether it does, which it also says."""
    began = time.monotonic()
    try:
        fn()
        print("ok   %s (%.1f s)" % (name, time.monotonic() - began))
        return True
    except Exception:
        print("FAIL %s" % name)
        traceback.print_exc(file=sys.stdout)
        return False
    finally:
        sys.stdout.flush()


def main(tests):
    """Run test_ functions; the last line is what ./check adds up."""
    name = os.path.basename(sys.argv[0])
    wanted = sys.argv[1:]
    results = [passes(t.__name__, t) for t in tests
               if not wanted or t.__name__ in wanted]
    passed = sum(results)
    failed = len(results) - passed
    print("# %s: %d passed, %d failed" % (name, passed, failed))
    sys.exit(1 if failed else 0)


def tests_of(module):
    return [f for n, f in module.items() if n.startswith("test_")]


__all__ = [n for n in dir() if not n.startswith("_")] + ["json"]
