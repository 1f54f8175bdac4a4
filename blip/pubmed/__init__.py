"""From articles of PubMed Central to image-caption pairs. Imports `files`, `hashing`, `html_page` and `data.images`.

Read `extract.py` first: figures and captions of a folder of articles.

search fetch inventory http_client   which articles; their files; what changed; a rate-limited client with retries
catalogue licenses   what is known of each article; names of licences
jats extract         one article of JATS XML; figures and captions of many
panels               compound figures and their captions, taken apart
build duplicates card report   the data set; equal pictures; its card; a page on it
workers run cli      processes that keep an order; all steps by one configuration; `blip pubmed VERB`
"""
