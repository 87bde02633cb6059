"""How a worker leaves: it answers on what it has, until nothing is left or its time is over.

Uvicorn's own shutdown closes idle connections at once, while nginx may be sending on them: POSTs are lost then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from app.server import messages, worker_state
from app.server.connection import DrainingProtocol

if TYPE_CHECKING:
    from app.server.server import DrainingServer

logger = logging.getLogger("uvicorn.error")
# What is cancelled at the end has this long to end; then its connection is closed.
CANCEL_GRACE_SECONDS = 1.0
# A turn of the loop that took longer: the machine may have stood still. Then nginx finds a client's request before it
# finds that the time of its idle connection is over, and may use that connection once more.
STANDSTILL_SECONDS = 1.0


async def drain(server: DrainingServer) -> None:
    """Each answer that begins now says `Connection: close`; a connection is closed once nginx has given it up.

    An event stream and a WebSocket end at once: their clients connect again. Every other request goes on: at a stop
    for UVICORN_GRACEFUL_SECONDS, in a worker that was replaced for REPLACED_WORKER_SECONDS. Then it is cancelled.
    """
    settings, state = server.settings, server.server_state
    await server.announce_close()
    logger.info("draining: %d connections, %d requests in flight", len(state.connections), len(state.tasks))
    begun = looked = moves_since = time.monotonic()
    notified: set[object] = set()
    finishing = False
    while state.connections or state.tasks or server.acceptor.connecting or server.acceptor.listeners:
        now = time.monotonic()
        if now - looked > STANDSTILL_SECONDS:
            moves_since = now
        looked = now
        given_up = now - settings.drain_seconds  # by nginx: what was idle then
        if server.stop_begun and now - server.stop_begun >= settings.uvicorn_graceful_seconds:
            await _cancel_requests(server, "UVICORN_GRACEFUL_SECONDS")
            break
        if not server.stop_begun and now - begun >= settings.replaced_worker_seconds:
            await _cancel_requests(server, "REPLACED_WORKER_SECONDS")
            break
        for connection in list(state.connections):
            if connection not in notified:
                notified.add(connection)
                connection.shutdown()  # a WebSocket is closed with 1012 here
            elif isinstance(connection, DrainingProtocol) and moves_since <= given_up:
                connection.close_if_idle_since(given_up)
        for end in list(worker_state.end_event_stream):
            end()
        if not finishing and moves_since <= given_up:
            finishing = True
            server.worker.tell_master(messages.Finishing())
            server.metrics.be("finishing")
        server.notify_master()
        await asyncio.sleep(0.05)
    logger.info("drained in %.1f s", time.monotonic() - begun)


async def _cancel_requests(server: DrainingServer, row: str) -> None:
    tasks = list(server.server_state.tasks)
    if tasks:
        logger.error("cancelling %d requests after %s", len(tasks), row)
        server.metrics.board.add(len(tasks), "app_drain_cut_requests")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CANCEL_GRACE_SECONDS)
    for connection in list(server.server_state.connections):
        connection.transport.close()
