"""Whether the Hugging Face Hub can be reached: asked once, in seconds, before anything retries for half a minute."""

from __future__ import annotations

import socket
from functools import cache
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

TIMEOUT_S = 3.0
_PORTS = {"http": 80, "https": 443}


def hub_unreachable() -> bool:
    """Whether nothing accepts a connection at $HF_ENDPOINT or its proxy; False in offline mode (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and not answers(constants.ENDPOINT)


@cache
def answers(address: str) -> bool:
    """Whether a URL's host, or its proxy in the environment, accepts a connection within TIMEOUT_S; asked once."""
    url = urlsplit(address)
    proxy = getproxies().get(url.scheme)
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    place = (url.hostname or "", url.port or _PORTS.get(url.scheme, 80))
    connected: list[bool] = []

    def connect() -> None:
        try:
            with socket.create_connection(place, TIMEOUT_S):
                connected.append(True)
        except OSError:
            pass

    # A thread, because looking up a host's name has no time limit of its own.
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return bool(connected)
