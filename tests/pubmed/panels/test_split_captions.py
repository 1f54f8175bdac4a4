"""Captions of several panels, by rules: the forms that occur, and text that is not a label."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.real_files import read
from helpers.running import ROOT

from blip.pubmed.panels.caption_rules import expand, split_by_rules
from blip.pubmed.panels.captions import split_caption


@pytest.mark.parametrize(
    ("caption", "lead", "parts"),
    [
        ("(A) Axial CT. (B) MRI of the brain.", "", {"A": "Axial CT.", "B": "MRI of the brain."}),
        ("Lung mass. (a) CT; (b) PET.", "Lung mass.", {"a": "CT", "b": "PET."}),
        ("A, radiograph. B, CT shows a mass (arrow).", "", {"A": "radiograph.", "B": "CT shows a mass (arrow)."}),
        ("A: one. B and C: two.", "", {"A": "one.", "B": "two.", "C": "two."}),
        ("A. First view. B. Second view.", "", {"A": "First view.", "B": "Second view."}),
        ("a) T1 b) T2 c) FLAIR", "", {"a": "T1", "b": "T2", "c": "FLAIR"}),
        ("[A] Before. [B] After.", "", {"A": "Before.", "B": "After."}),
        ("Mice. (A\u2013C) Wild type. (D, E) Mutant.", "Mice.",
         {"A": "Wild type.", "B": "Wild type.", "C": "Wild type.", "D": "Mutant.", "E": "Mutant."}),
        ("(A~C) Cells. (D) Response in (A~C).", "", {"A": "Cells.", "C": "Cells.", "D": "Response in (A~C)."}),
        ("(i) first (ii) second (iii) third", "", {"i": "first", "ii": "second", "iii": "third"}),
        ("(A) and (A') Stained. (B) Control.", "", {"B": "Control."}),
        ("Left: T1. Right: T2.", "", {"left": "T1.", "right": "T2."}),
        ("Upper row: axial. Lower row: coronal.", "", {"upper": "axial.", "lower": "coronal."}),
        ("Chest radiograph (A) and CT (B) of one patient. No more.", "",
         dict.fromkeys("AB", "Chest radiograph (A) and CT (B) of one patient.")),
    ],
)  # fmt: skip
def test_forms(caption: str, lead: str, parts: dict[str, str]) -> None:
    found = split_by_rules(caption)
    assert found.lead == lead and found.confidence > 0
    for label, text in parts.items():
        assert found.of(label) == f"{lead} {text}".strip()


@pytest.mark.parametrize(
    "caption",
    [
        "Effects of vitamin A in mice, see Figure 1A and 1B.",
        "Hepatitis B and hepatitis C by year.",
        "A large mass. It is dark.",
        "Survival (n = 20) and response (p < 0.05).",
        "Axial CT in a patient with pneumonia (arrow).",
        "Blood group A, type B, of all donors.",
    ],
)
def test_what_is_no_label(caption: str) -> None:
    for found in (split_by_rules(caption), split_caption(caption)):
        assert not found.parts and found.lead == caption and found.confidence == 0


@pytest.mark.parametrize(
    ("names", "labels"),
    [("A-C", "ABC"), ("A, B and D", "ABD"), ("a\u2013c, e", "abce"), ("C-A", ""), ("A to C", "ABC"), ("A", "A")],
)
def test_ranges(names: str, labels: str) -> None:
    assert expand(names) == list(labels)
    assert expand("ii-iv") == ["ii", "iii", "iv"]


def test_sentences_that_panels_share_are_less_sure() -> None:
    assert split_by_rules("(A) CT. (B) MRI.").confidence > split_by_rules("CT (A) and MRI (B).").confidence


@pytest.mark.real_data
def test_labels_of_real_captions(data_dir: Path) -> None:
    """Against the labels of an independent extraction, corrected by reading where it lists ranges by their ends."""
    corrected = {
        "elife-52882-v2 fig1": "ABCDEFGHIJ", "elife-52882-v2 fig2s2": "", "elife-52882-v2 fig3": "ABCDEFGHI",
        "elife-52882-v2 fig4": "ABCDEFGHIJ", "elife-32671-texture fig1": "ABCDEFG",
        "elife-32671-texture fig4": "ABCDEF",
    }  # fmt: skip
    figures, wrong = read(data_dir, "jats/figures.json"), []
    for figure in figures:
        own = f"{figure['article']} {figure['fig_id']}"
        expected = list(corrected.get(own, figure["panel_labels_in_caption"]))
        found = sorted({label for part in split_by_rules(figure["caption"]).parts for label in part.labels})
        if found != expected:
            assert own not in corrected, own
            # a range that is listed by its ends: what lies between them is missing
            inner = expected and set(expected) < set(found) and [found[0], found[-1]] == [expected[0], expected[-1]]
            wrong += [] if inner else [own]
    assert len(wrong) <= 0.05 * len(figures), wrong


@pytest.mark.parametrize("text", ["A, ", "A and ", "(A, "])
def test_a_caption_of_thousands_of_letters_takes_a_moment(text: str) -> None:
    code = "import sys; from blip.pubmed.panels.caption_rules import *; print(split_by_rules(sys.argv[1] * 20_000))"
    command = [sys.executable, "-c", code, text]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert result.stdout.startswith("Split(")
