"""Orders of letters: by rows, columns and cuts, and which of them the letters in a picture speak for."""

import numpy as np
import pytest

from blip.pubmed.panels.arrange import arranged, joined, letters_of, told
from blip.pubmed.panels.detector import ALPHABET
from blip.pubmed.panels.order import by_columns, by_cuts, by_rows

GRID = [(0, 0, 100, 100), (110, 0, 210, 100), (0, 110, 100, 210), (110, 110, 210, 210)]
CORNERS = np.array([[box[0] + 8.0, box[1] + 8.0] for box in GRID])
NONE = np.zeros((0, 2)), np.zeros((0, ALPHABET))


def test_reading_order() -> None:
    assert by_rows([(0, 0, 10, 0), (0, 5, 10, 10)]) == [0, 1], "a box without height too"
    for order in (by_rows, by_cuts):
        assert order([GRID[3], GRID[0], GRID[2], GRID[1]]) == [1, 3, 2, 0]
        assert order([(110, 0, 200, 220), (0, 5, 100, 100), (0, 120, 100, 220)])[0] == 1
    assert by_columns(GRID) == [0, 2, 1, 3]
    tall = [(0, 0, 100, 300), (110, 0, 210, 140), (110, 150, 210, 300), (220, 0, 300, 140), (220, 150, 300, 300)]
    assert by_cuts(tall) == [0, 1, 2, 3, 4], "a column is read down where no line runs across all"
    assert by_cuts([]) == by_rows([]) == []
    overlapping = [(0, 0, 60, 60), (50, 2, 110, 60), (0, 55, 110, 120)]
    assert by_cuts(overlapping) == [0, 1, 2]


def seen_as(letters: str, sure: float = 0.9) -> np.ndarray:
    """Probabilities of a detector that takes one letter after the other for those."""
    found = np.full((len(letters), ALPHABET), (1 - sure) / (ALPHABET - 1))
    found[range(len(letters)), [ord(letter) - ord("a") for letter in letters]] = sure
    return found


def test_letters_that_were_seen_decide_the_order() -> None:
    names = ["A", "B", "C", "D"]
    order, blind = arranged(names, GRID, *NONE)
    assert order == [0, 1, 2, 3] and 0.5 < blind < 0.95
    order, sure = arranged(names, GRID, CORNERS, seen_as("acbd"))
    assert order == [0, 2, 1, 3] and sure > 0.85, "down the columns"
    order, sure = arranged(names, GRID, CORNERS, seen_as("abcd", 0.5))
    assert order == [0, 1, 2, 3] and sure > blind
    order, sure = arranged(names, GRID, CORNERS, seen_as("dbca"))
    assert order == [3, 1, 2, 0] and sure > 0.5, "an order of its own"
    order, sure = arranged(names, GRID, CORNERS[:3], seen_as("acb"))
    assert order == [0, 2, 1, 3] and sure > 0.6, "three letters of four"


def test_an_order_of_its_own_needs_surer_letters_the_more_panels_it_moves() -> None:
    grid = [(x, y, x + 100, y + 100) for y in (0, 110) for x in (0, 110, 220, 330)]
    corners, names = np.array([[box[0] + 8.0, box[1] + 8.0] for box in grid]), list("ABCDEFGH")
    order, _ = arranged(names, grid, corners, seen_as("acedfghb", 0.07))
    assert order == list(range(8)), "seven letters that are hardly told apart"
    order, _ = arranged(names, grid, corners, seen_as("acedfghb", 0.9))
    assert order == [0, 7, 1, 3, 2, 4, 5, 6], "the same letters, told apart"
    order, _ = arranged(names, grid, corners, seen_as("abcdefhg", 0.4))
    assert order == [0, 1, 2, 3, 4, 5, 7, 6], "two letters"


def test_letters_that_a_reader_named_count_more() -> None:
    names = ["A", "B", "C", "D"]
    seen = told(CORNERS, seen_as("abcd", 0.5), {"B": (8.0, 118.0)})
    assert seen[2].argmax() == 1 and seen[2].sum() == pytest.approx(1) and seen[1].argmax() == 1
    read = {"B": (8.0, 118.0), "C": (118.0, 8.0)}
    order, sure = arranged(names, GRID, CORNERS, told(CORNERS, NONE[1], read))
    assert order == [0, 2, 1, 3] and sure > 0.5, "without any letter that the detector told"


def test_a_single_row_is_surer_than_a_grid_and_numbers_are_not_read() -> None:
    row = [(at * 110, 0, at * 110 + 100, 90) for at in range(3)]
    _, grid = arranged(["A", "B", "C", "D"], GRID, *NONE)
    order, single = arranged(["1", "2", "3"], row, CORNERS, seen_as("cbad"))
    assert order == [0, 1, 2] and single > grid
    assert arranged(["A", "a"], row[:2], CORNERS, seen_as("baaa"))[0] == [0, 1], "one letter for two panels"


def test_a_letter_belongs_to_one_panel() -> None:
    assert letters_of(GRID, CORNERS) == [0, 1, 2, 3]
    assert letters_of(GRID, np.array([[112.0, 113.0], [400.0, 400.0]])) == [-1, -1, -1, 0]
    assert letters_of(GRID, NONE[0]) == [-1] * 4 and letters_of([], CORNERS) == []


@pytest.mark.parametrize("expected", [2, 3])
def test_plots_without_a_letter_join_the_panel_before_them(expected: int) -> None:
    """Four boxes, two letters: what has no letter belongs to the panel on its left."""
    found = joined(GRID, [0.9, 0.8, 0.7, 0.6], CORNERS[[0, 2]], expected)
    if expected == 3:
        assert found is None, "letters do not explain three panels"
    else:
        assert found == ([(0, 0, 210, 100), (0, 110, 210, 210)], [0.8, 0.6])
