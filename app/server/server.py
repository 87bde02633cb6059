"""Uvicorn's server for one Gunicorn worker: it accepts by itself, leaves when the master says so, and drains."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from anyio.to_thread import current_default_thread_limiter
from uvicorn import Server

from app.server import memory, messages, worker_state
from app.server.accept import Acceptor
from app.server.connection import DrainingProtocol, HeldHeads, TaskMaker
from app.server.deadlines import Deadlines
from app.server.drain import drain
from app.server.forwarded import Forwarded
from app.server.metrics import Metrics
from app.server.settings import Settings

if TYPE_CHECKING:
    from app.server.worker import Worker

logger = logging.getLogger("uvicorn.error")
NOTIFY_SECONDS = 1.0
TICKS_IN_A_SECOND = 10  # Uvicorn calls on_tick() this often


class DrainingServer(Server):
    """Serves until the master says Leave, or is gone."""

    def __init__(self, worker: Worker, settings: Settings, metrics: Metrics) -> None:
        super().__init__(worker.config)
        self.worker = worker
        self.settings = settings
        self.metrics = metrics
        self.acceptor: Acceptor
        self.stop_begun: float | None = None  # monotonic time; None: the worker serves, or is replaced
        self._given: dict[str, Any]  # to each connection
        self._replacement_wanted = False
        self._memory_limit_mb = settings.worker_memory_mb  # 0: none
        self._signalled = False
        self._next_notification = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        worker_state.loop = loop = asyncio.get_running_loop()
        await super().startup(sockets=[])  # the lifespan alone
        self._given = {
            "heads": HeldHeads(loop),
            "forwarded": Forwarded(self.config.loaded_app),
            "idle": Deadlines(self.config.timeout_keep_alive),
            "config": self.config,
            "server_state": self.server_state,
            "app_state": self.lifespan.state,
            "_loop": TaskMaker(loop),
        }
        per_worker = self.settings.worker_listeners == "per-worker"
        self.acceptor = Acceptor(
            self.worker.sockets,
            self._protocol,
            self._on_connection,
            self.settings.listen_backlog,
            at_once=self.settings.listen_backlog if per_worker else 1,
        )
        self.acceptor.start()
        loop.add_reader(self.worker.channel.fileno(), self._hear_master)
        os.register_at_fork(after_in_child=self._close_connections)
        if self._memory_limit_mb and (held := memory.resident_mb()) >= self._memory_limit_mb:
            # Its replacements would need as much, and be replaced in turn, for ever.
            logger.error(
                "WORKER_MEMORY_MB=%d is less than a new worker holds, %d MiB: no limit", self._memory_limit_mb, held
            )
            self._memory_limit_mb = 0
        self._limiter = current_default_thread_limiter()
        worker_state.state = "ready"
        self.metrics.be("ready")
        self.worker.tell_master(messages.Ready())

    def _on_connection(self) -> None:
        self.metrics.accepted()
        self.worker.turn_gate.shorten_turns()

    def _protocol(self) -> asyncio.Protocol:
        return DrainingProtocol(**self._given)

    def _close_connections(self) -> None:
        """In a process that the application forks: no client must wait for it when this one is gone."""
        for connection in list(self.server_state.connections):
            os.close(connection.transport.get_extra_info("socket").fileno())

    # --- the master -----------------------------------------------------------------------------------------

    def notify_master(self) -> None:
        """The heartbeat, by a clock that nobody sets: a worker that is silent for WORKER_TIMEOUT_SECONDS is killed."""
        self.metrics.tick(1 / TICKS_IN_A_SECOND, len(self.server_state.connections), self._limiter)
        now = time.monotonic()
        if now >= self._next_notification:
            self._next_notification = now + NOTIFY_SECONDS
            self.worker.notify()

    def _hear_master(self) -> None:
        channel = self.worker.channel
        for message in channel.receive():
            if isinstance(message, messages.Leave):
                self.should_exit = True
                self.acceptor.close()  # the replacement accepts
            elif isinstance(message, messages.Stay):
                self._memory_limit_mb = 2 * memory.resident_mb()
                self._replacement_wanted = False
        if channel.closed_by_peer:  # the master stops, or was killed
            asyncio.get_running_loop().remove_reader(channel.fileno())
            self._stop()
            self.acceptor.close_as_last_holder()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """TERM, INT, QUIT from outside: go as soon as a replacement stands; at the second signal, now."""
        if self._signalled or not self.started:
            self._stop()
        self._signalled = True

    def _stop(self) -> None:
        self.should_exit = True
        if self.stop_begun is None:
            self.stop_begun = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        self.notify_master()
        leave = await super().on_tick(counter)
        if not (self._replacement_wanted or leave) and (wanted := self._why_replace(counter)):
            self._replacement_wanted = True
            logger.info("%s: asking for a replacement", wanted.detail)
            self.worker.tell_master(wanted)
        return leave

    def _why_replace(self, counter: int) -> messages.ReplacementWanted | None:
        requests = self.server_state.total_requests
        if self._signalled:
            return messages.ReplacementWanted("signal", "signal", requests)
        if requests >= self.worker.max_requests:
            return messages.ReplacementWanted("max_requests", "max_requests reached", requests)
        if self._memory_limit_mb and counter % TICKS_IN_A_SECOND == 0:
            held = memory.resident_mb()
            if held >= self._memory_limit_mb:
                detail = f"memory is {held} MiB, WORKER_MEMORY_MB={self.settings.worker_memory_mb}"
                return messages.ReplacementWanted("memory", detail, requests)
        return None

    # --- leaving --------------------------------------------------------------------------------------------

    async def announce_close(self) -> None:
        """From now on each answer that begins says `Connection: close`."""
        self.config.encoded_headers.append((b"connection", b"close"))
        await super().on_tick(0)  # puts the header into use

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then end the application's lifespan."""
        worker_state.state = "draining"
        self.metrics.be("draining")
        self.worker.tell_master(messages.Draining())
        if not self.worker.channel.closed_by_peer:
            self.acceptor.close()
        await drain(self)
        await self.lifespan.shutdown()
        self.metrics.be("left")
