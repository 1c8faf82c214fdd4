"""Load that knows what was promised, for the tests that kill nodes."""
import threading

from hf import CallError, Gone


class Load:
    """Writers that remember every answer. Each counter has one writer, so its
    value may be at most one above what was acknowledged: the call that was
    under way."""

    def __init__(self, node, writers=8, objects=16):
        self.node = node
        self.objects = objects
        self.acked = {}    # address -> last acknowledged value
        self.asked = {}    # address -> increments sent
        self.keyed = {}    # idempotency key -> first answer
        self.errors = []
        self.round = 0
        self.writers = writers

    def _writer(self, w, count):
        try:
            c = self.node.client()
            for i in range(count):
                address = "kv/c%d-%d" % (w, i % self.objects)
                key = "%d-%d-%d" % (self.round, w, i)
                self.asked[address] = self.asked.get(address, 0) + 1
                r = c.call(address, "incr", {"key": "n"}, idem=key)
                self.acked[address] = r["value"]
                self.keyed[(address, key)] = r
        except (Gone, OSError):
            pass
        except CallError as e:
            self.errors.append(e.map)
        except Exception as e:  # noqa: BLE001 - shown by check()
            self.errors.append(repr(e))

    def run(self, count, kill=None):
        """Every writer makes `count` calls, or until the node is gone.
        `kill(acked)` is polled after each answer of writer 0's thread."""
        self.round += 1
        threads = [threading.Thread(target=self._writer, args=(w, count))
                   for w in range(self.writers)]
        for t in threads:
            t.start()
        if kill is not None:
            kill(self)
        for t in threads:
            t.join()

    def check(self, retry_every=7):
        """Nothing acknowledged is missing, nothing happened twice, and a
        repeated key gives the first answer. Returns (counters, keys)."""
        assert not self.errors, self.errors[:3]
        c = self.node.client()
        for address, acked in self.acked.items():
            v = c.call(address, "get", {"key": "n"})["value"]
            assert acked <= v <= self.asked[address], \
                (address, acked, v, self.asked[address])
        keys = list(self.keyed.items())[::retry_every]
        for (address, key), first in keys:
            again = c.call(address, "incr", {"key": "n"}, idem=key)
            assert again == first, (address, key, first, again)
        for address, acked in self.acked.items():
            v = c.call(address, "get", {"key": "n"})["value"]
            assert v <= self.asked[address], (address, v)
            # What was under way when the node died is decided now.
            self.acked[address] = v
        c.close()
        return len(self.acked), len(keys)
