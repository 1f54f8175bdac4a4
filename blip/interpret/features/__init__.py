"""What a model's states are made of, and what they hold. Read `contributions.py` first.

Imports what `interpret` may and, of `evaluation`, `bootstrap`; `cli` imports anything.

contributions  a score as an exact sum over heads, networks, embeddings and biases
residual by_token   the walk through the layers that takes a score apart; its parts summed by token of text or image
"""
