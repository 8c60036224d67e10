"""The base class of everything that is sent."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from runnel.errors import ConfigurationError

__all__ = ["Record"]

_PRIMITIVES = (int, float, bool, str, bytes)


class Record(BaseModel):
    """A typed event. A pydantic model, so anything that pydantic can do is at hand.

    Structured records may be nested, and are stored as JSON under a single field. With ``primitive=True`` the fields of
    the record are the fields of the stream's entry; they can be ``int``, ``float``, ``bool``, ``str`` and ``bytes``.

    Example:
        ::

            class Order(Record):
                order_id: int
                items: list[Item]

            class Click(Record, primitive=True):
                user_id: int
                page: str

    Raises:
        ConfigurationError: when the class is created, if a primitive record has a field of another type.
    """

    model_config = ConfigDict(
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="constants",
        populate_by_name=True,
    )

    runnel_primitive: ClassVar[bool] = False
    """Whether the record is stored as native fields."""

    def __init_subclass__(cls, *, primitive: bool | None = None, **kwargs: Any) -> None:
        """Keep ``primitive`` from Python's own hook, which refuses it; pydantic's hook below has the fields."""
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, primitive: bool | None = None, **kwargs: Any) -> None:
        """Take the class keyword ``primitive``, which subclasses inherit, and check the fields."""
        super().__pydantic_init_subclass__(**kwargs)
        if primitive is not None:
            cls.runnel_primitive = primitive
        if not cls.runnel_primitive:
            return
        for name, field in cls.model_fields.items():
            if field.annotation not in _PRIMITIVES:
                raise ConfigurationError(
                    f'The primitive record {cls.__name__} cannot have the field "{name}" of type '
                    f"{_type_name(field.annotation)}: Redis stores flat values only. Use int, float, bool, str or "
                    "bytes, or leave out primitive=True."
                )


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).removeprefix("typing.")
