"""From articles of PubMed Central to image-caption pairs.

Imports `errors`, `files`, `outputs`, `hashing`, `html_page` and `data.images`; `build` also `data.webdataset`, `run`
also `config`, `printed` also `command_line`; `cli` imports anything.

Read `extract.py` first: figures and captions of a folder of articles.

search fetch inventory   which articles; their files; what changed since
bucket article_files     what the open bucket answers; names and files inside the folder of an article
http_client http_body failures server_options   a rate-limited client with retries; bodies up to a limit; their errors
catalogue catalogue_file   the state of each article; opening the file that records it
licenses license_grammar license_sentences license_holders   names of licences, and what they are read by
retractions          marks of retraction
jats jats_text extract   one article of JATS XML; the text of an element; figures and captions of many articles
panels               compound figures and their captions, divided
build rules duplicates card report   the data set; which pairs go into it; equal pictures; its card; its report
claims build_options printed   which outputs the steps may write; long options of the verbs; what these print
workers lines        several processes; what a line of each step must have
run cli              all steps by one configuration; `blip pubmed VERB`
"""
