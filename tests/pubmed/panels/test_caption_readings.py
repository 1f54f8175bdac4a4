"""Captions by learned readings: where labels stand, what panels share, and what is no label."""

import hashlib
import json
import re
import time
from collections.abc import Iterator

import pytest

from blip.pubmed.panels.caption_labels import expand, groups
from blip.pubmed.panels.caption_parts import Part, Split, as_sentence
from blip.pubmed.panels.caption_readings import WEIGHTS, Weights, best_reading, best_tags, shipped
from blip.pubmed.panels.caption_score import same, score, truth
from blip.pubmed.panels.captions import split_caption
from blip.pubmed.panels.compose_captions import captions
from blip.pubmed.panels.train_captions import COLUMNS, Case, train
