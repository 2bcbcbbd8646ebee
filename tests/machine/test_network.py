"""Whether a network is there, against sockets of this machine."""

from __future__ import annotations

import socket
import time

import pytest

from flashar_cli.machine import network


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setattr(network, "getproxies", dict)
    answers = network.answers
    answers.cache_clear()
    yield
    answers.cache_clear()


@pytest.fixture
def server():
    """The port of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_an_address_answers_or_does_not(server, closed_port):
    assert network.answers(f"http://127.0.0.1:{server}")
    assert not network.answers(f"http://127.0.0.1:{closed_port}")
    assert not network.answers("https://host.invalid")


def test_a_proxy_is_asked_instead_unless_it_is_passed_by(server, closed_port, monkeypatch):
    for proxy in (f"http://127.0.0.1:{server}", f"127.0.0.1:{server}"):
        monkeypatch.setattr(network, "getproxies", lambda proxy=proxy: {"https": proxy})
        assert network.answers("https://host.invalid")
        network.answers.cache_clear()
    monkeypatch.setenv("no_proxy", "host.invalid")
    assert not network.answers("https://host.invalid")


def test_a_look_up_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(network, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: time.sleep(1) or [])
    started = time.perf_counter()
    assert not network.answers("https://host.invalid")
    assert time.perf_counter() - started < 0.9


def test_offline_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(network, "answers", lambda address: pytest.fail("a connection was tried"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not network.hub_unreachable()


def test_the_hub_is_asked_once(monkeypatch):
    asked = []

    def refuse(place, timeout):
        asked.append(place)
        raise OSError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example")
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert network.hub_unreachable() and network.hub_unreachable() and asked == [("hub.example", 443)]
