"""Records and streams: what can be declared, what travels, and what comes back."""

import asyncio
import json
import math
import re
import zlib
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar, List, Literal, Optional  # noqa: UP035  the guide writes List[Item]
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, Json, computed_field, model_validator

from harness import eventually, inspecting, running
from runnel import App, ExceptionPolicy, Record
from runnel.codecs import Codec, Gzip, JSONSerializer, PrimitiveCodec, StructuredCodec
from runnel.errors import ConfigurationError, DecodeError, MetadataMismatch, PartitionKeyError, RecordError
from runnel.instruments import PartitionFailed
from runnel.interfaces import Compressor, Serializer
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Item(Record):
    id: int
    name: str


class Order(Record):
    id: int
    name: str
    items: List[Item]  # noqa: UP006


class Click(Record, primitive=True):
    user: int
    seconds: float
    bought: bool
    page: str
    raw: bytes


class Text(Record):
    key: str
    body: str


class Everything(Record):
    text: str
    number: int
    fraction: float
    flag: bool
    raw: bytes
    at: datetime
    maybe: Optional[int]  # noqa: UP045
    many: list[dict[str, float]]
    item: Item


class Plain(Serializer):
    """JSON by the standard library, with a mark of its own in front."""

    name = "plain"

    def dumps(self, value: Any) -> bytes:
        return b"!" + json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        if data[:1] != b"!":
            raise ValueError("not mine")
        return json.loads(data[1:])


class Zeros(Serializer):
    """A serializer whose output begins with what the envelope begins with."""

    name = "zeros"

    def dumps(self, value: Any) -> bytes:
        return b"\x00\x00gzip\x00" + json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data.removeprefix(b"\x00\x00gzip\x00"))


class Nameless(Serializer):
    def dumps(self, value: Any) -> Any:
        return json.dumps(value)  # a str

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class NamelessCompressor(Compressor):
    def compress(self, data: bytes) -> bytes:
        return data

    def decompress(self, data: bytes) -> bytes:
        return data


class Zlib(Compressor):
    name = "zlib"

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data)

    def decompress(self, data: bytes) -> bytes:
        return zlib.decompress(data)


# Declaring records


def test_primitive_is_inherited_and_off_by_default() -> None:
    class Longer(Click):
        extra: str

    class Structured(Click, primitive=False):
        nested: list[int]

    assert not Order.runnel_primitive
    assert Click.runnel_primitive
    assert Longer.runnel_primitive
    assert not Structured.runnel_primitive


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [(list[int], r"list\[int\]"), (Item, "Item"), (datetime, "datetime"), (Optional[int], r"Optional\[int\]")],  # noqa: UP045
)
def test_a_primitive_record_with_a_nested_field_is_refused_when_it_is_declared(annotation: Any, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=rf'record Bad cannot have the field "x" of type {shown}: '):
        type("Bad", (Record,), {"__annotations__": {"ok": int, "x": annotation}}, primitive=True)


# Round trips of the codecs

texts = st.text(st.characters(exclude_categories=("Cs",)))
floats = st.floats()
clicks = st.builds(Click, user=st.integers(), seconds=floats, bought=st.booleans(), page=texts, raw=st.binary())
items = st.builds(Item, id=st.integers(), name=texts)
everything = st.builds(
    Everything,
    text=texts,
    number=st.integers(),
    fraction=floats,
    flag=st.booleans(),
    raw=st.binary(),
    at=st.datetimes(timezones=st.just(UTC)),
    maybe=st.none() | st.integers(),
    many=st.lists(st.dictionaries(texts, floats, max_size=3), max_size=3),
    item=items,
)


def exact(value: Any) -> Any:
    """What can be compared: not-a-number equals itself, and minus zero does not equal zero."""
    match value:
        case Record():
            return type(value), exact(dict(value))
        case dict():
            return {key: exact(item) for key, item in value.items()}
        case list():
            return [exact(item) for item in value]
        case float():
            return repr(value)
        case _:
            return type(value), value


@given(clicks)
def test_a_primitive_record_comes_back_as_it_was(record: Click) -> None:
    codec = PrimitiveCodec(Click)
    fields = codec.encode(record)
    assert fields[::2] == (b"user", b"seconds", b"bought", b"page", b"raw")
    assert all(isinstance(value, bytes) for value in fields)
    assert exact(codec.decode(fields)) == exact(record)


@pytest.mark.parametrize("serializer", [JSONSerializer(), Plain(), Zeros()], ids=lambda s: s.name)
@pytest.mark.parametrize("compressor", [None, Gzip(), Gzip(9), Zlib()], ids=lambda c: c and c.name)
@given(record=everything)
def test_a_structured_record_comes_back_as_it_was(
    serializer: Serializer, compressor: Compressor | None, record: Everything
) -> None:
    codec = StructuredCodec(Everything, serializer, compressor)
    assert codec.field == b"data"
    assert exact(codec.decode([b"data", codec.encode(record)])) == exact(record)


@given(st.builds(Order, id=st.integers(), name=texts, items=st.lists(items, max_size=5)))
def test_a_nested_record_comes_back_as_it_was(record: Order) -> None:
    codec = StructuredCodec(Order, JSONSerializer(), None)
    back = codec.decode([b"data", codec.encode(record)])
    assert back == record
    assert all(isinstance(item, Item) for item in back.items)


def _tricky() -> list[Record]:
    """Records that pydantic writes in a form that it does not read, unless it is asked to."""

    class Aliased(BaseModel):
        number: int = Field(alias="the-number")

    class OfAnAlias(Record):
        inner: list[Aliased]
        own: int = Field(validation_alias="mine", serialization_alias="yours")

    class Computed(Record):
        model_config = ConfigDict(extra="forbid")
        side: int

        @computed_field  # type: ignore[prop-decorator]
        @property
        def area(self) -> int:
            return self.side**2

    class Embedded(Record):
        numbers: Json[list[int]]

    class Strict(Record):
        model_config = ConfigDict(strict=True)
        at: datetime
        few: set[int]
        pair: tuple[int, str]
        price: Decimal
        colour: Literal["red"] | UUID | date

    return [
        OfAnAlias(inner=[Aliased(**{"the-number": 1})], mine=2),  # type: ignore[call-arg]
        Computed(side=3),
        Embedded(numbers="[1, 2]"),
        Strict(at=datetime(2020, 1, 1), few={1, 2}, pair=(1, "a"), price=Decimal("1.10"), colour=date(2020, 7, 21)),
    ]


@pytest.mark.parametrize("serializer", [JSONSerializer(), Plain()], ids=lambda s: s.name)
@pytest.mark.parametrize("record", _tricky(), ids=lambda record: type(record).__name__)
def test_what_a_record_may_have_by_pydantic_comes_back(record: Record, serializer: Serializer) -> None:
    codec = StructuredCodec(type(record), serializer, None)
    assert codec.decode([b"data", codec.encode(record)]) == record


@given(st.lists(st.binary(), max_size=8), st.sampled_from([None, Gzip(), Zlib()]))
def test_rubbish_is_a_decode_error_and_nothing_else(fields: list[bytes], compressor: Compressor | None) -> None:
    codecs: list[Codec[Any]] = [PrimitiveCodec(Click), StructuredCodec(Order, JSONSerializer(), compressor)]
    for codec in codecs:
        with pytest.raises(DecodeError):
            codec.decode(fields)


_ITEM = Item(id=1, name="x")
_WRITTEN = StructuredCodec(Item, JSONSerializer(), None).encode(_ITEM)
_ZIPPED = StructuredCodec(Item, JSONSerializer(), Gzip()).encode(_ITEM)
_FORMS = [
    [b"data", _WRITTEN],
    [b"data", _ZIPPED],
    [b"~source", b'{"id": 7, "name": "a header"}', b"data", _WRITTEN],
    [b"data", b"{}"],
    [b"other", _WRITTEN],
    [],
]


@given(st.lists(st.sampled_from(_FORMS)), st.sampled_from([None, Gzip()]), st.sampled_from([JSONSerializer(), Plain()]))
def test_many_are_decoded_as_one_after_the_other(
    forms: list[list[bytes]], compressor: Compressor | None, serializer: Serializer
) -> None:
    codec = StructuredCodec(Item, serializer, compressor)

    def attempt(decode: Callable[[], list[Item]]) -> list[Item] | str:
        try:
            return decode()
        except DecodeError as error:
            return str(error)

    one_by_one = attempt(lambda: [codec.decode(fields) for fields in forms])
    assert attempt(lambda: codec.decode_many([[b"1-1", fields] for fields in forms])) == one_by_one
    if isinstance(serializer, JSONSerializer) and all(fields in _FORMS[:3] for fields in forms):
        assert one_by_one == [_ITEM] * len(forms)


@given(st.binary())
def test_rubbish_in_the_data_field_is_a_decode_error(data: bytes) -> None:
    codec = StructuredCodec(Order, JSONSerializer(), Gzip())
    for value in (data, b"\x00" + data, b"\x00gzip\x00" + data):
        with pytest.raises(DecodeError):
            codec.decode([b"data", value])


def test_a_decode_error_says_what_does_not_fit() -> None:
    codec = StructuredCodec(Order, JSONSerializer(), None)
    with pytest.raises(DecodeError, match=r"not a record of Order: .*items\.0\.name: Field required"):
        codec.decode([b"data", b'{"id": 1, "name": "x", "items": [{"id": 2}]}'])
    with pytest.raises(DecodeError, match='no field "data"'):
        codec.decode([b"id", b"1"])
    with pytest.raises(DecodeError, match='compressed with "brotli", which this stream does not know'):
        codec.decode([b"data", b"\x00brotli\x00..."])
    with pytest.raises(DecodeError, match=r"not a record of Click: .*user: Field required"):
        PrimitiveCodec(Click).decode([b"page", b"/"])


def test_a_primitive_reader_takes_more_fields_than_it_knows_in_any_order() -> None:
    fields = [b"raw", b"", b"new", b"?", b"page", b"/", b"bought", b"false", b"seconds", b"1.5", b"user", b"-7"]
    assert PrimitiveCodec(Click).decode(fields) == Click(user=-7, seconds=1.5, bought=False, page="/", raw=b"")


def test_a_primitive_field_may_be_missing_if_it_has_a_default() -> None:
    class Newer(Click, primitive=True):
        extra: str = "none"

    fields = PrimitiveCodec(Click).encode(Click(user=1, seconds=0.0, bought=True, page="", raw=b""))
    assert PrimitiveCodec(Newer).decode(fields).extra == "none"


# Through Redis


async def _through_redis(app: App, stream: Stream[Any], records: list[Any]) -> list[Any]:
    """What a processor receives, in the order of sending, as one partition keeps it."""
    seen: list[Any] = []

    @app.processor(stream)
    async def proc(events):
        async for record in events.records():
            seen.append(record)

    await stream.send(*records)
    async with running(app):
        await eventually(lambda: len(seen) == len(records))
    return seen


async def test_the_guides_nested_order_goes_through_redis(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    orders = app.stream("orders", record=Order, partition_by="id")
    sent = [Order(id=n, name=f"order {n}", items=[Item(id=m, name="x" * m) for m in range(n)]) for n in range(4)]
    async with inspecting(app) as redis:
        assert await _through_redis(app, orders, sent) == sent
        stored = await redis.entries(orders, 0)
    assert [set(fields) for _, fields in stored] == [{b"data"}] * 4
    assert json.loads(stored[1][1][b"data"]) == {"id": 1, "name": "order 1", "items": [{"id": 0, "name": ""}]}


async def test_the_guides_primitive_order_goes_through_redis(app_name: str, redis_url: str) -> None:
    class Order(Record, primitive=True):
        order_id: int
        complete: bool
        purchased_by: str

    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    orders = app.stream("orders", record=Order, partition_by="order_id")
    sent = [
        Order(order_id=1, complete=True, purchased_by="me"),
        Order(order_id=-2, complete=False, purchased_by=""),
        Order(order_id=2**70, complete=False, purchased_by="Zoë 🦆\n\x00"),
    ]
    async with inspecting(app) as redis:
        assert await _through_redis(app, orders, sent) == sent
        stored = await redis.entries(orders, 0)
    assert stored[0][1] == {b"order_id": b"1", b"complete": b"true", b"purchased_by": b"me"}
    assert stored[1][1] == {b"order_id": b"-2", b"complete": b"false", b"purchased_by": b""}


async def test_all_primitive_types_go_through_redis(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("clicks", record=Click, partition_by="user")
    sent = [
        Click(user=0, seconds=0.1, bought=True, page="", raw=b""),
        Click(user=-1, seconds=-0.0, bought=False, page="ü", raw=bytes(range(256))),
        Click(user=10**30, seconds=math.inf, bought=True, page="\r\n", raw=b"\x00"),
        Click(user=3, seconds=-math.inf, bought=True, page="1", raw=b"true"),
        Click(user=4, seconds=math.nan, bought=True, page="nan", raw=b"~"),
        Click(user=5, seconds=1e-320, bought=True, page="~x", raw=b"data"),
    ]
    received = await _through_redis(app, stream, sent)
    assert exact(received) == exact(sent)


@pytest.mark.parametrize("serializer", [None, Plain()], ids=["json", "custom"])
@pytest.mark.parametrize("compressor", [None, Gzip(), Zlib()], ids=["none", "gzip", "custom"])
async def test_serializers_and_compressors_of_ones_own(
    app_name: str, redis_url: str, serializer: Serializer | None, compressor: Compressor | None
) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("texts", record=Text, partition_by="key", serializer=serializer, compressor=compressor)
    sent = [Text(key="a", body="long " * 200), Text(key="b", body="")]
    async with inspecting(app) as redis:
        assert await _through_redis(app, stream, sent) == sent
        ((_, first), _) = await redis.entries(stream, 0)
        properties = await redis.link.call("HGETALL", stream.keys.metadata)
    if compressor is not None:
        assert len(first[b"data"]) < 100
        assert first[b"data"].startswith(b"\x00%b\x00" % compressor.name.encode())
    elif serializer is not None:
        assert first[b"data"].startswith(b"!")
    assert (serializer.name if serializer else "json").encode() in properties


async def test_the_compressor_may_be_an_app_wide_setting(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, compressor=Zlib(), serializer=Plain())
    stream = app.stream("texts", record=Text, partition_by="key")
    data = stream.codec.encode(Text(key="a", body="b"))
    assert zlib.decompress(data.removeprefix(b"\x00zlib\x00")) == b'!{"key": "a", "body": "b"}'


async def test_producers_may_change_the_compressor_at_any_time(app_name: str, redis_url: str) -> None:
    sent = [Text(key="a", body=f"{n} " * 50) for n in range(8)]
    for record, compressor in zip(sent, [None, Gzip(), Zlib(), Gzip(1)] * 2, strict=True):
        async with App(name=app_name, redis_url=redis_url, partition_count=1) as producer:
            await producer.stream("texts", record=Text, partition_by="key", compressor=compressor).send(record)

    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("texts", record=Text, partition_by="key", compressor=Zlib())
    seen: list[Text] = []

    @app.processor(stream)
    async def proc(events):
        async for text in events.records():
            seen.append(text)

    async with running(app):
        await eventually(lambda: len(seen) == len(sent))
    assert seen == sent


async def test_a_compressor_that_the_reader_does_not_know_falls_under_the_policy(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as producer:
        await producer.stream("texts", record=Text, partition_by="key", compressor=Zlib()).send(Text(key="a", body=""))

    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("texts", record=Text, partition_by="key")
    failures: list[str] = []
    app.instruments.subscribe(lambda a: failures.append(str(a.error)) if isinstance(a, PartitionFailed) else None)

    @app.processor(stream, exception_policy=ExceptionPolicy.IGNORE)
    async def proc(events):
        async for _ in events.records():
            pass

    async with running(app):
        await eventually(lambda: failures)
    assert 'compressed with "zlib", which this stream does not know' in failures[0]


async def test_a_record_can_grow_while_old_events_are_in_the_log(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as producer:
        await producer.stream("texts", record=Text, partition_by="key").send(Text(key="a", body="old"))

    class Text2(Record):
        key: str
        body: str
        tags: list[str] = Field([])

    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("texts", record=Text2, partition_by="key")
    received = await _through_redis_after_one(app, stream, Text2(key="a", body="new", tags=["x"]))
    assert received == [Text2(key="a", body="old"), Text2(key="a", body="new", tags=["x"])]


async def _through_redis_after_one(app: App, stream: Stream[Any], record: Any) -> list[Any]:
    seen: list[Any] = []

    @app.processor(stream)
    async def proc(events):
        async for found in events.records():
            seen.append(found)

    await stream.send(record)
    async with running(app):
        await eventually(lambda: len(seen) == 2)
    return seen


# Declaring streams


class Colour(Enum):
    RED = "red"


class Keyed(Record):
    text: str = "a"
    number: int = 7
    raw: bytes = b"\x00\xff"
    unique: UUID = UUID(int=5)
    day: date = date(2020, 7, 21)
    price: Decimal = Decimal("1.50")
    colour: Colour = Colour.RED
    flag: bool = True
    maybe: str | None = None
    weight: float = 1.5
    several: list[int] = Field([1, 2])
    registry: ClassVar[int] = 3

    @property
    def derived(self) -> str:
        return self.text.upper()


def keyed(partition_by: Any, **options: Any) -> Stream[Keyed]:
    return App(name="myapp").stream("keyed", record=Keyed, partition_by=partition_by, **options)


@pytest.mark.parametrize("field", ["text", "number", "raw", "unique", "day", "price", "colour", "flag", "derived"])
def test_the_key_may_be_a_field_of_any_type_with_canonical_bytes(field: str) -> None:
    partition = keyed(field).partition_of(Keyed())
    assert 0 <= partition < 16
    assert partition == keyed(lambda record: getattr(record, field)).partition_of(Keyed())


def test_the_key_may_be_computed() -> None:
    stream = keyed(lambda record: f"{record.text}/{record.number}")
    assert stream.partition_of(Keyed()) == keyed("text").partition_of(Keyed(text="a/7"))


def test_a_key_that_is_none_or_a_number_with_a_fraction_is_refused() -> None:
    with pytest.raises(PartitionKeyError, match=r'Stream "keyed": The partition key is None'):
        keyed("maybe").partition_of(Keyed())
    with pytest.raises(PartitionKeyError, match=r"cannot be of type float \(1\.5\)"):
        keyed("weight").partition_of(Keyed())
    with pytest.raises(PartitionKeyError, match=r"cannot be of type list"):
        keyed("several").partition_of(Keyed())


def test_a_callable_that_fails_is_reported_with_its_stream() -> None:
    with pytest.raises(PartitionKeyError, match=r'key of stream "keyed" cannot be taken from Keyed.*AttributeError'):
        keyed(lambda record: record.nothing).partition_of(Keyed())


def test_a_hasher_of_ones_own_decides() -> None:
    assert keyed("number", hasher=lambda key: key, partition_count=5).partition_of(Keyed(number=13)) == 3
    assert keyed("number", hasher=lambda key: -key, partition_count=5).partition_of(Keyed(number=1)) == 4
    with pytest.raises(PartitionKeyError, match=r"hasher .* failed for the key 'a'"):
        keyed("text", hasher=int).partition_of(Keyed())
    with pytest.raises(PartitionKeyError, match="hasher"):
        keyed("number", hasher=lambda key: key / 2).partition_of(Keyed())


def test_the_partition_is_within_the_count() -> None:
    stream = keyed("number", partition_count=3)
    assert {stream.partition_of(Keyed(number=n)) for n in range(100)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partition_by": "numbre"}, r'partitioned by "numbre", but Keyed has no such field\. Did you mean "number"\?'),
        ({"partition_by": 5}, r'partition_by of stream "keyed" must be the name of a field or a callable, not 5'),
        ({"record": dict}, r'record type of stream "keyed" must be a class derived from runnel\.Record'),
        ({"record": Keyed()}, r'record type of stream "keyed" must be a class derived from runnel\.Record'),
        ({"name": ""}, "A stream needs a name"),
        ({"name": 5}, "A stream needs a name.* got 5"),
        ({"hasher": hash}, r"hasher = .*hash\(\) gives another number for the same text in every process"),
        ({"serializer": Nameless()}, r'serializer Nameless needs a name.*name = "msgpack"'),
        ({"compressor": NamelessCompressor()}, "compressor NamelessCompressor needs a name"),
        ({"hasher": 3}, r"hasher = 3"),
        ({"compressor": "gzip"}, r"compressor = 'gzip'"),
        ({"on_full": "maybe"}, r"on_full = 'maybe'"),
        ({"partition_size": -1}, r"partition_size = -1"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        App(name="myapp").stream(**{"name": "keyed", "record": Keyed, "partition_by": "number", **arguments})


class Counted(BaseModel):
    count: int = Field(exclude=True)


class Shouting(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    count: int = Field(0, validation_alias=AliasPath("numbers", 0), serialization_alias="COUNT")


def _unreadable() -> list[tuple[type[Record], str]]:
    class Secret(Record):
        key: str
        token: str = Field(exclude=True)

    class OfCounted(Record):
        key: str
        parts: dict[str, list[Counted]]

    class Renamed(Record):
        model_config = ConfigDict(serialize_by_alias=True)
        key: str
        number: int = Field(serialization_alias="n", validation_alias=AliasChoices("no", "num"))

    class OfShouting(Record):
        key: str
        inner: Shouting | None = None

    return [
        (Secret, 'stored of Secret could not be read: the field "token" of Secret is required, and exclude=True'),
        (OfCounted, 'stored of OfCounted could not be read: the field "count" of Counted is required'),
        (Renamed, 'the field "number" of Renamed would be stored as "n", and not be read by that name. Use alias="n"'),
        (OfShouting, 'the field "count" of Shouting would be stored as "COUNT"'),
    ]


@pytest.mark.parametrize(("record", "message"), _unreadable(), ids=lambda given: getattr(given, "__name__", ""))
def test_a_record_that_could_be_sent_and_never_read_is_refused(record: type[Record], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        App(name="myapp").stream("unreadable", record=record, partition_by="key")


def _readable() -> list[Record]:
    """Records that are not refused, although they have what could make them unreadable."""

    class Defaulted(Record):
        key: str
        cache: int = Field(0, exclude=True)

    class Both(Record):
        model_config = ConfigDict(serialize_by_alias=True)
        key: str
        one: int = Field(alias="ONE")
        two: int = Field(serialization_alias="deux", validation_alias=AliasChoices("due", "deux"))
        three: int = Field(serialization_alias="three")

    class ByName(Record):
        key: str
        number: int = Field(serialization_alias="n")

    class Mended(Record):
        key: str
        size: int = Field(exclude=True)

        @model_validator(mode="before")
        @classmethod
        def measure(cls, values: dict[str, Any]) -> dict[str, Any]:
            return {**values, "size": len(values["key"])}

    return [
        Defaulted(key="a", cache=0),
        Both(key="a", ONE=1, due=2, three=3),  # type: ignore[call-arg]
        ByName(key="a", number=1),
        Mended(key="abc", size=3),
    ]


@pytest.mark.parametrize("record", _readable(), ids=lambda record: type(record).__name__)
def test_a_record_that_can_be_read_is_not_refused(record: Record) -> None:
    codec = App(name="myapp").stream("readable", record=type(record), partition_by="key").codec
    assert codec.decode([b"data", codec.encode(record)]) == record


def test_two_streams_of_one_name_are_refused() -> None:
    app = App(name="myapp")
    app.stream("keyed", record=Keyed, partition_by="number")
    with pytest.raises(ConfigurationError, match=r'The app "myapp" has two streams named "keyed"'):
        app.stream("keyed", record=Keyed, partition_by="number")


# What Redis remembers of a stream


def crc(key: str) -> int:
    return zlib.crc32(key.encode())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"partition_count": 8}, r'"texts" has 4 partitions in Redis, but this process says 8\..*partition_count=4'),
        ({"hasher": crc}, r"hasher=xxh64, but this process says hasher=test_records\.crc"),
        ({"serializer": Plain()}, r"format=json, but this process says format=plain"),
    ],
)
async def test_a_stream_that_is_stored_otherwise_is_refused(
    app_name: str, redis_url: str, other: dict[str, Any], message: str
) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=4) as first:
        await first.stream("texts", record=Text, partition_by="key").send(Text(key="a", body=""))

    options: dict[str, Any] = {"partition_count": 4, **other}
    async with App(name=app_name, redis_url=redis_url) as second:
        texts = second.stream("texts", record=Text, partition_by="key", **options)

        @second.processor(texts)
        async def proc(events): ...

        with pytest.raises(MetadataMismatch, match=message):
            await texts.send(Text(key="a", body=""))
        with pytest.raises(MetadataMismatch, match=message):
            async with running(second):
                pass


async def test_a_structured_stream_is_not_read_as_a_primitive_one(app_name: str, redis_url: str) -> None:
    class Flat(Record, primitive=True):
        key: str

    async with App(name=app_name, redis_url=redis_url) as first:
        await first.stream("texts", record=Text, partition_by="key").send(Text(key="a", body=""))
    async with App(name=app_name, redis_url=redis_url) as second:
        with pytest.raises(MetadataMismatch, match="format=json, but this process says format=primitive"):
            await second.stream("texts", record=Flat, partition_by="key").send(Flat(key="a"))


# Sending what does not fit


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: {"key": "a", "body": ""}, RecordError, 'stream "texts" takes records of Text, not dict'),
        (lambda: Item(id=1, name=""), RecordError, "takes records of Text, not Item"),
        (lambda: [Text(key="a", body="")], RecordError, r"not list\. Several are sent by send\(\*records\)"),
        (lambda: (Text(key="a", body="") for _ in range(2)), RecordError, r"not generator\. Several are sent by send"),
        (
            type("Text", (Record,), {"__module__": "__main__"}),
            RecordError,
            r"not __main__\.Text\. It was declared with test_records\.Text: is a module imported under two names",
        ),
    ],
)
async def test_a_record_of_another_type_is_refused_and_nothing_is_sent(
    app_name: str, redis_url: str, make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as app:
        texts = app.stream("texts", record=Text, partition_by="key")
        with pytest.raises(error, match=message):
            await texts.send(Text(key="a", body="first"), make())
        async with inspecting(app) as redis:
            assert await redis.entries(texts, 0) == []


class Anything(Record):
    key: str
    value: Any


class Texts(Nameless):
    name = "texts"


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("options", "value", "message"),
    [
        ({}, object(), r'record of Anything cannot be stored in stream "things": PydanticSerializationError: .*object'),
        ({"serializer": Texts()}, 1, "TypeError: dumps of Texts must return bytes, not str"),
    ],
)
async def test_a_record_that_cannot_be_serialized_is_refused_and_the_next_ones_are_sent(
    app_name: str, redis_url: str, number: int, options: dict[str, Any], value: Any, message: str
) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as app:
        things = app.stream("things", record=Anything, partition_by="key", **options)
        bad = Anything(key="a", value=value)
        async with asyncio.timeout(5):
            with pytest.raises(RecordError, match=message) as raised:
                await things.send(*[Anything(key="a", value=1)] * (number - 1), bad)
        assert raised.value.__cause__ is not None
        async with inspecting(app) as redis:
            assert await redis.entries(things, 0) == []
        if not isinstance(options.get("serializer"), Texts):
            assert len(await things.send(Anything(key="a", value=1))) == 1


async def test_a_record_without_a_usable_key_is_refused_and_nothing_is_sent(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as app:
        stream = app.stream("keyed", record=Keyed, partition_by="maybe")
        with pytest.raises(PartitionKeyError, match="key is None"):
            await stream.send(Keyed(maybe="here"), Keyed())
        async with inspecting(app) as redis:
            assert await redis.entries(stream, 0) == []


async def test_a_record_of_a_subclass_is_sent_as_its_stream_knows_it(app_name: str, redis_url: str) -> None:
    class Longer(Text):
        extra: int

    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("texts", record=Text, partition_by="key")
    assert await _through_redis(app, stream, [Longer(key="a", body="b", extra=1)]) == [Text(key="a", body="b")]
