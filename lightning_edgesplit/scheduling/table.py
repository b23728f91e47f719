"""Reads CSV files of numbers: every mistake is an error with its file, line and column."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        where: The file, for messages.
        line: Its number in the file; the header is line 1.
        cells: Text by column.
    """

    where: str
    line: int
    cells: dict[str, str]

    def __contains__(self, column: str) -> bool:
        return column in self.cells

    def text(self, column: str) -> str:
        """The cell's text.

        Raises:
            ValueError: If it is empty.
        """
        cell = self.cells[column].strip()
        if not cell:
            raise self.wrong(column, "the cell is empty: fill it in, or leave the whole column out.")
        return cell

    def number(self, column: str, least: float = 0.0, above: bool = False) -> float:
        """The cell's number.

        Args:
            column: Whose cell.
            least: The least that it may be.
            above: Whether it has to be more than that.

        Raises:
            ValueError: If it is no number, not finite or too small.
        """
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            raise self.wrong(column, f"{text!r} is no number.") from None
        enough = value > least if above else value >= least
        if not (enough and value < float("inf")):  # written this way so that NaN is refused too
            raise self.wrong(column, f"{text} must be {'>' if above else '>='} {least:g} and finite.")
        return value

    def wrong(self, column: str, why: str) -> ValueError:
        """The error that says so, with the place."""
        return ValueError(f"{self.where}, line {self.line}, column {column!r}: {why}")


def read(path: str | PathLike[str], needed: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Lines of a CSV file with a header; empty lines are skipped.

    Args:
        path: The file.
        needed: Columns that it must have, in any order.
        optional: Columns that it may have.

    Raises:
        ValueError: If a column is missing, unknown or there twice, a line has too many or too few cells, or there is no
            line below the header; with the line and the column.
        FileNotFoundError: If there is no such file.
    """
    where = fspath(path)
    columns = f"Columns are {', '.join(needed)}" + (f", and may be {', '.join(optional)}" if optional else "") + "."
    rows: list[Row] = []
    with open(where, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a byte order mark
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        for name in needed:
            if name not in header:
                raise ValueError(f"{where}, line 1, column {name!r}: it is missing. {columns}")
        for name in header:
            if name not in (*needed, *optional):
                raise ValueError(f"{where}, line 1, column {name!r}: it is unknown. {columns}")
            if header.count(name) > 1:
                raise ValueError(f"{where}, line 1, column {name!r}: it is there twice: keep one.")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                place = header[min(len(cells), len(header) - 1)]
                raise ValueError(
                    f"{where}, line {reader.line_num}, column {place!r}: the line has {len(cells)} cells, the header"
                    f" {len(header)}: one cell per column."
                )
            rows.append(Row(where, reader.line_num, dict(zip(header, cells, strict=True))))
    if not rows:
        raise ValueError(f"{where}, line 2, column {needed[0]!r}: nothing stands below the header.")
    return rows
