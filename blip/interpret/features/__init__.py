"""What a model's states are made of, and what they hold. Read `contributions.py` first.

Imports what `interpret` may and, of `evaluation`, `bootstrap`; `cli` imports anything.

contributions  a score as an exact sum over heads, networks, embeddings and biases
residual by_token   the walk through the layers that takes a score apart; its parts summed by token of text or image
scored_tokens query_contributions   the tokens whose logits are taken apart; scores of BLIP-2's first stage
states       rows of states from shards of activations
tuned_lens   decoder layers as words through a trained affine map
probes labels   what a linear read-out of states predicts, with controls; the labels of records
probe_picture   scores of probes as a picture
sae sae_training   sparse autoencoders of states; how they are trained, and what a model loses with them in it
sae_report   the most active images and words of each feature, as a page
cli          the verbs `blip probe`, `blip sae train` and `blip sae report`
"""
