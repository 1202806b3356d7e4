"""What both kinds of database can say, but not in the same words."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction


class position(GenericFunction[int]):  # noqa: N801 - as SQL writes it
    """Where a text first holds another, from 1; 0 when it does not."""

    type = Integer()
    inherit_cache = True


class elements(GenericFunction[str]):  # noqa: N801 - as SQL writes it
    """The texts in a JSON array as rows, in a column `value`."""

    type = String()
    inherit_cache = True


class part(GenericFunction[str]):  # noqa: N801 - as SQL writes it
    """The text at a place, a literal number from 0, of an array that is an element of a JSON array (`elements`)."""

    type = String()
    inherit_cache = True


@compiles(position, "sqlite")
def _instr(element: position, compiler: Any, **options: Any) -> str:  # noqa: ANN401 - SQLAlchemy's own
    return f"instr({compiler.process(element.clauses, **options)})"


@compiles(position, "postgresql")
def _strpos(element: position, compiler: Any, **options: Any) -> str:  # noqa: ANN401 - as above
    return f"strpos({compiler.process(element.clauses, **options)})"


@compiles(elements, "sqlite")
def _json_each(element: elements, compiler: Any, **options: Any) -> str:  # noqa: ANN401 - as above
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(elements, "postgresql")
def _json_array_elements_text(element: elements, compiler: Any, **options: Any) -> str:  # noqa: ANN401 - as above
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS JSON))"


@compiles(part, "sqlite")
def _json_extract(element: part, compiler: Any, **options: Any) -> str:  # noqa: ANN401 - as above
    array, place = (compiler.process(clause, **options) for clause in element.clauses)
    return f"json_extract({array}, '$[{place}]')"


@compiles(part, "postgresql")
def _arrow(element: part, compiler: Any, **options: Any) -> str:  # noqa: ANN401 - as above
    array, place = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(CAST({array} AS JSON) ->> {place})"
