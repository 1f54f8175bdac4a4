"""From articles of PubMed Central to image-caption pairs.

Imports `errors`, `files`, `hashing`, `html_page` and `data.images`; `build` also `data.webdataset`, `run` also
`config`; `cli` imports anything.

Read `extract.py` first: figures and captions of a folder of articles.

search fetch inventory http_client   which articles; their files; what changed; a rate-limited client with retries
catalogue licenses   the state of each article; names of licences
jats jats_text extract   one article of JATS XML; the text of an element; figures and captions of many articles
panels               compound figures and their captions, divided
build rules duplicates card report   the data set; which pairs go into it; equal pictures; its card; its report
workers lines        several processes; what a line of each step must have
run cli              all steps by one configuration; `blip pubmed VERB`
"""
