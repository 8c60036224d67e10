"""What a user can implement: serializers, compressors, middleware.

Owns the abstract classes only; the built-in implementations live in ``runnel.codecs`` and
``runnel.middleware``.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

__all__ = ["Compressor", "Middleware", "Serializer"]


class Serializer(ABC):
    """Turns structured records into bytes, and back.

    Example:
        Any library with the usual two functions will do::

            class MessagePack(Serializer):
                name = "msgpack"

                def dumps(self, value):
                    return msgpack.packb(value)

                def loads(self, data):
                    return msgpack.unpackb(data)
    """

    name: ClassVar[str]
    """Stored with the stream when it is first used. A process that declares the stream with another serializer is
    refused, because it could not read what is there."""

    @abstractmethod
    def dumps(self, value: Any) -> bytes:
        """The bytes for ``value``: a record as plain dicts, lists, strings, numbers, booleans and ``None``."""

    @abstractmethod
    def loads(self, data: bytes) -> Any:
        """What :meth:`dumps` made ``data`` from; it is then validated as a record.

        Any exception means that ``data`` is damaged: the event falls under the processor's exception policy.
        """


class Compressor(ABC):
    """Makes serialized records smaller.

    The entry says by ``name`` how it is compressed. A stream can therefore change its compressor at any time: a reader
    needs to know the old one only for as long as entries made with it are in the log.
    """

    name: ClassVar[str]
    """Goes into every entry, so keep it short."""

    @abstractmethod
    def compress(self, data: bytes) -> bytes:
        """The compressed form of ``data``."""

    @abstractmethod
    def decompress(self, data: bytes) -> bytes:
        """What :meth:`compress` made ``data`` from. Any exception means that ``data`` is damaged."""


class Middleware(ABC):
    """Logic that runs around the events of a processor, shared between processors.

    Example:
        A handler is an async generator over its parent::

            class Printer(Middleware):
                async def handler(self, parent, **kwargs):
                    async for x in parent:
                        print(x)
                        yield x
    """

    @abstractmethod
    def handler(self, parent: AsyncGenerator[Any, None], **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Yield what ``parent`` yields, with something done before, after or instead.

        Arguments:
            parent: yields an :class:`runnel.Event`, or a list of them where the processor takes batches.
            **kwargs: ``events``, the :class:`runnel.events.Events` of the partition (its ``processor``,
                ``partition``, ``token``, and while a failure is handled its ``failure``). More names may be
                added in later versions, so always accept ``**kwargs``.

        When the code above fails, ``GeneratorExit`` is raised at the ``yield``, and ``events.failure`` is
        the exception. All handlers have finished before the processor's function is started again. What a handler
        raises then halts the worker also where the policy is ``IGNORE``, which would lose what it was to keep.
        """
