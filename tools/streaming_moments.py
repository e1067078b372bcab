"""Mean and covariance of rows that come in batches, none of which is kept (pairwise update of Chan et al. 1979).

Exact to float64 rounding even where the mean is large beside the deviation, which sums of squares are not.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of rows; those of two sets of rows can be merged, in any order.

    Attributes:
        count: number of rows.
        mean: float64 (values,).
        scatter: float64 (values, values), sum of the outer products of (row - mean) with itself.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of_none(cls, values: int) -> "Moments":
        """Of no rows; the start of a sum.

        Args:
            values: length of a row.
        """
        return cls(0, np.zeros(values), np.zeros((values, values)))

    @classmethod
    def of(cls, rows: np.ndarray) -> "Moments":
        """Of the rows of an array.

        Args:
            rows: (count, values), at least one row, of any type of number.
        """
        mean = rows.mean(axis=0, dtype=np.float64)
        centered = rows - mean  # (count, values) float64
        return cls(len(rows), mean, centered.T @ centered)

    def merged(self, other: "Moments") -> "Moments":
        """Of the rows of both."""
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        between = np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """float64 (values, values) of the rows themselves: divided by their count, not by one less."""
        return self.scatter / self.count

    @property
    def std(self) -> np.ndarray:
        """float64 (values,), the standard deviation of each value: the root of the covariance's diagonal."""
        return np.sqrt(np.diagonal(self.scatter) / self.count)
