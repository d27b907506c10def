"""A sidecar, explained: the page, its figures and tables, and what differs between two.

In: a sidecar, evaluations, the model where it is read again (`analyze`). Out: one self-contained page (`page`), plain
tables (`inspect`, `diff`).
"""
