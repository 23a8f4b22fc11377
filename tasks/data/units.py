"""What belongs together: rows of one group, and copies of one content, whatever their groups say."""

from collections.abc import Sequence

import pyarrow.parquet as pq

from tasks.records import Manifest, Split


def keys(groups: Sequence[str], digests: Sequence[str]) -> list[str]:
    """The unit [N] of each row. Rows that share a group or a content are of one unit, and so are rows
    that are joined by others: two groups that hold the same image are one.

    A unit is named by the first of its groups in the alphabet, else by its content: without copies in
    several groups that is `group or digest`, by which the splits always were hashed. A group that is
    named like the content of another sample joins it; that is harmless.

    Args:
        groups: of each row; "" where it has none.
        digests: of the content of each row.
    """
    parent: dict[str, str] = {}  # group -> a smaller group of its unit

    def root(group: str) -> str:
        while (above := parent.get(group, group)) != group:
            parent[group] = parent.get(above, above)
            group = above
        return group

    group_of: dict[str, str] = {}  # content -> a group that holds it
    for group, digest in zip(groups, digests, strict=True):
        if group:
            one, other = root(group), root(group_of.setdefault(digest, group))
            if one != other:
                parent[max(one, other)] = min(one, other)
    own = (group or group_of.get(digest, "") for group, digest in zip(groups, digests, strict=True))
    return [root(group) if group else digest for group, digest in zip(own, digests, strict=True)]


def of_split(manifest: Manifest, split: Split) -> list[str]:
    """The unit of each row of a split, in the manifest's order."""
    table = pq.read_table(manifest.file, columns=["digest", "group"], filters=[("split", "=", split)])
    return keys(table["group"].to_pylist(), table["digest"].to_pylist())
