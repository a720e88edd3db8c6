"""Raw files → clean, de-duplicated documents, each rejected one kept aside with its reason (`kamerton corpus`).

`recipe` says what is asked, `run` does it. datatrove (Penedo et al. 2024, github.com/huggingface/datatrove) is the
engine: its documents, steps, executor, published filters and MinHash; docs/corpus.md says which of its steps are
replaced, and why.
"""
