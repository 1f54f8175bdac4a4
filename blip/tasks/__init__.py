"""A run of each task. Imports every room below; read `pretrain.py` first, then `finetune.py`.

pretrain retrieval caption vqa nlvr dialogue blip2   a run of each task, as the scripts start it
captioning answering retrieving   of fine-tuning: its data, a step, an evaluation
pair_run             what pre-training of BLIP and of BLIP-2 share
blip2_run blip2_language blip2_finetune blip2_answering   runs of BLIP-2: stages, the second one, fine-tuning
blip2_start blip2_parts blip2_kind   what they start from; what is trained and saved; which model a run trains
language_tokens      texts of a language model on their way through a run
pretrain_data        training data of pre-training: annotation files or streamed shards
contrast             momentum twin and queue of pre-training and retrieval
finetune records pairs run   what the fine-tuning tasks share; their data, also of pairs; training and evaluation
start sizes tokenizers pins   the model, its sizes and the tokenizer that a run starts with; names that it keeps
config part_options blip2_config   options of fine-tuning, of parts, of both stages of BLIP-2
entries data_options   what a run of each task is called with; how the data that a run names are read
image_tokens         images that begin small, and patches left out
item_pictures        how many pictures items have, for dry runs
samples              the validation records that a run shows after each evaluation
dry_run rehearsal blip2_rehearsal   the costs of a configuration, without training: of each kind of run
counted estimate estimate_report   those on GPUs that are not here: counted, estimated, printed
"""
