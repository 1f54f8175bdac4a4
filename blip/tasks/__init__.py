"""What a run of each task does. Imports every room below; read `pretrain.py` first, then `finetune.py`.

pretrain retrieval caption vqa nlvr   a run of each task: its data, a step, an evaluation
pretrain_data  what pre-training reads: annotation files or streamed shards
finetune pairs run   what the fine-tuning tasks share; those on image-caption pairs; training or evaluation alone
start tokenizers     the model and the tokenizer that a run starts with
config         options of the fine-tuning tasks
dry_run        what a configuration costs, without training
"""
