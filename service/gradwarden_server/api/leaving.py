"""A reader that closes the page no longer needs the answer: the reading for it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from threading import Event

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from gradwarden_server.store import abandon

log = logging.getLogger(__name__)


async def _while_wanted(request: Request) -> AsyncIterator[None]:
    left = Event()
    watch = asyncio.create_task(_await_leaving(request, left))
    try:
        with abandon.unless(left):
            yield
    except abandon.Abandoned:
        log.info("the reader left; its reading ended")
        raise ClientDisconnect from None
    finally:
        watch.cancel()


async def _await_leaving(request: Request, left: Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    left.set()


WHILE_WANTED = Depends(_while_wanted)
"""For routes that read much: what they read in the store ends when the client leaves."""
