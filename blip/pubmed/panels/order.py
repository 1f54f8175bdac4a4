"""Orders in which the letters of panels may run: by rows, by columns, by cuts through the figure, or by blocks.

Each function takes boxes (left, top, right, bottom) and returns their indices in the order of letters.
"""

from collections.abc import Sequence

Box = tuple[int, int, int, int]  # left, top, right, bottom
SLACK = 0.12  # share of the smaller of two boxes by which they may overlap and still lie side by side


def by_rows(boxes: Sequence[Box]) -> list[int]:
    """Rows from the top, in each row from the left.

    A box belongs to a row if it shares with the first box of the row half the height of the lower of the two.
    """
    left = sorted(range(len(boxes)), key=lambda at: (boxes[at][1], boxes[at][0]))
    order: list[int] = []
    while left:
        top, bottom = boxes[left[0]][1], boxes[left[0]][3]
        row = [left[0]]
        for at in left[1:]:
            shared = min(bottom, boxes[at][3]) - max(top, boxes[at][1])
            if shared > 0.5 * min(bottom - top, boxes[at][3] - boxes[at][1]) and boxes[at][1] < (top + bottom) / 2:
                row.append(at)
        order += sorted(row, key=lambda at: boxes[at][0])
        left = [at for at in left if at not in row]
    return order


def by_columns(boxes: Sequence[Box]) -> list[int]:
    """Columns from the left, in each column from the top."""
    return by_rows([(top, left, bottom, right) for left, top, right, bottom in boxes])


def by_cuts(boxes: Sequence[Box]) -> list[int]:
    """The figure is cut into rows where lines run across all panels, else into columns; each part again.

    Parts that no line divides are ordered by rows.
    """
    return _cuts(boxes, list(range(len(boxes))))


def _cuts(boxes: Sequence[Box], some: list[int]) -> list[int]:
    if len(some) < 2:
        return some
    for axis in (1, 0):
        parts = _parts(boxes, some, axis)
        if len(parts) > 1:
            return [at for part in parts for at in _cuts(boxes, part)]
    return [some[at] for at in by_rows([boxes[at] for at in some])]


def by_blocks(boxes: Sequence[Box]) -> list[int]:
    """As `by_cuts`, but neighbouring columns that a line divides into rows are read by rows, beside other columns."""
    return _blocks(boxes, list(range(len(boxes))))


def _blocks(boxes: Sequence[Box], some: list[int]) -> list[int]:
    if len(some) < 2:
        return some
    rows, columns = _parts(boxes, some, 1), _parts(boxes, some, 0)
    if len(rows) > 1:
        return [at for part in rows for at in _blocks(boxes, part)]
    if len(columns) < 2:
        return [some[at] for at in by_rows([boxes[at] for at in some])]
    blocks: list[list[int]] = []
    for column in columns:
        if blocks and len(column) > 1 and len(blocks[-1]) > 1:
            both = blocks[-1] + column
            if len(_parts(boxes, both, 1)) > 1:
                blocks[-1] = both
                continue
        blocks.append(column)
    return [at for block in blocks for at in _blocks(boxes, block)]


def _parts(boxes: Sequence[Box], some: list[int], axis: int) -> list[list[int]]:
    """Boxes divided where no box of one part reaches into the next one; `axis` is 0 for x, 1 for y."""
    parts: list[list[int]] = []
    end = smallest = 0.0
    for at in sorted(some, key=lambda at: (boxes[at][axis], boxes[at][axis + 2])):
        low, high = boxes[at][axis], boxes[at][axis + 2]
        if parts and end - low > SLACK * min(smallest, high - low):
            parts[-1].append(at)
            end, smallest = max(end, high), min(smallest, high - low)
        else:
            parts.append([at])
            end, smallest = high, high - low
    return parts
