"""Connections that wait for requests: each is one thread's, and none is forgotten."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from todo_api.arrivals import Arrivals

SOON, LONG = 0.05, 30  # seconds


@dataclass(frozen=True)
class Connection:
    sock: socket.socket


@pytest.fixture
def arrivals():
    return Arrivals()


@pytest.fixture
def connected():
    """Makes pairs of a client's socket and the connection that waits for it."""
    sockets = []

    def connect():
        client, server = socket.socketpair()
        sockets.extend([client, server])
        return client, Connection(server)

    yield connect
    for each in sockets:
        each.close()


def test_only_what_has_sent_something_is_taken(arrivals, connected):
    (_, silent), (client, other) = connected(), connected()
    arrivals.put(silent)
    arrivals.put(other)

    client.sendall(b"x")

    assert arrivals.take(LONG) is other
    assert arrivals.take(SOON) is None
    assert arrivals.waiting() == [silent]


def test_a_connection_that_was_taken_waits_again_once_it_is_put_back(arrivals, connected):
    client, conn = connected()
    client.sendall(b"x")
    arrivals.put(conn)

    first, meanwhile = arrivals.take(LONG), arrivals.take(SOON)
    arrivals.put(conn)

    assert (first, meanwhile, arrivals.take(LONG)) == (conn, None, conn)


def test_what_has_been_read_already_comes_next_without_anything_new(arrivals, connected):
    _, conn = connected()

    arrivals.put(conn, arrived=True)

    assert arrivals.take(LONG) is conn


def test_what_was_removed_is_nobodys(arrivals, connected):
    client, conn = connected()
    arrivals.put(conn)

    assert arrivals.remove(conn)
    client.sendall(b"x")
    assert arrivals.take(SOON) is None
    assert not arrivals.remove(conn)


def test_many_threads_have_each_connection_one_at_a_time(arrivals, connected):
    """What a client sends next is only taken after what it sent before was answered."""
    clients, threads, rounds = 5, 4, 200
    busy, served, broken = set(), Counter(), []

    def serve():
        while conn := arrivals.take(LONG):
            if conn in busy:
                broken.append(conn)
            busy.add(conn)
            sent = conn.sock.recv(1)
            served[conn] += 1
            busy.discard(conn)
            arrivals.put(conn)
            conn.sock.sendall(sent)

    def ask(client):
        for _ in range(rounds):
            client.sendall(b"x")
            assert client.recv(1) == b"x"

    pairs = [connected() for _ in range(clients)]
    for _, conn in pairs:
        arrivals.put(conn)
    with ThreadPoolExecutor(threads + clients) as pool:
        serving = [pool.submit(serve) for _ in range(threads)]
        try:
            for asked in [pool.submit(ask, client) for client, _ in pairs]:
                asked.result(LONG)
        finally:
            arrivals.end()
        for each in serving:
            each.result(LONG)

    assert broken == []
    assert set(served.values()) == {rounds}


def test_the_end_lets_everybody_go(connected):
    arrivals = Arrivals()
    _, conn = connected()
    arrivals.put(conn)
    threads = [threading.Thread(target=arrivals.take) for _ in range(3)]
    for thread in threads:
        thread.start()

    arrivals.end()

    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
