"""Wires between the nodes of a Cluster that can be cut.

Each node reaches each other one through a relay of its own on loopback, so a
cut may be in one direction of dialing, of one pair, or around one node. What is
cut stays connected and passes nothing: nobody is told, as on a real network.
"""
import re
import socket
import threading


class Wire:
    """From one node to another: listens for the first, connects to the second.
    """

    def __init__(self, host, port):
        self.target = (host, port)
        self.flows = threading.Event()
        self.flows.set()
        self.closed = False
        self.socks = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                a, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(a,),
                             daemon=True).start()

    def _join(self, a):
        self.flows.wait()
        try:
            b = socket.create_connection(self.target, timeout=10)
        except OSError:
            a.close()
            return
        b.settimeout(None)
        for s in (a, b):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socks.append(s)
        threading.Thread(target=self._pump, args=(b, a), daemon=True).start()
        self._pump(a, b)

    def _pump(self, a, b):
        try:
            while True:
                got = a.recv(1 << 16)
                self.flows.wait()
                if not got or self.closed:
                    break
                b.sendall(got)
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.closed = True
        self.flows.set()
        self.listener.close()
        for s in self.socks:
            s.close()


class Wires:
    """Before the cluster starts: puts a wire into each `peers` of its
    configurations."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.wires = {}
        at = {}
        for n in cluster.nodes:
            with open(n.config) as f:
                text = f.read()
            at[n.id] = re.search(r'^listen:.*?^  peer: "([^"]*)"', text,
                                 re.M | re.S).group(1)
        for n in cluster.nodes:
            with open(n.config) as f:
                text = f.read()
            head, _, peers = text.partition("\npeers:\n")
            for o in cluster.others(n):
                host, _, port = at[o.id].rpartition(":")
                w = Wire(host.strip("[]"), int(port))
                self.wires[n.id, o.id] = w
                old = 'peer: "%s"' % at[o.id]
                assert old in peers, (old, peers)
                peers = peers.replace(old, 'peer: "127.0.0.1:%d"' % w.port)
            with open(n.config, "w") as f:
                f.write(head + "\npeers:\n" + peers)

    def cut(self, a, b):
        self.wires[a.id, b.id].flows.clear()
        self.wires[b.id, a.id].flows.clear()

    def isolate(self, node):
        for o in self.cluster.others(node):
            self.cut(node, o)

    def mend(self):
        for w in self.wires.values():
            w.flows.set()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for w in self.wires.values():
            w.close()
