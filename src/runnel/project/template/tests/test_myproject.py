"""The app on a real server, which is started for the tests and ends with them."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
from runnel.server import EmbeddedServer

from myproject import Order, app, orders


@pytest.fixture
def redis_url() -> Iterator[str]:
    with EmbeddedServer() as server:
        yield server.url


def send(*records: Order) -> None:
    async def sending() -> None:
        async with app:
            await orders.send(*records)

    asyncio.run(sending())


def work(redis_url: str) -> list[str]:
    """Run a worker until nothing is left to process; returns the lines that it has printed."""
    command = [sys.executable, "-m", "runnel", "worker", "myproject:app", "--burst", "--redis-url", redis_url]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout.splitlines()


def test_the_orders_of_a_customer_are_shipped_in_order(redis_url: str) -> None:
    app.configure(redis_url=redis_url)
    send(
        Order(order_id=1, customer="ann", amount=9.99),
        Order(order_id=2, customer="bob", amount=5),
        Order(order_id=3, customer="ann", amount=1.5),
    )
    shipped = work(redis_url)
    assert [line for line in shipped if "ann" in line] == ["order 1: 9.99 for ann", "order 3: 1.50 for ann"]
    assert "order 2: 5.00 for bob" in shipped
