"""From ``module:attribute`` to the object that a command needs."""

import importlib
import sys
import tomllib
import traceback
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

import typer

import runnel
from runnel.app import App
from runnel.errors import ConfigurationError, RunnelError, TargetError, did_you_mean
from runnel.processors import Processor
from runnel.settings import default_target
from runnel.streams import Stream

__all__ = ["RedisURL", "app_of", "load", "load_or_name"]

T = TypeVar("T")

RedisURL = Annotated[str | None, typer.Option("--redis-url", help="Instead of the app's own.")]

_PACKAGE = str(Path(runnel.__file__).parent)

_ARTICLES = {App: "an App", Stream: "a Stream", Processor: "a processor"}


def load(target: str | None, kind: type[T], command: str, *, redis_url: str | None = None) -> T:
    """The object that a target names, with the app's other modules imported.

    Arguments:
        target: ``module:attribute``. The attribute may be left out where the module has exactly one object of the kind;
            the whole where ``RUNNEL_APP`` or ``[tool.runnel] app`` in pyproject.toml names an app.
        kind: App, Stream or Processor.
        command: for messages, such as ``runnel worker``.
        redis_url: to be used instead of the app's own.

    Raises:
        TargetError: it cannot be imported, or is something else.
        ConfigurationError: the module declares something that does not fit.
    """
    if target is None:
        target = _default(command)
    name, _, attribute = target.partition(":")
    if name.endswith(".py") or name.startswith(".") or "/" in name:
        dotted = name.removesuffix(".py").strip("./").replace("/", ".")
        raise TargetError(
            f'"{target}" is a path; a target is a module and an attribute. Try: {command} {dotted}:{attribute or "app"}'
        )
    module = _import(name)
    found = _attribute(module, attribute, kind, command) if attribute else _only(module, kind, command)
    app = found if isinstance(found, App) else app_of(found.stream if isinstance(found, Processor) else found)
    if redis_url is not None:
        app.configure(redis_url=redis_url)
    if kind is not Stream:
        _guarded(f'autodiscover="{app.settings.autodiscover}"', app.discover)
    return found


def load_or_name(target: str, kind: type[T], command: str, *, redis_url: str | None = None) -> tuple[App, str]:
    """An app, and the name of an object of the kind; or, where the module has none of that name, the name alone.

    For what may have gone from the app, but not from Redis: then the module must have exactly one app.

    Raises:
        TargetError: as :func:`load`.
        ConfigurationError: as :func:`load`.
    """
    name, _, attribute = target.partition(":")
    if attribute and "/" not in name and not hasattr(_import(name), attribute.partition(".")[0]):
        return load(name, App, command, redis_url=redis_url), attribute
    found: Any = load(target, kind, command, redis_url=redis_url)
    return app_of(found.stream), found.name


def _default(command: str) -> str:
    target = default_target()
    if target is None and (file := Path("pyproject.toml")).is_file():
        try:
            ours = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("runnel", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"pyproject.toml is not valid TOML: {error}.") from None
        if not isinstance(ours, dict) or not isinstance(target := ours.get("app"), str | None):
            raise ConfigurationError(
                'pyproject.toml: the app should be a string under [tool.runnel]: app = "example:app"'
            )
    if target is None:
        raise TargetError(
            f"Which app? Name it as module:attribute, for example: {command} example:app\n"
            "Or set RUNNEL_APP, or `app` under [tool.runnel] in pyproject.toml."
        )
    return target


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if not name:
        raise TargetError("The target has no module. It looks like this: example:app")
    module: ModuleType = _guarded(name, lambda: importlib.import_module(name))
    return module


def _guarded(name: str, importing: Any) -> Any:
    """Run an import of the user's code, and turn what can go wrong into one message."""
    try:
        return importing()
    except RunnelError as error:
        raise type(error)(f"{error}{_place(error)}") from None
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            files = [file.stem for file in Path.cwd().glob("*.py")]
            raise TargetError(
                f'There is no module "{name}" in {Path.cwd()} or among the installed packages.'
                f"{did_you_mean(name, files)}"
            ) from None
        raise TargetError(f'"{name}" cannot be imported:\n{_outside_importlib(error)}') from None
    except SyntaxError as error:
        lines = "".join(traceback.format_exception_only(error)).rstrip()
        raise TargetError(f'"{name}" cannot be imported:\n{lines}') from None
    except (Exception, SystemExit) as error:  # of a script that runs when it is imported
        raise TargetError(f'"{name}" cannot be imported:\n{_outside_importlib(error)}') from None


def _outside_importlib(error: BaseException) -> str:
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(_user_frames(error))]
    return "".join(lines + traceback.format_exception_only(error)).rstrip()


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of an import that are neither ours nor the import system's."""
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and not frame.filename.startswith(_PACKAGE)
    ]


def _place(error: BaseException) -> str:
    """Where in the user's code a declaration was refused."""
    frames = [
        frame
        for frame in _user_frames(error)
        if "site-packages" not in frame.filename and not frame.filename.startswith("<")
    ]
    return f"\n  at {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _attribute(module: ModuleType, attribute: str, kind: type[T], command: str) -> T:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name, value in vars(module).items() if isinstance(value, kind)]
            known = f" It has: {', '.join(f'{module.__name__}:{name}' for name in names)}." if names else ""
            raise TargetError(f'"{module.__name__}" has no "{attribute}".{did_you_mean(attribute, names)}{known}')
        found = getattr(found, part)
    if isinstance(found, kind):
        return found
    # Not its repr, which may have a password in it.
    other = f"the class {found.__name__}" if isinstance(found, type) else f"of the type {type(found).__name__}"
    article = next((words for known, words in _ARTICLES.items() if isinstance(found, known)), other)
    names = [name for name, value in vars(module).items() if isinstance(value, kind)]
    hint = f" Try: {command} {module.__name__}:{names[0]}" if names else ""
    raise TargetError(f'"{module.__name__}:{attribute}" is {article}; `{command}` needs {_ARTICLES[kind]}.{hint}')


def _only(module: ModuleType, kind: type[T], command: str) -> T:
    found = {name: value for name, value in vars(module).items() if isinstance(value, kind)}
    if len({id(value) for value in found.values()}) == 1:
        return next(iter(found.values()))
    if not found:
        raise TargetError(f'"{module.__name__}" has nothing that is {_ARTICLES[kind]}; `{command}` needs one.')
    choices = "".join(f"\n  {command} {module.__name__}:{name}" for name in found)
    raise TargetError(f'"{module.__name__}" has more than one; say which:{choices}')


def app_of(stream: Any) -> App:
    """The app that a stream belongs to."""
    assert isinstance(stream, Stream)
    assert isinstance(stream.outlet, App)
    return stream.outlet
