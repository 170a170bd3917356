"""Options of commands as fields of dataclasses, and the decorator that shows them to Typer.

    @request
    class Limits:
        timeout: float | None = option("--timeout", parse=seconds, metavar="TIME", help="Give up after this.")

    @app.command()
    @takes_requests()
    def layers(limits: Limits) -> None: ...

Typer sees one parameter for each field and passes the text that was typed. The command gets the dataclass: each field
holds what its ``parse`` made of the text. Two dataclasses of a command may have the same flag. It is one option then,
with the help of the first of them, and each gets its value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from keyword import iskeyword
from typing import Any, TypeVar, dataclass_transform, get_type_hints

import typer

Parser = Callable[[str, str], Any]
T = TypeVar("T")

# Options that most commands have come last in the help, in this order. The others stand before them, in the order of
# the signature.
_LAST = """
--format --sparse --force --samples --arg --method --chunk --max-memory --device --dtype --arch --arch-arg --activation
--trust --seed --threads --timeout --compile --explain --quiet --no-color
"""


def option(
    *flags: str,
    help: str,
    parse: Parser | None = None,
    default: str | bool | None = None,
    many: bool = False,
    metavar: str | None = None,
    complete: Sequence[str] = (),
    absent: Any = None,
) -> Any:
    """A field of a request that is an option.

    Args:
        flags: how it is typed; the last one names it in messages.
        help: its line of the help.
        parse: makes a value of the text, given the text and the flag; raises ``UsageError``.
        default: the text if none is typed, which the help shows; or False for a flag without a value.
        many: the option may be repeated; the field is a tuple.
        metavar: what the help calls the value.
        complete: values that a shell offers.
        absent: the value where nothing is typed and there is no default.
    """
    info: Any = typer.Option(
        default,
        *flags,
        metavar=metavar,
        help=help,
        show_default=isinstance(default, str),
        autocompletion=(lambda incomplete: [c for c in complete if c.startswith(incomplete)]) if complete else None,
    )
    return _field(flags[-1], info, parse, many, absent)


def argument(metavar: str, help: str, required: bool = True) -> Any:
    """A field of a request that is an argument by position."""
    return _field(metavar, typer.Argument(... if required else None, metavar=metavar, help=help, show_default=False))


def _field(flag: str, info: Any, parse: Parser | None = None, many: bool = False, absent: Any = None) -> Any:
    def value(raw: Any) -> Any:
        if many:
            return tuple(parse(text, flag) if parse is not None else text for text in raw or ())
        if raw is None:
            return absent
        return parse(raw, flag) if parse is not None else raw

    metadata = {"flag": flag, "info": info, "many": many, "value": value}
    if info.default is ...:
        return field(metadata=metadata)
    return field(metadata=metadata, default_factory=lambda: value(info.default))


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(option, argument))
def request(cls: type[T]) -> type[T]:
    """A dataclass whose fields are options. It gets only what it needs: more methods would be seen at start-up."""
    return dataclass(kw_only=True, eq=False, repr=False)(cls)


def takes_requests(first: Sequence[str] = ("--input",)) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose parameters are requests, as Typer takes it.

    Requests are made in the order of the signature: of two errors the user sees that of the earlier one.

    Args:
        first: flags that come first in the help.
    """
    last = [flag for flag in _LAST.split() if flag not in first]
    order = {flag: place for place, flag in enumerate([*first, "", *last])}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        requests = {name: cls for name, cls in get_type_hints(command).items() if name != "return"}
        options: dict[str, Field[Any]] = {}
        for cls in requests.values():
            for option_field in fields(cls):
                options.setdefault(option_field.metadata["flag"], option_field)
        ordered = sorted(options, key=lambda flag: order.get(flag, order[""]))

        def run(**raw: Any) -> None:
            command(**{name: _request(cls, raw) for name, cls in requests.items()})

        signature = inspect.Signature([_parameter(options[flag]) for flag in ordered])
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        # Typer reads the signature and resolves the annotations by itself, so that both must be there.
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return run

    return decorate


def _request(cls: Any, raw: Mapping[str, Any]) -> Any:
    return cls(**{field.name: field.metadata["value"](raw[_name(field)]) for field in fields(cls)})


def _parameter(option_field: Field[Any]) -> inspect.Parameter:
    info, kind = option_field.metadata["info"], inspect.Parameter.KEYWORD_ONLY
    # A field without a default factory is an argument that must be given.
    annotation: Any = str if isinstance(info.default, str) or option_field.default_factory is MISSING else str | None
    if isinstance(info.default, bool):
        annotation = bool
    elif option_field.metadata["many"]:
        annotation = list[str] | None
    return inspect.Parameter(_name(option_field), kind, default=info, annotation=annotation)


def _name(option_field: Field[Any]) -> str:
    """The parameter of an option, by its flag: dataclass fields of several requests may share one."""
    name = str(option_field.metadata["flag"]).lstrip("-").replace("-", "_").lower()
    return name + "_" if iskeyword(name) else name
