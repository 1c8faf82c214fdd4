#!/usr/bin/env python3
"""The judge of histories finds what was planted, and nothing where all is
well."""
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from hf import json, main, program, tests_of  # noqa: E402

LONG = 20000


def judge(rows):
    """rows: (client, id, type, fields); each takes one step of time."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        for at, (client, number, kind, fields) in enumerate(rows, 1):
            f.write(json.dumps(dict(fields, at=at, client=client, id=number,
                                    type=kind)) + "\n")
        f.flush()
        r = subprocess.run([program("tests/chaos/judge"), f.name],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           text=True, timeout=60)
    return r.returncode, r.stdout


class History:
    """Rows of one object, written as a story."""

    def __init__(self):
        self.rows = []
        self.number = 0
        self.open = {}

    def ask(self, client, method, **fields):
        self.number += 1
        self.open[client] = self.number
        self.rows.append((client, self.number, "invoke",
                          dict(fields, object="kv/o", method=method)))
        return self

    def end(self, client, kind, **fields):
        self.rows.append((client, self.open.pop(client), kind, fields))
        return self

    def did(self, client, method, asked, **answer):
        return self.ask(client, method, **asked).end(client, "ok", **answer)

    def good(self):
        code, text = judge(self.rows)
        assert code == 0, text

    def bad(self):
        code, text = judge(self.rows)
        assert code == 1 and "kv/o" in text, (code, text)


def incr(h, client, value, rev, **fields):
    return h.did(client, "incr", dict(fields, by=1), value=value, rev=rev)


def test_what_is_right_passes():
    h = History()
    incr(h, 1, 1, 1)
    h.ask(1, "put", value=7)
    h.ask(2, "get")
    h.end(2, "ok", value=1, rev=1)
    h.end(1, "ok", rev=2)
    h.did(3, "cas", {"expect": 7, "value": 9}, rev=3)
    h.did(2, "cas", {"expect": 7, "value": 8}, code="CONFLICT", expect=9)
    h.did(2, "get", {}, value=9, rev=3)
    h.good()


def test_an_unknown_write_may_come_later_or_never():
    for seen, rev in ((1, 1), (2, 2)):
        h = History()
        incr(h, 1, 1, 1)
        h.ask(2, "incr", by=1).end(2, "unknown")
        h.did(2, "get", {}, value=1, rev=1)
        h.did(1, "get", {}, value=seen, rev=rev)
        h.good()


def test_a_lost_write_is_found():
    h = History()
    incr(h, 1, 1, 1)
    incr(h, 1, 2, 2)
    incr(h, 2, 2, 2)
    h.bad()


def test_a_stale_read_is_found():
    h = History()
    incr(h, 1, 1, 1)
    incr(h, 1, 2, 2)
    h.did(2, "get", {}, value=1, rev=1)
    h.bad()


def test_an_increment_that_counted_twice_is_found():
    h = History()
    incr(h, 1, 1, 1)
    h.did(1, "get", {}, value=2, rev=2)
    h.bad()


def test_a_refused_write_that_happened_is_found():
    h = History()
    incr(h, 1, 1, 1)
    h.ask(2, "put", value=5).end(2, "fail", code="OVERLOADED")
    h.did(1, "get", {}, value=5, rev=2)
    h.bad()


def test_a_key_that_is_answered_twice_is_found():
    h = History()
    incr(h, 1, 1, 1, idem="a")
    incr(h, 1, 1, 1, idem="a")
    h.good()
    incr(h, 1, 2, 2, idem="a")
    h.bad()


def test_a_swap_of_what_was_not_there_is_found():
    h = History()
    incr(h, 1, 1, 1)
    h.did(2, "cas", {"expect": 3, "value": 4}, rev=2)
    h.bad()


def test_reads_that_go_back_are_found():
    """Both lie within the write: one saw it, and a later one did not."""
    h = History()
    incr(h, 1, 1, 1)
    h.ask(1, "put", value=7)
    h.did(2, "get", {}, value=7, rev=2)
    h.did(3, "get", {}, value=1, rev=1)
    h.end(1, "ok", rev=2)
    h.bad()


def test_an_unknown_write_that_comes_and_goes_is_found():
    h = History()
    incr(h, 1, 1, 1)
    h.ask(2, "put", value=7).end(2, "unknown")
    h.did(1, "get", {}, value=7, rev=2)
    h.did(1, "get", {}, value=1, rev=1)
    h.bad()


def test_an_unknown_increment_that_counted_twice_is_found():
    for times in (1, 2):
        h = History()
        h.ask(2, "incr", by=1).end(2, "unknown")
        incr(h, 1, 1 + times, 1 + times)
        (h.good if times == 1 else h.bad)()


def test_a_key_whose_first_try_is_unknown_counts_once():
    for twice in (False, True):
        h = History()
        h.ask(1, "incr", by=1, idem="a").end(1, "unknown")
        h.did(2, "get", {}, value=1, rev=1)
        incr(h, 1, 2 if twice else 1, 2 if twice else 1, idem="a")
        (h.bad if twice else h.good)()


def test_a_conflict_that_was_none_is_found():
    h = History()
    incr(h, 1, 1, 1)
    h.did(2, "cas", {"expect": 1, "value": 8}, code="CONFLICT", expect=1)
    h.bad()


def test_a_revision_that_is_given_twice_is_found():
    h = History()
    h.did(1, "put", {"value": 7}, rev=1)
    h.did(2, "put", {"value": 7}, rev=1)
    h.bad()


def test_a_value_that_is_no_integer_is_refused():
    rows = [(1, 1, "invoke", {"object": "kv/o", "method": "put",
                              "value": "seven"}),
            (1, 1, "ok", {"rev": 1})]
    code, text = judge(rows)
    assert code == 2 and ":1:" in text, (code, text)


def test_a_long_history_with_an_unknown_write_is_judged():
    """Each write that was answered may be the one that was not: a way that
    forks more often than a stack is deep."""
    h = History()
    h.ask(2, "incr", by=1).end(2, "unknown")
    for value in range(1, LONG):
        incr(h, 1, value, value)
    h.good()
    incr(h, 1, LONG + 1, LONG + 1)
    h.good()
    incr(h, 1, LONG + 3, LONG + 3)
    h.bad()


def test_what_is_no_history_is_refused():
    code, text = judge([(1, 1, "ok", {})])
    assert code == 2 and ":1:" in text, (code, text)
    code, text = judge([(1, 1, "invoke", {"object": "kv/o",
                                          "method": "list"})])
    assert code == 2, (code, text)


if __name__ == "__main__":
    main(tests_of(globals()))
