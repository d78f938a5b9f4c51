"""The client and the server each have a table of datatypes, since neither imports the other; they must agree."""

from forwardpass.dtypes import DTYPES
from forwardpass_server.tensors import dtypes as server


def test_both_tables_have_the_same_rows() -> None:
    theirs = {row.wire: (row.numpy, row.itemsize, row.contents) for row in server.ALL}
    ours = {row.wire: (row.numpy, row.itemsize, row.contents) for row in DTYPES.values()}
    assert ours == theirs
