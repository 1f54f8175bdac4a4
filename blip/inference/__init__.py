"""Using a model: images and strings in, texts and scores out. Read `predictor.py` first.

Imports `models`, `network`, `checkpoints`, `tokenizer`, `files`, `hashing`, `hardware`, `distributed`, `errors` and, of
`data`, `images`, `transforms`, `batches`, `places`, `sources`, `dialogue_texts`; `cli` and `opening` import anything.

load         `blip.load`: from a checkpoint of any format to a predictor
predictor    captions, answers, features and match probabilities of images
blip2 language   the same of BLIP-2's two stages; load_blip2 makes them
loaded_model computation   a model with tokenizer and transform; whether gradients are computed, and in which precision
inputs results choices   what it takes; what it returns; lists of answers
dialogue     answers in a dialogue, ranked
scoring query_scoring   the probability of a given text; of BLIP-2 token by token, and which tokens are a word
asked        the texts of a command line, or those of records
files        the predictor over files and folders, to a table or JSON
opening      the model and how images are read, as options of verbs name them
cli          the verbs `blip caption`, `blip match` and `blip answer`
"""
