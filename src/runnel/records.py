"""The base class of everything that is sent, and what such a class may not have."""

from typing import Any, ClassVar

from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from runnel.errors import ConfigurationError

__all__ = ["Record", "check_readable"]

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


def check_readable(record: type[BaseModel]) -> None:
    """Refuse what pydantic would write of a structured record and never read again, in whatever way it is asked to.

    What the project's own functions write or read may be all right, so we do not look behind them.

    Arguments:
        record: the type, with all models that its fields have.

    Raises:
        ConfigurationError: naming the field, and the way out.
    """
    left: list[tuple[Any, type[BaseModel]]] = [(dict(record.__pydantic_core_schema__), record)]
    while left:
        part, model = left.pop()
        if isinstance(part, dict):
            kind = part.get("type")
            if isinstance(kind, str):
                if "serialization" in part or kind in ("function-before", "function-plain", "function-wrap"):
                    continue
                if kind == "model":
                    model = part["cls"]
                elif kind == "model-fields":
                    _check_fields(record, model)
            left += [(each, model) for each in part.values()]
        elif isinstance(part, list | tuple):
            left += [(each, model) for each in part]


def _check_fields(record: type[BaseModel], model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        what = f'What is stored of {record.__name__} could not be read: the field "{name}" of {model.__name__}'
        written = field.serialization_alias
        if field.exclude:
            if field.is_required():
                raise ConfigurationError(
                    f"{what} is required, and exclude=True keeps it out of what is stored. Give it a default, or leave "
                    "out exclude=True."
                )
        elif written and model.model_config.get("serialize_by_alias") and written not in {name, *_aliases(field)}:
            raise ConfigurationError(
                f'{what} would be stored as "{written}", and not be read by that name. Use alias="{written}", which is '
                "for both, or leave out serialize_by_alias=True."
            )


def _aliases(field: FieldInfo) -> set[str]:
    """The names by which a field is read besides its own."""
    match field.validation_alias:
        case None:
            return set()
        case str() as alias:
            return {alias}
        case AliasPath() as path:
            paths = [path.convert_to_aliases()]
        case AliasChoices() as choices:
            paths = choices.convert_to_aliases()
    return {str(path[0]) for path in paths if len(path) == 1}
