"""What the stops of the tour share: clients by role, and a way to say what is seen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click

from trunkline import AsyncClient


class NotAsPromised(Exception):
    """The product did not do what the tour shows: `make demo` fails."""


@dataclass(frozen=True, slots=True)
class Tour:
    address: str
    credentials: Mapping[str, str]

    @asynccontextmanager
    async def client(self, role: str) -> AsyncIterator[AsyncClient]:
        async with AsyncClient(self.address, api_key=self.credentials[role]) as client:
            yield client

    def title(self, text: str) -> None:
        click.echo(f"\n{text}\n{'-' * len(text)}")

    def say(self, text: str) -> None:
        click.echo(f"  {text}")

    def expect(self, holds: bool, promise: str) -> None:
        if not holds:
            raise NotAsPromised(promise)


Stop = Callable[[Tour], Awaitable[None]]
