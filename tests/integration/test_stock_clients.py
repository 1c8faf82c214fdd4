#!/usr/bin/python3
"""Clients that nobody here wrote: Debian's python3-pynvim and ruby-neovim."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import *  # noqa: E402,F403

from pynvim.msgpack_rpc import socket_session  # noqa: E402
from pynvim.msgpack_rpc.async_session import AsyncSession  # noqa: E402
from pynvim.msgpack_rpc.event_loop import EventLoop  # noqa: E402
from pynvim.msgpack_rpc.msgpack_stream import MsgpackStream  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


def test_python_blocking():
    with Node().start() as n:
        s = socket_session(n.socket)
        r = s.request("call", "kv/py", "put", {"key": "k", "value": b"\0bin"})
        assert r == {"rev": 1}, r
        r = s.request("call", "kv/py", "get", {"key": "k"})
        assert r == {"value": b"\0bin", "rev": 1}, r
        r = s.request("call", "kv/py", "put", {"key": "k", "value": "text"})
        r = s.request("call", "kv/py", "get", {"key": "k"})
        assert r["value"] == "text", r
        failed = False
        try:
            s.request("call", "kv/py", "get", {"key": "none"})
        except Exception:  # noqa: BLE001 - its own way to say it differs
            failed = True
        assert failed
        assert s.request("ping") is None
        r = s.request("hello")
        assert r["server"] == "holdfast", r
        s.close()


def test_python_pipelined_by_id():
    with Node().start() as n:
        session = AsyncSession(MsgpackStream(EventLoop("socket", n.socket)))
        session.notify(b"nvim_set_client_info", ["py", {}, "host", {}, {}])
        left = [300]
        values = {}

        def answered(i):
            def cb(error, result):
                assert error is None, error
                values[i] = result["value"]
                left[0] -= 1
                if left[0] == 0:
                    session.stop()
            return cb

        for i in range(300):
            session.request("call", ["kv/p%d" % (i % 10), "incr",
                                     {"key": "n"}], answered(i))
        session.run(None, None)
        # Per connection and object calls run in the order they were sent.
        for o in range(10):
            assert [values[i] for i in range(o, 300, 10)] == \
                list(range(1, 31))
        session.close()


def test_python_limiter():
    with Node().start() as n:
        s = socket_session(n.socket)
        s.request("call", "rate_limiter/r", "put_policy",
                  {"limit": 3, "period_ms": 60000, "durability": "committed"})
        got = [s.request("call", "rate_limiter/r", "check", {"key": "a"})
               for _ in range(5)]
        assert [g["allowed"] for g in got] == [True] * 3 + [False] * 2, got
        assert got[0]["remaining"] == 2 and got[3]["retry_after_ms"] > 0, got
        s.close()


def test_ruby_pipelined():
    with Node().start() as n:
        r = subprocess.run(["/usr/bin/ruby",
                            os.path.join(HERE, "stock_client.rb"), n.socket],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           timeout=LIMIT_S, text=True)
        assert r.returncode == 0, r.stdout
        assert n.client().rpc("ping") is None


if __name__ == "__main__":
    main(tests_of(globals()))
