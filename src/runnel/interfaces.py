"""What a user can implement: serializers, compressors, middleware.

Owns the abstract classes only; the built-in implementations live in ``runnel.codecs`` and
``runnel.middleware``.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

__all__ = ["Compressor", "Middleware", "Serializer"]


class Serializer(ABC):
    """Turns a structured record into bytes, and back.

    ``name`` is stored with the stream when it is first used; a process that declares the stream with another
    serializer is refused, because it could not read what is there.
    """

    name: ClassVar[str]

    @abstractmethod
    def dumps(self, record: Any) -> bytes:
        """The bytes for ``record``, an instance of the stream's Record class."""

    @abstractmethod
    def loads(self, record_type: type[Any], data: bytes) -> Any:
        """The instance of ``record_type`` that ``data`` stands for.

        Raises:
            ValueError: ``data`` does not fit; the event then falls under the processor's exception policy.
        """


class Compressor(ABC):
    """Makes serialized records smaller.

    A reader tells from the first bytes of an entry whether, and with what, it is compressed. Streams can
    therefore change their compressor at any time, as long as every reader knows the old one.
    """

    magic: ClassVar[bytes]
    """The bytes every result of :meth:`compress` begins with. No serialized record may begin with them."""

    @abstractmethod
    def compress(self, data: bytes) -> bytes:
        """The compressed form of ``data``; begins with ``magic``."""

    @abstractmethod
    def decompress(self, data: bytes) -> bytes:
        """What :meth:`compress` made ``data`` from.

        Raises:
            ValueError: ``data`` is damaged.
        """


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
        the exception. All handlers have finished before the processor's function is started again.
        """
