"""Where rows come from: files (packed too), Parquet and Arrow, folders of data sets, hubs, databases.

A source gives raw rows, each with its place: a line, or a row number where there are no lines.
"""

from tunesmith.data.sources.address import Address, address_of

__all__ = ["Address", "address_of"]
