"""A run of each task. Imports every room below; read `pretrain.py` first, then `finetune.py`.

pretrain retrieval caption vqa nlvr   a run of each task: its data, a step, an evaluation
pretrain_data        training data of pre-training: annotation files or streamed shards
contrast             momentum twin and queue of pre-training and retrieval
finetune pairs run   what the fine-tuning tasks share; those on image-caption pairs; training, or evaluation alone
start tokenizers     the model and the tokenizer that a run starts with
config entries data_options   options of the fine-tuning tasks; what a run of each task is called with; how the data
                     that a run names are read
image_tokens         images that begin small, and patches left out
samples              the validation records that a run shows after each evaluation
dry_run rehearsal    the costs of a configuration, without training: of pre-training, of fine-tuning
counted estimate estimate_report   those on GPUs that are not here: counted, estimated, printed
"""
