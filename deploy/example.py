"""The app that the files of this directory run. Put yours in its place."""

from runnel import App, ExceptionPolicy, Record

app = App(name="shop")


class Order(Record):
    order_id: int
    customer: str
    amount: float


orders = app.stream("orders", record=Order, partition_by="customer")
totals: dict[str, float] = {}


@app.processor(orders, exception_policy=ExceptionPolicy.QUARANTINE, retries=3)
async def sum_up(events):
    async for order in events.records():
        totals[order.customer] = totals.get(order.customer, 0) + order.amount
