"""Commands that send: ``send`` and ``sendmany``."""

import asyncio
import codecs
import csv
import io
import json
import os
import select
import sys
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from runnel.cli.targets import RedisURL, app_of, load
from runnel.cli.terminal import notes, output, reporting, run
from runnel.errors import RecordError, TargetError, did_you_mean
from runnel.records import Record
from runnel.streams import Stream

__all__ = ["send", "sendmany"]

BATCH = 1_000
"""Records per append."""

MOMENT = 0.2
"""Seconds after which what has come from standard input is sent, however little it is."""

CHUNK = 65_536
"""Bytes read from standard input at once; what a pipe holds."""

Value = tuple[int, str, str | RecordError]
"""Number of a line, the line, and the record in it as JSON, or why there is none."""

_FURTHER = "\0"  # of a CSV row, what is beyond the header; no column can have this name

StreamTarget = Annotated[str, typer.Argument(metavar="STREAM", help="module:attribute, such as example:orders.")]


@reporting
def send(
    stream: StreamTarget,
    value: Annotated[str, typer.Argument(help="The record as JSON; - reads it from stdin.")],
    redis_url: RedisURL = None,
) -> None:
    """Send one event. Prints its id."""
    to = load(stream, Stream, "runnel send", redis_url=redis_url)
    record = parse_record(to, _stdin().read() if value == "-" else value)
    for entry_id in run(_send(to, [record])):
        output.print(entry_id, markup=False)


def _stdin() -> TextIO:
    """Standard input, read like a file: whatever the locale, JSON is UTF-8, and what is not is a bad line.

    Raises:
        TargetError: it is closed.
    """
    if sys.stdin is None:
        raise TargetError("There is nothing to read: standard input is closed.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    return sys.stdin


def _opened(file: Path) -> TextIO:
    """A file, or standard input.

    Raises:
        TargetError: it cannot be read.
    """
    if str(file) == "-":
        return _stdin()
    try:
        return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise TargetError(f'Cannot read "{file}": {error.strerror}.') from None


async def _send(stream: Stream[Any], records: list[Record]) -> list[str]:
    async with app_of(stream):
        return await stream.send(*records)


@reporting
def sendmany(
    stream: StreamTarget,
    file: Annotated[Path, typer.Argument(help="JSON lines, or CSV with a header (*.csv); - reads JSON lines.")],
    on_error: Annotated[str, typer.Option(help="What to do about a bad line: skip or stop.")] = "skip",
    rate: Annotated[float | None, typer.Option(help="Events per second at most.", min=0.001)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the lines, send nothing.")] = False,
    redis_url: RedisURL = None,
) -> None:
    """Send many events from a file of any size.

    Bad lines are reported with their number and written to FILE.rejected; the good ones are sent. Exit status 1 if
    there were bad lines. What comes from stdin is sent as it comes.
    """
    if on_error not in ("skip", "stop"):
        raise TargetError(f'--on-error must be skip or stop, not "{on_error}".')
    to = load(stream, Stream, "runnel sendmany", redis_url=redis_url)
    if str(file) != "-" and not file.is_file():
        raise TargetError(f'There is no file "{file}".')
    sent, rejected = run(_send_lines(to, file, on_error=on_error, rate=rate, dry_run=dry_run))
    done = "would be sent" if dry_run else "sent"
    notes.print(f"{_number(sent, 'event')} {done}.", markup=False)
    if rejected:
        stopped = ", stopped there" if on_error == "stop" else ""
        where = "" if str(file) == "-" else f", see {file}.rejected"
        notes.print(f"{_number(rejected, 'bad line')}{stopped}{where}.", style="red", markup=False)
        raise typer.Exit(1)


def _number(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


async def _send_lines(
    stream: Stream[Any], file: Path, *, on_error: str, rate: float | None, dry_run: bool
) -> tuple[int, int]:
    rejects = Rejects(None if str(file) == "-" else file.with_name(file.name + ".rejected"))
    sent = number = through = 0  # through: the line of the last event that was sent
    batch: list[Record] = []
    most = BATCH if rate is None else max(1, min(BATCH, int(rate / 10)))
    started = time.monotonic()
    source = _opened(file)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} events/s"),
        TimeElapsedColumn(),
        console=notes,
        disable=not notes.is_terminal,
        transient=True,
    )

    async def flush() -> None:
        nonlocal sent, through
        if batch and not dry_run:
            await stream.send(*batch)
        sent, through = sent + len(batch), number
        batch.clear()
        elapsed = time.monotonic() - started
        progress.update(task, completed=sent, rate=f"{sent / max(elapsed, 1e-9):,.0f}")
        if rate is not None and sent / rate > elapsed:
            await asyncio.sleep(sent / rate - elapsed)

    with source, rejects, progress:
        task = progress.add_task(f"to {stream.name}", total=None, rate="0")
        try:
            values = _values(source, as_csv=file.suffix.lower() == ".csv")
            async with app_of(stream), aclosing(values):
                async for found in values:
                    if found is None:
                        await flush()
                        continue
                    number, line, value = found
                    try:
                        if isinstance(value, RecordError):
                            raise value
                        record = parse_record(stream, value)
                        stream.partition_of(record)
                    except RecordError as error:
                        rejects.add(number, line, error)
                        if on_error == "stop":
                            break
                        continue
                    batch.append(record)
                    if len(batch) >= most:
                        await flush()
                await flush()
        except BaseException:  # Ctrl-C, or Redis has failed: whoever goes on has to know where
            if not dry_run:
                perhaps = f", and perhaps some up to line {number:,}" if batch else ""
                notes.print(
                    f"Not finished: {_number(sent, 'event')} sent, up to line {through:,}{perhaps}.", markup=False
                )
            raise
    return sent, rejects.number


async def _values(source: TextIO, *, as_csv: bool) -> AsyncGenerator[Value | None, None]:
    """What is in a file, or comes from standard input; ``None`` when what has come should be sent."""
    if source is not sys.stdin:
        for value in _in_csv(source) if as_csv else _in_lines(source):
            yield value
        return
    first = 1
    async for lines in _arriving(source.fileno()):
        for value in _in_lines(lines, first):
            yield value
        first += len(lines)
        if not lines:
            yield None


async def _arriving(descriptor: int) -> AsyncGenerator[list[str], None]:
    """The lines that come from a descriptor, as text files are read; none of them after every moment.

    It is waited for in a thread, so that Ctrl-C is heard, and never for long, so that the thread ends.
    """

    def read() -> bytes | None:
        ready, _, _ = select.select([descriptor], [], [], MOMENT)
        return os.read(descriptor, CHUNK) if ready else None

    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")("surrogateescape"), translate=True)
    begun, last = "", time.monotonic()
    while (chunk := await asyncio.to_thread(read)) != b"":
        if chunk is not None:
            *lines, begun = (begun + decoder.decode(chunk)).split("\n")
            yield lines
        if time.monotonic() - last > MOMENT:
            yield []
            last = time.monotonic()
    yield [begun + decoder.decode(b"", final=True)]


def _in_lines(lines: Iterable[str], first: int = 1) -> Iterator[Value]:
    for number, line in enumerate(lines, first):
        if line.strip():
            yield number, line.rstrip("\r\n"), line


def _in_csv(source: TextIO) -> Iterator[Value]:
    reader = csv.DictReader(source, restkey=_FURTHER)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # an open quotation mark, for instance: it goes on with the next line
            yield reader.reader.line_num, "", RecordError(f"it is not CSV: {error}")
            continue
        further = row.pop(_FURTHER, None)
        given = {name: value for name, value in row.items() if value is not None}
        line = ",".join([*given.values(), *(further or ())])
        if further:
            yield reader.line_num, line, RecordError("there are more values than columns in the header")
        else:
            yield reader.line_num, line, json.dumps(given)


class Rejects:
    """The bad lines: the first few on stderr, all of them in a file, each with its number and the reason."""

    SHOWN = 5

    def __init__(self, path: Path | None) -> None:
        """Arguments:
        path: of the file; ``None`` to show every line instead.
        """
        self.number = 0
        self._path = path
        if path is not None:
            try:
                path.unlink(missing_ok=True)  # ours, of an earlier run
            except OSError as failed:
                raise _not_written(path, failed) from None
        self._file: TextIO | None = None

    def add(self, number: int, line: str, error: Exception) -> None:
        """Report a line."""
        self.number += 1
        head, *details = (" ".join(part.split()) for part in str(error).splitlines())
        reason = " ".join([head, "; ".join(details)]).rstrip()
        if self._path is None or self.number <= self.SHOWN:
            notes.print(f"line {number}: {reason}", style="yellow", markup=False)
        elif self.number == self.SHOWN + 1:
            notes.print("... further bad lines are in the file only", style="yellow", markup=False)
        if self._path is not None:
            if self._file is None:
                try:
                    self._file = self._path.open("w", encoding="utf-8", errors="surrogateescape")
                except OSError as failed:
                    raise _not_written(self._path, failed) from None
            self._file.write(json.dumps({"line": number, "reason": reason, "value": line}) + "\n")

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _not_written(path: Path, error: OSError) -> TargetError:
    return TargetError(f'Cannot write bad lines to "{path}": {error.strerror}. From stdin (-), they are shown instead.')


def parse_record(stream: Stream[Any], value: str) -> Record:
    """The record that a JSON text stands for.

    Raises:
        RecordError: it is not JSON, or does not fit; says what is wrong with each field.
    """
    name = stream.record.__name__
    try:
        given = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"The value is not valid JSON: {error}. It should be an object with {_fields(stream)}."
        ) from None
    try:
        record: Record = stream.record.model_validate_json(value)
    except ValidationError as error:
        sent = list(given) if isinstance(given, dict) else []
        unknown = [field for field in sent if field not in stream.record.model_fields]
        lines = []
        for item in error.errors(include_url=False):
            where = ".".join(map(str, item["loc"])) or "value"
            hint = ""
            if item["type"] == "missing" and (near := _near(where, unknown)):
                hint = f' (you sent "{near}"; did you mean "{where}"?)'
            elif item["type"] != "missing":
                hint = f" (you sent {item['input']!r:.80})"
            lines.append(f"  {where:<15} {item['msg'].lower() if item['type'] == 'missing' else item['msg']}{hint}")
        raise RecordError(f"The value does not fit {name}:\n" + "\n".join(lines)) from None
    return record


def _near(field: str, unknown: list[str]) -> str:
    return did_you_mean(field, unknown).split('"')[1] if did_you_mean(field, unknown) else ""


def _fields(stream: Stream[Any]) -> str:
    return ", ".join(stream.record.model_fields)
