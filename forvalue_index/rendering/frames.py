"""Results as tables of other libraries: a `pandas.DataFrame` or a `datasets.Dataset`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from forvalue_index.errors import DependencyError

if TYPE_CHECKING:
    import datasets
    import pandas


class Tabular(ABC):
    """A result that is a table: its class has `table`."""

    __slots__ = ()

    @abstractmethod
    def table(self) -> list[dict[str, Any]]:
        """Returns the rows of the table."""

    def to_pandas(self) -> pandas.DataFrame:
        """Returns the table as a frame; a column that a row lacks is NaN there.

        Raises:
            DependencyError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise DependencyError("a frame needs the package pandas: pip install pandas") from None
        return pandas.DataFrame(self.table())

    def to_dataset(self) -> datasets.Dataset:
        """Returns the table as a data set; a column of several kinds of values has their JSON.

        Raises:
            DependencyError: datasets is not installed.
        """
        try:
            import datasets
            import pyarrow
        except ImportError:
            raise DependencyError(
                'a data set needs the package datasets: pip install "forvalue-index[datasets]"'
            ) from None
        rows = self.table()
        columns: dict[str, Any] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            try:
                columns[name] = pyarrow.array(values)
            except (pyarrow.ArrowException, OverflowError):
                texts = [None if value is None else json.dumps(value) for value in values]
                columns[name] = pyarrow.array(texts)
        return datasets.Dataset(pyarrow.table(columns))


def with_fields(named: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Returns named values and behind them the fields of a row, as "sample.FIELD"."""
    return named | {f"sample.{name}": value for name, value in row.items()}
