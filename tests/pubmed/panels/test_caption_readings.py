"""Captions by learned readings: where labels stand, what panels share, what is no label, how weights are made."""

import json
import re
import subprocess
import sys

import pytest
from helpers.running import ROOT

from blip.pubmed.panels.caption_atoms import atoms_of, sentence_bounds
from blip.pubmed.panels.caption_features import features_of
from blip.pubmed.panels.caption_labels import groups
from blip.pubmed.panels.caption_parts import Part, Split, as_sentence
from blip.pubmed.panels.caption_readings import (
    AFTER,
    BEGIN,
    END,
    NO_LABEL,
    START,
    WEIGHTS,
    B,
    L,
    P,
    Q,
    T,
    Weights,
    best_tags,
    emissions,
    shipped,
)
from blip.pubmed.panels.caption_rows import expand
from blip.pubmed.panels.caption_score import same, score, truth, words
from blip.pubmed.panels.caption_writer import RESERVED, alternatives, grammar
from blip.pubmed.panels.captions import split_caption
from blip.pubmed.panels.compose_captions import captions
from blip.pubmed.panels.train_captions import Case, Learner, mean_of, train


def parts(caption: str) -> dict[str, str]:
    """Label or labels -> own words."""
    return {"/".join(part.labels): part.text.rstrip(".") for part in split_caption(caption).parts}


@pytest.mark.parametrize(
    ("caption", "lead", "own", "tail"),
    [
        ("A man with headache. Axial CT (A) and coronal MRI (B) show a mass (arrows).", "A man with headache.",
         {"A": "Axial CT", "B": "coronal MRI"}, "show a mass (arrows)."),
        ("Axial T1 (A), T2 (B), and FLAIR (C) images of the brain. Arrows indicate the tumour.", "",
         {"A": "Axial T1", "B": "T2", "C": "FLAIR"}, "images of the brain. Arrows indicate the tumour."),
        ("CT shows a mass in the liver (arrow, A). MRI shows no fat (B).", "",
         {"A": "CT shows a mass in the liver (arrow)", "B": "MRI shows no fat"}, ""),
        ("Coronal CT (a) shows a mass. Axial CT (b) shows the vessel.", "",
         {"a": "Coronal CT shows a mass", "b": "Axial CT shows the vessel"}, ""),
        ("Effects of the drug. (A) Tumour volume. (B, C) Ki-67 staining. "
         "Data are mean \u00b1 SD. Scale bar, 10 \u00b5m.",
         "Effects of the drug.",
         {"A": "Tumour volume", "B/C": "Ki-67 staining"},
         "Data are mean \u00b1 SD. Scale bar, 10 \u00b5m."),
        ("CT of the abdomen: (a) arterial phase, (b) portal phase, and (c) delayed phase.", "CT of the abdomen",
         {"a": "arterial phase", "b": "portal phase", "c": "delayed phase"}, ""),
        ("(A) Kidney section. (B) The same section as in (A) at higher magnification. (C) Quantification of the "
         "data in A and B.", "", {"A": "Kidney section", "B": "The same section as in (A) at higher magnification",
                        "C": "Quantification of the data in A and B"}, ""),
        ("Panel A shows the ECG. Panel B shows the angiogram.", "", 
         {"A": "shows the ECG", "B": "shows the angiogram"}, ""),
        ("a T1-weighted image. b T2-weighted image. c Follow-up after 1 year.", "",
         {"a": "T1-weighted image", "b": "T2-weighted image", "c": "Follow-up after 1 year"}, ""),
        ("Dermoscopy (left) and confocal microscopy (right) of a carcinoma.", "",
         {"left": "Dermoscopy", "right": "confocal microscopy"}, "of a carcinoma."),
        ("Figure 2A. Axial view of the cyst. Figure 2B. Coronal view of the cyst.", "",
         {"A": "Axial view of the cyst", "B": "Coronal view of the cyst"}, ""),
        ("Chest radiograph (A) showing infiltrates and CT scan (B) showing opacities in both lungs.", "",
         {"A": "Chest radiograph showing infiltrates", "B": "CT scan showing opacities in both lungs"}, ""),
        ("Image A shows a mass in the liver. Image B shows the same mass after treatment.", "",
         {"A": "shows a mass in the liver", "B": "shows the same mass after treatment"}, ""),
        ("A-axial CT of the chest. B-coronal reconstruction. C-gross specimen.", "",
         {"A": "axial CT of the chest", "B": "coronal reconstruction", "C": "gross specimen"}, ""),
        ("Recordings in mice. Left The trace of a control animal. Right The trace of a mutant.", "Recordings in mice.",
         {"left": "The trace of a control animal", "right": "The trace of a mutant"}, ""),
        ("Lung mass. (A) Biopsy (H&E, \u00d7400). (B) The tumour (H&E) is positive for CD34.", "Lung mass.",
         {"A": "Biopsy (H&E, \u00d7400)", "B": "The tumour (H&E) is positive for CD34"}, ""),
        ("Training of the network. Part A shows the loss. Part B shows the ROC curve.", "Training of the network.",
         {"A": "shows the loss", "B": "shows the ROC curve"}, ""),
        ("Dissection of the tumour. a The borders were marked. b A solution was injected. c A clip was placed.",
         "Dissection of the tumour.",
         {"a": "The borders were marked", "b": "A solution was injected", "c": "A clip was placed"}, ""),
        ("Retina. A: Cross-sections of the eye. Thickness of the inner layer (B) and density of cells (C).", "Retina.",
         {"A": "Cross-sections of the eye", "B": "Thickness of the inner layer", "C": "density of cells"}, ""),
        ("(A) Schematic of the protein. (B, C) Lateral images of control (B) and mutant (C) embryos at 24 h.", "",
         {"A": "Schematic of the protein", "B/C": "Lateral images of control (B) and mutant (C) embryos at 24 h"}, ""),
        ("Axial CT (a) and coronal MRI (b). The cyst lies at the notch and compresses the nerve.", "",
         {"a": "Axial CT", "b": "coronal MRI"}, "The cyst lies at the notch and compresses the nerve."),
    ],
)  # fmt: skip
def test_forms(caption: str, lead: str, own: dict[str, str], tail: str) -> None:
    found = split_caption(caption)
    assert (found.lead, parts(caption), found.tail) == (lead, own, tail) and 0 < found.confidence < 1


def test_the_position_may_change_at_the_end_of_a_sentence() -> None:
    found = split_caption("Axial CT (A) and MRI (B). (C) Photograph of the specimen. (D) Histology of the tumour.")
    assert [part.behind for part in found.parts] == [True, True, False, False]
    assert [words(part.text)[0] for part in found.parts] == ["Axial", "MRI", "Photograph", "Histology"]


@pytest.mark.parametrize(
    "caption",
    [
        "Hepatitis C and influenza A viruses. C. elegans and E. coli were used.",
        "Survival by group (n = 20). Group A: control. Group B: treated.",
        "Flow chart. Patients were (1) screened, (2) randomised and (3) followed.",
        "Structure of the kidney. 1, cortex; 2, medulla; 3, capsule.",
        "(" * 9, "A", "", "(A)", "A. B.",
    ],
)  # fmt: skip
def test_what_is_no_label(caption: str) -> None:
    found = split_caption(caption)
    assert found == Split(caption, [], whole=caption) and found.of("A") == ""


def test_half_a_bracket_of_another_panel_stays() -> None:
    assert (
        parts("Residuals. a) Q-Q plot. b) Residuals by size, see a). c) Intercepts.")["b"]
        == "Residuals by size, see a)"
    )


def test_what_a_panel_shares_can_be_left_out() -> None:
    found = split_caption("Mice. (A) Liver. (B) Kidney. Scale bars, 10 \u00b5m.")
    assert found.of("B") == "Mice. Kidney. Scale bars, 10 \u00b5m." and found.of("B", "own") == "Kidney."
    behind = split_caption("Axial CT (A) and coronal MRI (B) show a mass (arrow). Scale bars, 1 cm.")
    assert behind.sentence("B") == "Coronal MRI show a mass (arrow). Scale bars, 1 cm."
    assert behind.sentence("B", "own") == "Coronal MRI."
    given = Split("L", [Part(["A"], "own words")], "given", tail="tail")
    assert given.sentence("A") == "L own words tail" and given.of("A", "own") == "own words" and given.of("B") == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("liver;", "Liver."), ("pH of", "pH of."), ("mRNA", "mRNA."), ("(arrow) mass", "(arrow) mass."), ("", ""),
     ("Why?", "Why?")],
)  # fmt: skip
def test_sentences(text: str, wanted: str) -> None:
    assert as_sentence(text) == wanted


@pytest.mark.parametrize(
    ("names", "labels"),
    [("A-C", "A B C"), ("A, B and D", "A B D"), ("A, B, and C", "A B C"), ("(a)\u2013(c), e", "a b c e"), ("C-A", ""),
     ("ii-iv", "ii iii iv"), ("A1-A3", "A1 A2 A3"), ("1\u20133", "1 2 3"), ("A to C", "A B C"), ("A, b", "")],
)  # fmt: skip
def test_lists_of_labels(names: str, labels: str) -> None:
    assert list(expand(names)) == labels.split()


def test_viterbi_equals_trying_all_readings() -> None:
    """On captions with few atoms: the best of all allowed rows of tags, by the plainest code."""
    weights, tried = shipped(), 0
    for made in captions(5, 120, "all"):
        for group in groups(made.caption):
            atoms = atoms_of(made.caption, sentence_bounds(made.caption), group.labels)
            if len(atoms) > 6:
                continue
            scores = emissions(weights, features_of(made.caption, atoms, group)).tolist()
            best, found = None, list[int]()
            rows = [[tag] for tag in BEGIN]
            for _ in atoms[1:]:
                rows = [[*row, tag] for row in rows for tag in AFTER[row[-1]]]
            for row in rows:
                total = 0.0
                for at, (atom, tag) in enumerate(zip(atoms, row, strict=True)):
                    if (atom.label is None and tag >= B) or (atom.enclosed and tag not in (L, P, Q, T)):
                        break
                    total += scores[at][NO_LABEL if atom.label and tag < B else tag]
                    total += weights.tags[atom.gap][tag][row[at - 1] if at else START]
                else:
                    if row[-1] in END and (best is None or total > best + 1e-9):
                        best, found = total, row
            tags, top, _ = best_tags(weights.tags, atoms, scores)
            assert best is not None and top == pytest.approx(best) and tags == found
            tried += 1
    assert tried > 20


def test_composed_captions_are_what_they_say() -> None:
    """Spans cover the caption, labels are in it, and the same seed gives the same captions, another seed others."""
    some = list(captions(3, 300))
    assert some == list(captions(3, 300)) and some != list(captions(4, 300))
    for made in some:
        assert not re.search(r"[{}]", made.caption)
        ends = [0, *(end for _, end, _, _ in made.spans)]
        for (start, _, _, _), end in zip(made.spans, ends, strict=False):
            assert start >= end and not made.caption[end:start].strip(" .")
        wanted = truth(made)
        assert same(wanted, Split(wanted.lead if wanted.parts else made.caption, wanted.parts, tail=wanted.tail))
    reserved = {made.caption for made in captions(3, 300, "test")}
    assert not {caption for caption in reserved if len(caption) > 40} & {made.caption for made in some}


def test_phrases_for_training_alone() -> None:
    """Captions in other templates than training use none of them."""
    for name in RESERVED:
        train, test = ({line for some in alternatives(name, half) for line in some} for half in ("train", "test"))
        further = set(grammar().get(f"{name}: training", ()))
        assert test and not further & test and further <= train


def test_most_composed_captions_can_be_read() -> None:
    cases = [Case(made) for made in captions(8, 400)]
    assert sum(bool(case.labelled and not case.true) for case in cases) <= 12


def test_other_seeds_and_templates_than_in_training() -> None:
    """2,000 captions; the confidence tells which are right."""
    found = score(captions(20_260, 2000, "test"), split_caption)
    assert found.exact >= 0.9 and found.labels >= 0.98, found
    assert found.kept >= 0.85 and found.exact_of_kept >= found.exact, found


def test_training_is_repeatable_and_learns() -> None:
    """Two runs give the same bytes; a small run splits far more than no weights do. Whole numbers make it exact."""
    first, second = (train(1, 400, 2, 2, tell=lambda line: None) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    made = list(captions(77, 150))
    small = Weights.of(first)
    assert score(made, lambda caption: split_caption(caption, small)).exact > 0.5
    none = Weights.of({"scale": 1, "weights": {}, "confidence": [0.0] * 14})
    assert score(made, lambda caption: split_caption(caption, none)).exact < 0.2


def test_the_mean_of_trainings() -> None:
    """A feature that one of them lacks counts as 0 there."""
    assert mean_of([{"a": [2.0] * 10, "b": [1.0] * 10}, {"a": [4.0] * 10}]) == {"a": [3.0] * 10, "b": [0.5] * 10}


def test_rare_features_have_no_weight_while_learning() -> None:
    """They have none when captions are read later."""
    cases = [case for case in map(Case, captions(1, 300)) if case.true]
    learner = Learner(cases, least=20)
    assert any(0 in rows for case in cases for rows, _ in case.rows)
    learner.pass_over(cases)
    assert learner.matrix.any() and not learner.matrix[0].any()


def test_the_shipped_weights_say_how_they_were_made() -> None:
    table = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    assert {"seed", "captions", "epochs", "runs", "scale", "confidence", "weights"} == set(table)
    assert WEIGHTS.stat().st_size < 100_000 and all(
        isinstance(v, int) for row in table["weights"].values() for v in row.values()
    )


HOSTILE = ("(", "(A) ", "A, ", "A and ", "(A, ", "[A] ", ". A x", "x (A) y (B) z. ", "; ", ",", " , ", "left: ",
           "(arrow, A) ",            "A-", "in A ", "(A)-", "and ", "A. ", "Fig. 1A ")  # fmt: skip


def test_hostile_captions_take_a_moment() -> None:
    """As long as a caption may be that is divided, and ten times longer, which stays whole."""
    code = (
        "import sys; from blip.pubmed.panels.captions import split_caption as split\n"
        "for text in sys.argv[1:]:\n    split(text * (49_000 // len(text))); assert not split(text * 500_000).parts"
    )
    subprocess.run([sys.executable, "-c", code, *HOSTILE], check=True, cwd=ROOT, timeout=120)
