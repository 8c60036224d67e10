"""The app: a stream of orders, and a processor that handles each customer's orders one after the other."""

from runnel import App, Events, Record

app = App(name="myproject")  # on redis://127.0.0.1:6379, unless RUNNEL_REDIS_URL says something else


class Order(Record):
    order_id: int
    customer: str
    amount: float


orders = app.stream("orders", record=Order, partition_by="customer")


@app.processor(orders)
async def ship(events: Events[Order]) -> None:
    async for order in events.records():
        print(f"order {order.order_id}: {order.amount:.2f} for {order.customer}")
        # The order is acknowledged here, before the next one is handed out.
