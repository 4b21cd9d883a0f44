"""The invalidation link: what one process has committed, the caches of all others learn of.

Messages go over Valkey's pub/sub, which forgets what it cannot deliver. So the link is built to
know when it may have missed something, and to say so (docs/adr/0006):

- each process publishes a beat, and reads its own and everybody else's;
- a process that does not hear itself is cut off: its caches must not be trusted;
- a process sends its beat only after everything it owes, so one that cannot announce what it
  committed falls silent, and the others notice that too.
"""

import asyncio
import logging
import math
import random
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trunkline_server.valkey import FAILURES, PREFIX, Wire

CHANNEL = PREFIX + "link"
BEAT_S = 0.2
LOSS_S = 0.6
PUBLISH_TIMEOUT_S = 0.25
OWED_MAX = 10_000
# Longer than any cache trusts an entry: after that a message has nothing left to invalidate.
OWED_S = 60.0
MUTE_S = 60.0
SEND_AT_ONCE_MAX = 500
RETRY_S = 0.05
RETRY_MAX_S = 0.5

_BEAT = "beat"
_BYE = "bye"
_EVERYTHING = "*"

log = logging.getLogger(__name__)

Callback = Callable[[str], None]
Notice = Callable[[], None]


@dataclass(slots=True)
class _Owed:
    """A message that is not out yet. Nobody need wait for it any more."""

    text: str
    dropped_at: float
    sent: "asyncio.Future[None]"


@dataclass(slots=True)
class _Peer:
    incarnation: str
    heard_at: float
    mute: bool = False


class Link:
    """One subscriber and one publisher connection per process."""

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        beat_s: float = BEAT_S,
        loss_s: float = LOSS_S,
        publish_timeout_s: float = PUBLISH_TIMEOUT_S,
        owed_s: float = OWED_S,
        mute_s: float = MUTE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A restarted process takes its predecessor's name, so nobody waits for the dead one.
        self._incarnation = uuid.uuid4().hex[:12]
        self._name = name or self._incarnation
        self._beat_s = beat_s
        self._loss_s = loss_s
        self._publish_timeout_s = publish_timeout_s
        self._owed_s = owed_s
        self._mute_s = mute_s
        self._clock = clock
        self._wire = Wire(url, timeout_s=publish_timeout_s, connections_max=1)
        self._callbacks: dict[str, list[Callback]] = {}
        self._on_loss: list[Notice] = []
        self._on_recovery: list[Notice] = []
        self._owed: deque[_Owed] = deque()
        self._peers: dict[str, _Peer] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._subscriber: Any = None  # redis-py types few of a connection's calls
        self._heard_at = -math.inf  # when the own beat last came back on this subscription
        self._trusted = False
        self.losses = 0
        self.sent = 0
        self.received = 0
        self.dropped = 0

    @property
    def healthy(self) -> bool:
        """This process hears itself through Valkey."""
        return self._clock() - self._heard_at <= self._loss_s

    @property
    def trusted(self) -> bool:
        """Nothing can have been missed: healthy, and no known process has fallen silent."""
        return self._trusted

    @property
    def mute_peers(self) -> int:
        return sum(peer.mute for peer in self._peers.values())

    @property
    def owed(self) -> int:
        return len(self._owed)

    def subscribe(self, topic: str, callback: Callback) -> None:
        """`callback` must be quick and must not raise; it runs for the own messages, too."""
        if not topic or " " in topic or topic in (_BEAT, _BYE, _EVERYTHING):
            raise ValueError(f"not a topic: {topic!r}")
        self._callbacks.setdefault(topic, []).append(callback)

    def on_loss(self, notice: Notice) -> None:
        """Called when messages may be missed from now on; at once where that is so already."""
        self._on_loss.append(notice)
        if not self._trusted:
            notice()

    def on_recovery(self, notice: Notice) -> None:
        """Called when nothing more can be missed; whatever was kept meanwhile is not to be used."""
        self._on_recovery.append(notice)

    async def start(self, *, wait_s: float = 1.0) -> bool:
        """Serves without Valkey as well, so this waits for the first echo, but not for long."""
        self._tasks = [
            asyncio.create_task(self._listen(), name="link-listen"),
            asyncio.create_task(self._speak(), name="link-speak"),
            asyncio.create_task(self._watch(), name="link-watch"),
        ]
        return await self.wait(trusted=True, timeout_s=wait_s)

    async def wait(self, *, trusted: bool, timeout_s: float) -> bool:
        """Whether the link came to be (un)trusted within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._trusted is not trusted:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def publish(self, topic: str, payload: str = "") -> bool:
        """After commit. True when Valkey has it; False when it is owed and sent later.

        Never raises into the write path, and a caller that is cancelled loses no message.
        """
        self._deliver(topic, payload)
        owed = self._owe(f"{self._incarnation} {topic} {payload}")
        if not self._tasks:  # a one-shot command, which has no task that speaks
            await self._send_owed_once()
        else:
            self._wake.set()
            await asyncio.wait([owed.sent], timeout=self._publish_timeout_s)
        return owed.sent.done()

    async def close(self) -> None:
        """Says goodbye, so that the others do not take the silence for a failure."""
        pending = set(self._tasks)
        while pending:  # a cancellation may be lost inside a library
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=self._loss_s)
        if self._tasks:
            await self._send_owed_once()
        if self._tasks and not self._owed:
            self._owe(f"{self._incarnation} {_BYE} {self._name}")
            await self._send_owed_once()
        self._tasks = []
        await self._drop_subscriber(nowait=False)
        await self._wire.close()

    # -- speaking

    def _owe(self, text: str) -> _Owed:
        if len(self._owed) >= OWED_MAX:
            # Too many to name: one message that stands for all of them.
            self.dropped += len(self._owed)
            self._owed.clear()
            text = f"{self._incarnation} {_EVERYTHING} "
        owed = _Owed(text, self._clock() + self._owed_s, asyncio.get_running_loop().create_future())
        self._owed.append(owed)
        return owed

    async def _speak(self) -> None:
        pause_s = 0.0
        beat_at = self._clock()
        while True:
            try:
                await self._send_owed()
                if self._clock() >= beat_at:
                    beat_at = self._clock() + self._beat_s
                    await self._send([f"{self._incarnation} {_BEAT} {self._name}"])
                pause_s = 0.0
            except FAILURES:
                pause_s = _longer(pause_s)
                await asyncio.sleep(pause_s)
                continue
            await self._until(beat_at)

    async def _until(self, beat_at: float) -> None:
        """Sleeps up to the next beat, or until there is something to send."""
        if self._owed:
            return
        self._wake.clear()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, beat_at - self._clock()), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _send_owed_once(self) -> None:
        try:
            await self._send_owed()
        except FAILURES:
            log.warning("link: %d messages could not be sent", len(self._owed))

    async def _send_owed(self) -> None:
        while self._owed:
            now = self._clock()
            while self._owed and self._owed[0].dropped_at <= now:
                self._owed.popleft()
                self.dropped += 1
            batch = [self._owed[i] for i in range(min(len(self._owed), SEND_AT_ONCE_MAX))]
            if not batch:
                return
            await self._send([owed.text for owed in batch])
            self._settle(batch)

    def _settle(self, batch: list[_Owed]) -> None:
        self.sent += len(batch)
        for owed in batch:
            # An overflow may have emptied the queue meanwhile.
            if self._owed and self._owed[0] is owed:
                self._owed.popleft()
            if not owed.sent.done():
                owed.sent.set_result(None)

    async def _send(self, texts: list[str]) -> None:
        for answer in await self._wire.call(*(("PUBLISH", CHANNEL, text) for text in texts)):
            if isinstance(answer, Exception):
                raise answer

    # -- listening

    async def _listen(self) -> None:
        pause_s = 0.0
        while True:
            try:
                connection = await self._subscribed()
                pause_s = 0.0
                while True:
                    kind, _, content = await connection.read_response(timeout=math.inf)
                    if kind == b"message":
                        self._receive(content)
            except FAILURES:
                self._cut()
                await self._drop_subscriber()
                pause_s = _longer(pause_s)
                await asyncio.sleep(pause_s)

    async def _subscribed(self) -> Any:
        """A connection of its own, not redis-py's PubSub: that reconnects without telling."""
        connection = self._wire.connection()
        self._subscriber = connection
        async with asyncio.timeout(self._publish_timeout_s * 2):
            await connection.connect()
            await connection.send_command("SUBSCRIBE", CHANNEL)
            await connection.read_response()
        return connection

    async def _drop_subscriber(self, *, nowait: bool = True) -> None:
        connection, self._subscriber = self._subscriber, None
        if connection is not None:
            await connection.disconnect(nowait=nowait)

    def _receive(self, content: bytes) -> None:
        try:
            sender, topic, payload = content.decode().split(" ", 2)
        except ValueError:
            log.warning("link: a message that no process of ours sends")
            return
        if topic == _BEAT:
            self._hear(sender, payload)
            return
        if sender == self._incarnation:
            return  # delivered when it was published
        self.received += 1
        if topic == _BYE:
            peer = self._peers.get(payload)
            if peer is not None and peer.incarnation == sender:
                del self._peers[payload]
                self._judge()
        elif topic == _EVERYTHING:
            self._flush()
        else:
            self._deliver(topic, payload)

    def _deliver(self, topic: str, payload: str) -> None:
        for callback in self._callbacks.get(topic, ()):
            try:
                callback(payload)
            except Exception:
                # What it failed to drop could be stale: then drop everything.
                log.exception("link: a subscriber of %s failed", topic)
                self._flush()

    def _hear(self, sender: str, name: str) -> None:
        now = self._clock()
        if sender == self._incarnation:
            self._heard_at = now
        else:
            peer = self._peers.get(name)
            if peer is None:
                self._peers[name] = _Peer(sender, now)
            elif peer.incarnation == sender:
                peer.heard_at = now
                peer.mute = False
            else:
                # It died without a goodbye, perhaps between a commit and its message.
                if not peer.mute:
                    self._flush()
                self._peers[name] = _Peer(sender, now)
        self._judge()

    # -- judging

    async def _watch(self) -> None:
        tick_s = self._beat_s / 2
        graces = 0
        while True:
            before = self._clock()
            await asyncio.sleep(tick_s)
            # When this very tick is late, the echo may wait unread in the socket: not a loss yet.
            late = self._clock() - before > tick_s + self._beat_s
            graces = graces + 1 if late else 0
            if 1 <= graces <= 2:
                continue
            self._mark_mute()
            self._judge()
            if not self.healthy and self._subscriber is not None and self._heard_at > -math.inf:
                self._cut()
                await self._drop_subscriber()  # the reader wakes with an error and reconnects

    def _mark_mute(self) -> None:
        now = self._clock()
        for name, peer in list(self._peers.items()):
            silent_s = now - peer.heard_at
            if not self.healthy:
                # Cut off oneself: nobody can be heard, which says nothing of them.
                peer.heard_at = now if not peer.mute else peer.heard_at
            elif silent_s > self._loss_s + self._mute_s:
                del self._peers[name]
            elif silent_s > self._loss_s:
                peer.mute = True

    def _cut(self) -> None:
        self._heard_at = -math.inf
        self._judge()

    def _judge(self) -> None:
        if self.healthy and not self.mute_peers:
            self._trust()
        else:
            self._distrust()

    def _trust(self) -> None:
        if not self._trusted:
            self._trusted = True
            self._changed.set()
            _tell(self._on_recovery)

    def _distrust(self) -> None:
        if self._trusted:
            self._trusted = False
            self.losses += 1
            self._changed.set()
            _tell(self._on_loss)

    def _flush(self) -> None:
        """Something was missed, and is over: drop everything, then trust as before."""
        if self._trusted:
            self._distrust()
            self._judge()
        else:
            _tell(self._on_loss)


def _tell(notices: list[Notice]) -> None:
    for notice in notices:
        try:
            notice()
        except Exception:
            log.exception("link: a notice failed")


def _longer(pause_s: float) -> float:
    return min(max(pause_s * 2, RETRY_S), RETRY_MAX_S) * random.uniform(0.8, 1.2)
