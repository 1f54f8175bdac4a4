"""The network: tensors in, tensors out. Imports `errors` only. Read `med.py` first, then `vit.py`.

attention        soft-max attention, with named places for hooks
vit              the image encoder
pictures         items of several pictures: from pixels to what texts attend to
picture_embeddings   vectors that tell the pictures of an item apart
embeddings       words in and out of the text transformer
packing          how texts of different lengths lie in memory, and what a layout of tokens has to offer
cross_attention  how a text attends to an image, or to two: to keys projected once, or to states
med              the text transformer as text encoder, image-grounded encoder and image-grounded decoder
qformer          the Q-Former of BLIP-2: learned queries that read an image
query_rows       how queries and texts lie in memory there
onednn           linear layers multiplied by oneDNN, which is quicker on some processors
flops            how many operations each part of pre-training takes
qformer_flops    the same of BLIP-2's first stage
"""
